"""Costs counted from markers, and that counting itself costs little."""

import contextlib
import time

import pytest
from PIL import Image

from serving.gateway.decoding_cost import MAX_SCANS, MIN_PARTS_LIMIT, DecodingCost, decoding_cost
from serving.gateway.errors import ImageTooComplex, Problem, UndecodableImage
from serving.gateway.images import decode
from tests.conftest import encoded, photograph
from tests.serving.bombs import scan_bomb

MEBIBYTE = 2**20


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
    with pytest.raises(UndecodableImage):
        decode(repeated, 25_000_000)
    assert time.thread_time() - started < 0.5, "400 passes take seconds"


@pytest.mark.parametrize(
    ("scans", "megapixels", "is_refused"), [(64, 1, False), (65, 1, True), (32, 25, False), (33, 25, True)]
)
def test_scans_are_limited_by_number_and_by_pixels(scans, megapixels, is_refused):
    cost = DecodingCost(scans=scans, parts=10)
    assert bool(cost.objection(1000, pixels=megapixels * 10**6)) == is_refused


def test_as_many_scans_as_honest_files_have_pass():
    assert decode(scan_bomb(2000, scans=20), 25_000_000).image.size == (2000, 2000)


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
    with contextlib.suppress(Problem):  # restarts and stuffing in a scan are allowed
        decode(content, 25_000_000)
    # Pillow alone takes seconds for most of them. CPU time, since the machine may be busy.
    assert time.thread_time() - started < 0.5


@pytest.mark.usefixtures("pillow_warnings_as_served")
def test_a_scan_bomb_is_refused_in_under_a_tenth_of_a_second():
    content = scan_bomb(2000, scans=405)
    assert len(content) < 100_000
    started = time.thread_time()
    with pytest.raises(ImageTooComplex):
        decode(content, 25_000_000)
    assert time.thread_time() - started < 0.1


def test_the_limit_of_scans_is_above_any_honest_file():
    assert MAX_SCANS > 20
