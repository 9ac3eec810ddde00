"""The bytes of the uploaded image, out of a raw body or a multipart form, in memory and within limits."""

from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.gateway.errors import MalformedRequest, UnsupportedType

FIELD = "image"

MAX_FIELDS = 4
MAX_FIELD_BYTES = 4096

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")


class MemoryParser(MultiPartParser):
    """Starlette's parser, without the temporary file: the body is already limited, and a read-only disk must do."""

    spool_max_size = 2**62


async def read_upload(request: Request) -> bytes:
    """The image's bytes, not empty.

    Raises:
        MalformedRequest, UnsupportedType
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedType("the body is compressed; send the image as it is, without Content-Encoding")
    content_type = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        content = await _read_form(request)
    elif content_type == "application/octet-stream" or content_type.startswith("image/"):
        content = await request.body()
    else:
        raise UnsupportedType(
            f"the content type {content_type[:100]!r} cannot hold an image; send multipart/form-data with a file field "
            f"{FIELD!r} (curl -F {FIELD}=@photo.jpg), or the bytes of the image as image/jpeg, image/png, image/webp "
            "or application/octet-stream"
        )
    if not content:
        raise MalformedRequest("the body holds no bytes; send an image in JPEG, PNG or WebP")
    return content


async def _read_form(request: Request) -> bytes:
    stream: AsyncGenerator[bytes, None] = request.stream()
    parser = MemoryParser(request.headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequest(f"the multipart form cannot be read: {error.message}") from error
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise MalformedRequest(
                f"the form has no file in a field named {FIELD!r}; send it with: curl -F {FIELD}=@photo.jpg"
            )
        return await file.read()
    finally:
        await form.close()
