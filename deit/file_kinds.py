"""Names the format of a file that cannot be read as an image, for the error that its sender sees."""

from deit.avif_header import has_brand
from deit.picture_header import FRAME_HEADERS, JPEG_SIGNATURE, START_OF_SCAN, after_marker, next_marker

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

HEIC = (
    "a HEIC picture, as iPhones take them; send it as JPEG (iPhone: Settings, Camera, Formats, Most Compatible; or let "
    "the app convert it)"
)

BY_BEGINNING = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF, or a camera's raw file",
    b"MM\0*": "a TIFF, or a camera's raw file",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"<svg": "an SVG",
    b"<": "an XML or HTML text",
    b"{": "a JSON text",
    b"data:": "a data URL; send the bytes, or JSON to /hf",
    b"/9j/": "a JPEG in base64; send the bytes, or JSON to /hf",
    b"iVBORw0K": "a PNG in base64; send the bytes, or JSON to /hf",
}

JPEG_LS = 0xF7
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
HIERARCHICAL = (0xC5, 0xC6, 0xCD, 0xCE)

# Segments of a JPEG's header that are looked at; each takes a few instructions.
MOST_SEGMENTS = 4096


def file_kind(content: bytes) -> str | None:
    """The format of a file that is not a supported image, by its first bytes; None if unknown."""
    if content[4:8] == b"ftyp":
        return HEIC if has_brand(content, HEIC_BRANDS) else "a video or another file of the MP4 family"
    beginning = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((kind for start, kind in BY_BEGINNING.items() if beginning.startswith(start)), None)


def rare_jpeg(content: bytes) -> str | None:
    """The kind of a JPEG that few programs can read, by its frame; None for a common one."""
    position = len(JPEG_SIGNATURE)
    for _ in range(MOST_SEGMENTS):
        at = next_marker(content, position, len(content))
        if at + 1 >= len(content) or content[at + 1] == START_OF_SCAN:
            return None
        if content[at + 1] in (*FRAME_HEADERS, JPEG_LS):  # length (2 bytes), bits
            return _kind_of_frame(content[at + 1], content[at + 4] if at + 4 < len(content) else 8)
        position = after_marker(content, at)
    return None


def _kind_of_frame(marker: int, bits: int) -> str | None:
    if marker == JPEG_LS:
        return "a JPEG-LS"
    if marker in LOSSLESS:
        return f"a lossless JPEG of {bits} bits a channel"
    if marker in HIERARCHICAL:
        return "a hierarchical JPEG"
    return None if bits == 8 else f"a JPEG of {bits} bits a channel"
