"""The size in the header is what Pillow sees, or nothing; costs are counted from markers, for next to nothing."""

import contextlib
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from deit import picture_header
from deit.errors import PictureError
from deit.picture_header import HEADER_PARTS, MAX_SCANS, MIN_PARTS_LIMIT, DecodingCost, read_header
from deit.pictures import PictureLimits, read_picture
from tests.conftest import encoded, photograph
from tests.serving.bombs import scan_bomb

MEBIBYTE = 2**20
LIMITS = PictureLimits(max_pixels=25_000_000)
PICTURE = photograph(123, 45)
AVIF_START = b"\0\0\0\x14ftypavif\0\0\0\0avif"


def decoding_cost(content):
    return picture_header.decoding_cost(content, read_header(content))


def refusal(content):
    with pytest.raises(PictureError) as caught:
        read_picture(content, LIMITS)
    return caught.value.refusal


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + b"x" * 40_000}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM"}),
        ("AVIF", {}),
    ],
)
def test_the_declared_size_is_what_was_written(image_format, options):
    header = read_header(encoded(PICTURE, image_format, **options))
    assert (header.format, header.size, header.pixels) == (image_format, (123, 45), 123 * 45)


@given(
    st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8X", AVIF_START]),
    st.binary(max_size=100),
)
@example(b"\xff\xd8", b"\xff\x02")  # a segment that ends behind the end of the file
def test_nonsense_has_a_size_or_none_and_a_cost(signature, rest):
    found = read_header(signature + rest).pixels
    assert found is None or found >= 0
    assert decoding_cost(signature + rest).parts >= 0


def box(kind, contents):
    return (8 + len(contents)).to_bytes(4, "big") + kind + contents


def test_an_avif_sequence_counts_as_the_largest():
    """Its size stands in a track; what stands elsewhere may be anything."""
    frames = [photograph(64, 64, seed=seed) for seed in range(2)]
    content = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert read_header(content).size is None


def avif(*properties):
    """The boxes around the declared sizes, as far as they matter here."""
    meta = bytes(4) + box(b"hdlr", bytes(20)) + box(b"iprp", box(b"ipco", b"".join(properties)))
    return box(b"ftyp", b"mif1\0\0\0\0avif") + box(b"free", bytes(9)) + box(b"meta", meta)


def declared(width, height):
    return box(b"ispe", bytes(4) + width.to_bytes(4, "big") + height.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (avif(declared(10, 20), declared(4000, 3000), declared(160, 120)), (4000, 3000)),
        (avif(declared(10, 20)).replace(b"\0\0\0\x14ispe", b"\0\0\0\0ispe"), (10, 20)),  # to the end
        (avif(), (0, 0)),
        (avif(*[declared(1, 1)] * 300), None),
        (avif(b"\0\0\0\1ispe" + (28).to_bytes(8, "big") + declared(10, 20)[8:]), (10, 20)),  # a size of 64 bits
        (avif(b"\0\0\0\4ispe" + declared(10, 20)[8:]), (0, 0)),
    ],
)
def test_the_size_of_an_avif_is_the_largest_that_it_declares(content, size):
    assert read_header(content)[:2] == ("AVIF", size)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_of_a_torn_header_nothing_is_decoded(image_format):
    assert read_header(encoded(PICTURE, image_format)[:20]).pixels == 0


def test_a_header_of_many_parts_is_read_to_its_end_only_where_it_is_decoded():
    content = encoded(PICTURE)
    content = content[:2] + b"\xff\xfe\x00\x02" * 2 * HEADER_PARTS + content[2:]
    header = read_header(content)
    assert (header.size, header.first_scan) == (None, None)
    cost = decoding_cost(content)
    assert (cost.scans, cost.parts > 2 * HEADER_PARTS) == (1, True)
    assert read_picture(content, LIMITS).image.size == (123, 45)


def test_segments_behind_an_early_end_of_the_image_are_counted():
    """Pillow reads on from there."""
    assert refusal(b"\xff\xd8\xff\xd9" + b"\xff\xfe\x00\x02" * 100_000) == "image-too-complex"


def test_a_baseline_jpeg_has_one_scan():
    assert decoding_cost(encoded(photograph(300, 200))).scans == 1


def test_a_progressive_jpeg_has_the_scans_of_libjpeg():
    assert decoding_cost(encoded(photograph(300, 200), progressive=True)).scans == 10
    assert decoding_cost(encoded(photograph(300, 200).convert("L"), progressive=True)).scans == 6


