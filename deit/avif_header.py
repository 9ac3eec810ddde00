"""Reads the boxes of an AVIF file before anything is decoded (ISO/IEC 14496-12 and 23008-12, AV1 Image File Format)."""

from collections.abc import Iterator

BRANDS = (b"avif", b"avis")

# An encoder writes a few dozen in all; for files with more, the decoder finds out the size.
MOST_BOXES = 256


def has_brand(content: bytes, brands: tuple[bytes, ...]) -> bool:
    """Whether the file type box at the beginning of the file holds one of these brands, anywhere in it."""
    kind, start, end = next(boxes(content, 0, len(content)), (b"", 0, 0))
    return kind == b"ftyp" and any(content.find(brand, start, end) >= 0 for brand in brands)


def is_avif(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and has_brand(content, BRANDS)


def avif_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of the largest declared image, such as a grid; None if there are too many boxes to read.

    The others are thumbnails, transparency and parts of a grid. (0, 0) if none is declared; such a file is not decoded.
    None also for sequences, which declare their size elsewhere.
    """
    if has_brand(content, (b"avis",)) or any(kind == b"moov" for kind, _, _ in boxes(content, 0, len(content))):
        return None
    sizes = []
    count = 0
    places = [(b"meta", 0, len(content))]
    # the box to look for within each, and the bytes before its first box
    inside = {b"meta": (b"iprp", 4), b"iprp": (b"ipco", 0), b"ipco": (b"ispe", 0)}
    while places:
        wanted, start, end = places.pop()
        for kind, box_start, box_end in boxes(content, start, end):
            count += 1
            if count > MOST_BOXES:
                return None
            if kind != wanted:
                continue
            if kind == b"ispe":  # version and flags, width, height
                values = content[box_start + 4 : min(box_end, box_start + 12)]
                sizes.append((int.from_bytes(values[:4], "big"), int.from_bytes(values[4:], "big")))
            else:
                below, skipped = inside[kind]
                places.append((below, box_start + skipped, box_end))
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the contents of each box."""
    while start + 8 <= end:
        size, kind, header = int.from_bytes(content[start : start + 4], "big"), content[start + 4 : start + 8], 8
        if size == 1:
            size, header = int.from_bytes(content[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else min(end, start + size)  # what there is of it, in a truncated file
        if 0 < size < header:
            return
        yield kind, start + header, stop
        start = stop
