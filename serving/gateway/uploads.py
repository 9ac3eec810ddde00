"""Extracts the uploaded images from a raw body or a multipart form, in memory and within limits."""

import functools
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deit.picture_header import Header, read_header
from deit.pictures import may_be_reduced
from serving.gateway.errors import MalformedRequest, UnsupportedType
from serving.gateway.parameters import Parameters

FIELD = "image"

FIELDS = re.compile(r"image(\[\d{0,4}\])?")
"""PHP and axios write the fields of a list as image[] or image[0]."""

EXTENDED_FILENAME = re.compile(rb""";\s*filename\*\s*=\s*"?([\w-]*)'[^']*'([^;"]*)""", re.IGNORECASE)
"""RFC 8187; forms should not have it (RFC 7578 section 4.2), but for some names older clients write nothing else."""

MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096

# A name is returned in the answer and used nowhere else. Longer ones than a file system allows are cut.
MAX_FILENAME_CHARACTERS = 255

HOW_TO_SEND = f"send it with: curl -F {FIELD}=@photo.jpg"
MOST_SHOWN = 60

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "image/avif", "application/octet-stream")


@dataclass(frozen=True)
class Upload:
    """One image as received; `filename` is the caller's, empty for a raw body."""

    filename: str
    content: bytes

    @functools.cached_property
    def header(self) -> Header:
        return read_header(self.content)

    def pixels_to_expect(self, most: int) -> int:
        """For admission: the pixels that the header declares; 0 if too many, because then nothing is decoded."""
        declared = self.header.pixels
        if declared is None:
            return most
        if declared > most:
            return most if may_be_reduced(self.header) else 0
        return declared


@dataclass(frozen=True)
class ReadyPixels:
    """A model's input, uint8 (H, W, 3), which needs no decoding."""

    pixels: npt.NDArray[np.uint8]

    def pixels_to_expect(self, most: int) -> int:
        return 0


class MemoryParser(MultiPartParser):
    """Starlette's parser, with four differences.

    It uses no temporary file: the body is already limited, and the disk may be read-only. It reads names as UTF-8,
    whatever charset the request gives (RFC 7578 section 5.1.2; some of Python's codecs fail on some names), and as
    Latin-1 if they are not UTF-8. A part of FIELD is a file even without a file name, as Flutter and React Native send
    it, and so is any part with `filename*`. And it knows whether the form came to its end.
    """

    spool_max_size = 2**62
    is_complete = False

    @property
    def _charset(self) -> str:
        return "utf-8"

    @_charset.setter
    def _charset(self, value: str) -> None:
        """Ignores the charset that the request gives."""

    def on_headers_finished(self) -> None:
        disposition = self._current_part.content_disposition or b""
        if b"filename=" not in disposition:
            extended = EXTENDED_FILENAME.search(disposition)
            field = parse_options_header(disposition)[1].get(b"name", b"")
            if extended is not None or FIELDS.fullmatch(field.decode("latin-1")):
                name = b"" if extended is None else decoded(*extended.groups())
                escaped = name.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
                self._current_part.content_disposition = b'%s; filename="%s"' % (disposition, escaped)
        super().on_headers_finished()

    def on_end(self) -> None:
        """After the closing boundary."""
        self.is_complete = True


async def read_uploads(request: Request, *, max_images: int) -> list[Upload]:
    """The images of a request, at least one, in order.

    Raises:
        MalformedRequest, UnsupportedType
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedType("the body is compressed; send the image as it is, without Content-Encoding")
    content_type = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _read_form(request, max_images)
    if content_type == "application/octet-stream" or content_type.startswith("image/"):
        return [Upload(filename="", content=await request.body())]
    raise UnsupportedType(
        f"the content type {content_type[:100]!r} cannot hold an image; send multipart/form-data with a file field "
        f"{FIELD!r} (curl -F {FIELD}=@photo.jpg), or the bytes of the image as image/jpeg, image/png, image/webp, "
        "image/avif or application/octet-stream"
    )


async def _read_form(request: Request, max_images: int) -> list[Upload]:
    stream: AsyncGenerator[bytes, None] = request.stream()
    parser = MemoryParser(
        request.headers, stream, max_files=max_images, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        finding = f"the multipart form cannot be read: {error.message}"
        if error.message.startswith("Part exceeded"):
            field = parser._current_part.field_name[:MOST_SHOWN]
            finding = f"the field {field!r} has no file name and more than {MAX_FIELD_BYTES} bytes; {HOW_TO_SEND}"
        raise MalformedRequest(finding) from error
    try:
        if not parser.is_complete:
            raise MalformedRequest("the multipart form ends before its closing boundary; send it whole")
        if misplaced := form.keys() & Parameters.model_fields.keys():
            name = min(misplaced)
            raise MalformedRequest(f"{name} is a field of the form; write it into the address: /classify?{name}=…")
        fields = form.multi_items()
        files = [file for name, file in fields if FIELDS.fullmatch(name) and isinstance(file, UploadFile)]
        if not files:
            came = ", ".join(repr(name[:MOST_SHOWN]) for name, _ in fields[:8]) or "no field"
            raise MalformedRequest(f"the form has no file in a field named {FIELD!r}; it has {came}; {HOW_TO_SEND}")
        uploads = [Upload((file.filename or "")[:MAX_FILENAME_CHARACTERS], await file.read()) for file in files]
        for upload in uploads:
            if not upload.filename and b"\0" not in upload.content and len(upload.content) < MAX_FIELD_BYTES:
                raise MalformedRequest(f"the field {FIELD!r} holds a text, not a file; {HOW_TO_SEND}")
        return uploads
    finally:
        await form.close()


def decoded(charset: bytes, value: bytes) -> bytes:
    """A file name in UTF-8, out of RFC 8187's percent encoding."""
    name = unquote_to_bytes(value)
    return name.decode("latin-1").encode() if charset.lower() == b"iso-8859-1" else name