def test_markers_inside_segments_and_after_the_end_are_not_counted():
    content = encoded(photograph(30, 20), comment=b"\xff\xda" * 1000)
    assert decoding_cost(content + b"\xff\xda\x00\x02" * 1000).scans == 1


def test_repeated_scans_are_counted():
    assert decoding_cost(scan_bomb(2000, scans=60)).scans == 60
    assert decoding_cost(scan_bomb(2000, scans=405)).scans > MAX_SCANS


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_scans_after_the_only_one_of_a_sequential_jpeg_are_damage_and_cost_nothing(mode):
    content = encoded(Image.new(mode, (2000, 2000), "gray"))
    at = content.rindex(b"\xff\xda")
    repeated = content[:at] + content[at:-2] * 400 + content[-2:]
    assert decoding_cost(repeated).scans == 1
    started = time.thread_time()
    assert refusal(repeated) == "undecodable-image"
    assert time.thread_time() - started < 0.5, "400 passes take seconds"


@pytest.mark.parametrize(
    ("scans", "megapixels", "is_refused"), [(64, 1, False), (65, 1, True), (32, 25, False), (33, 25, True)]
)
def test_scans_are_limited_by_number_and_by_pixels(scans, megapixels, is_refused):
    cost = DecodingCost(scans=scans, parts=10)
    assert bool(cost.objection(1000, pixels=megapixels * 10**6)) == is_refused


def test_as_many_scans_as_honest_files_have_pass():
    assert read_picture(scan_bomb(2000, scans=20), LIMITS).image.size == (2000, 2000)


def test_parts_are_limited_by_the_size_of_the_file():
    assert DecodingCost(scans=1, parts=MIN_PARTS_LIMIT + 1).objection(10_000, pixels=1)
    assert DecodingCost(scans=1, parts=MIN_PARTS_LIMIT + 1).objection(10 * MEBIBYTE, pixels=1) is None


def test_a_png_has_a_part_a_chunk():
    content = encoded(Image.new("L", (8, 8)), "PNG")
    assert decoding_cost(content).parts == 3  # IHDR, IDAT, IEND


def test_a_large_photograph_is_within_the_limits():
    content = encoded(photograph(4000, 3000), quality=95, progressive=True)
    assert decoding_cost(content).objection(len(content), pixels=12 * 10**6) is None


PNG_START = encoded(Image.new("L", (8, 8)), "PNG")[:33]
WITHOUT_SCAN = encoded(Image.new("L", (8, 8)))
JPEG_START = WITHOUT_SCAN[: WITHOUT_SCAN.index(b"\xff\xda") + 10]

BOMBS = {
    "fill bytes": b"\xff\xd8" + b"\xff" * 10 * MEBIBYTE,
    "zero padding": b"\xff\xd8" + b"\xff\x00" * 5 * MEBIBYTE,
    "comments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * (10 * MEBIBYTE // 4),
    "restart markers": b"\xff\xd8" + b"\xff\xd0" * 5 * MEBIBYTE,
    "restart markers in a scan": JPEG_START + b"\xff\xd0" * 5 * MEBIBYTE,
    "stuffing in a scan": JPEG_START + b"\xff\x00" * 5 * MEBIBYTE,
    "PNG chunks": PNG_START + b"\0\0\0\0tEXt\0\0\0\0" * (10 * MEBIBYTE // 12),
    "scans": b"\xff\xd8" + b"\xff\xda\x00\x02" * (10 * MEBIBYTE // 4),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.usefixtures("pillow_warnings_as_served")
def test_ten_mebibytes_of_markers_are_decided_on_soon(content):
    started = time.thread_time()
    with contextlib.suppress(PictureError):  # restarts and stuffing in a scan are allowed
        read_picture(content, LIMITS)
    # Pillow alone takes seconds for most of them. CPU time, since the machine may be busy.
    assert time.thread_time() - started < 0.5


@pytest.mark.usefixtures("pillow_warnings_as_served")
def test_a_scan_bomb_is_refused_in_under_a_tenth_of_a_second():
    content = scan_bomb(2000, scans=405)
    assert len(content) < 100_000
    started = time.thread_time()
    assert refusal(content) == "image-too-complex"
    assert time.thread_time() - started < 0.1


def test_the_limit_of_scans_is_above_any_honest_file():
    assert MAX_SCANS > 20
