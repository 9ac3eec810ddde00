"""The bytes of the uploaded images, out of a raw body or a multipart form, in memory and within limits."""

import functools
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deit.picture_header import Header, read_header
from serving.gateway.errors import MalformedRequest, UnsupportedType
from serving.gateway.parameters import Parameters

FIELD = "image"

MAX_FIELDS = 4
MAX_FIELD_BYTES = 4096

# A name comes back in the answer and goes nowhere else. Longer ones than a file system allows are cut.
MAX_FILENAME_CHARACTERS = 255

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")


@dataclass(frozen=True)
class Upload:
    """One image as it came; `filename` is the caller's word, empty for a raw body."""

    filename: str
    content: bytes

    @functools.cached_property
    def header(self) -> Header:
        return read_header(self.content)


class MemoryParser(MultiPartParser):
    """Starlette's parser, with three differences.

    No temporary file: the body is already limited, and a read-only disk must do. Names are UTF-8 whatever charset the
    request names (RFC 7578 section 5.1.2), among them codecs of Python that fail on some names, and Latin-1 where
    they are not. And it knows whether the form came to its end.
    """

    spool_max_size = 2**62
    is_complete = False

    @property
    def _charset(self) -> str:
        return "utf-8"

    @_charset.setter
    def _charset(self, value: str) -> None:
        """What the request names."""

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
        f"{FIELD!r} (curl -F {FIELD}=@photo.jpg), or the bytes of the image as image/jpeg, image/png, image/webp "
        "or application/octet-stream"
    )


async def _read_form(request: Request, max_images: int) -> list[Upload]:
    stream: AsyncGenerator[bytes, None] = request.stream()
    parser = MemoryParser(
        request.headers, stream, max_files=max_images, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequest(f"the multipart form cannot be read: {error.message}") from error
    try:
        if not parser.is_complete:
            raise MalformedRequest("the multipart form ends before its closing boundary; send it whole")
        if misplaced := form.keys() & Parameters.model_fields.keys():
            name = min(misplaced)
            raise MalformedRequest(f"{name} is a field of the form; write it into the address: /classify?{name}=…")
        files = [file for file in form.getlist(FIELD) if isinstance(file, UploadFile)]
        if not files:
            raise MalformedRequest(
                f"the form has no file in a field named {FIELD!r}; send it with: curl -F {FIELD}=@photo.jpg"
            )
        return [Upload((file.filename or "")[:MAX_FILENAME_CHARACTERS], await file.read()) for file in files]
    finally:
        await form.close()
