"""Names the kind of a file that cannot be read as a picture, in words for its sender."""

from deit.avif_header import has_brand

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

START_OF_SCAN = 0xDA
JPEG_LS = 0xF7
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
HIERARCHICAL = (0xC5, 0xC6, 0xCD, 0xCE)
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), JPEG_LS)
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))

# Segments of a JPEG's header that are looked at; each takes a few instructions.
MOST_SEGMENTS = 4096


def file_kind(content: bytes) -> str | None:
    """What a file is that is not a supported image, by its first bytes; None if unknown."""
    if content[4:8] == b"ftyp":
        return HEIC if has_brand(content, HEIC_BRANDS) else "a video or another file of the MP4 family"
    beginning = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((kind for start, kind in BY_BEGINNING.items() if beginning.startswith(start)), None)


def rare_jpeg(content: bytes) -> str | None:
    """The kind of a JPEG that few programs can read, by its frame; None for a common one."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        position = content.find(b"\xff", position)
        marker = content[position + 1 : position + 2]
        if position < 0 or not marker or marker[0] == START_OF_SCAN:
            return None
        if marker[0] in FRAMES:  # length (2 bytes), bits
            return _kind_of_frame(marker[0], content[position + 4] if position + 4 < len(content) else 8)
        position += 1 if marker[0] in (0x00, 0xFF) else 2
        if marker[0] not in (0x00, 0xFF, *WITHOUT_LENGTH):
            position += max(2, int.from_bytes(content[position : position + 2], "big"))
    return None


def _kind_of_frame(marker: int, bits: int) -> str | None:
    if marker == JPEG_LS:
        return "a JPEG-LS"
    if marker in LOSSLESS:
        return f"a lossless JPEG of {bits} bits a channel"
    if marker in HIERARCHICAL:
        return "a hierarchical JPEG"
    return None if bits == 8 else f"a JPEG of {bits} bits a channel"
