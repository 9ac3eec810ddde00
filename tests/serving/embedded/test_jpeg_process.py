"""The decoder of JPEGs in Triton, on the CPU: its pixels are Pillow's, and it takes nothing that Pillow refuses."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from deit.errors import PictureError, ServingError
from deit.pictures import UPRIGHT, read_picture
from deit.preprocessing import Preprocessing, resize_and_crop
from deit.resize_matrices import resize_matrices
from export.resize_graph import resize_graph
from serving.embedded.jpeg_process import GRAPH, LIMITS, JpegDecoder, prove
from tests.conftest import encoded, photograph
from tests.deit.test_hostile_pictures import hostile_files

IMAGENET = Preprocessing(
    image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)

# A value that lies between two levels may be rounded the other way, in the first product and then in the second.
LARGEST_DIFFERENCE, RARE = 2, 2e-3


@pytest.fixture(scope="module")
def resize():
    session = onnxruntime.InferenceSession(GRAPH, providers=["CPUExecutionProvider"])

    def run(picture, orientation, preprocessing):
        first, second, first_goes_down, is_transposed = resize_matrices(*picture.size, orientation, preprocessing)
        inputs = {"first": first, "second": second, "first_goes_down": np.array(first_goes_down)}
        pixels = session.run(None, {"picture": np.asarray(picture), **inputs})[0]
        return pixels.transpose(1, 0, 2) if is_transposed else pixels

    return run


@pytest.fixture(scope="module")
def decoder():
    pytest.importorskip("nvidia.nvimgcodec", reason="needs nvidia-nvimgcodec-cu13, which `make` installs")
    return JpegDecoder(on_gpu=False)


def assert_same(pixels, exact):
    differences = np.abs(pixels.astype(int) - exact)
    assert differences.max() <= LARGEST_DIFFERENCE
    assert (differences > 0).mean() <= RARE


def test_the_graph_in_the_repository_is_the_one_that_export_writes():
    assert onnx.load(GRAPH) == resize_graph()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (320, 685)])
def test_two_products_resize_crop_and_turn_as_pillow_does(resize, size, orientation):
    picture = photograph(*size)
    upright = picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture
    assert_same(resize(picture, orientation, IMAGENET), resize_and_crop(upright, IMAGENET, exact=True))


@pytest.mark.parametrize("size", [(31, 40), (224, 224), (256, 256), (2000, 60), (60, 2000)])
@pytest.mark.parametrize("changes", [{}, {"crop_pct": 1.0, "image_size": 384}, {"crop_mode": "squash"}], ids=str)
def test_also_small_and_long_pictures_for_other_models(resize, size, changes):
    preprocessing, picture = replace(IMAGENET, **changes), photograph(*size)
    assert_same(resize(picture, 1, preprocessing), resize_and_crop(picture, preprocessing, exact=True))


@pytest.mark.parametrize(
    ("size", "changes"), [((500, 375), {"interpolation": "bilinear"}), ((40_000, 20), {})], ids=["filter", "strip"]
)
def test_what_pillow_resizes_in_another_way_has_no_matrices(size, changes):
    assert resize_matrices(*size, 1, replace(IMAGENET, **changes)) is None


def exact_pixels(content):
    """What `--decode exact` makes of it; None if it is refused."""
    with contextlib.suppress(PictureError):
        return resize_and_crop(read_picture(content, LIMITS).image, IMAGENET, exact=True)
    return None


def test_a_batch_of_all_kinds_gives_each_its_own_pixels(decoder):
    files = [encoded(photograph(300 + place, 200, place), subsampling=place % 3) for place in range(6)]
    files[2:2] = [encoded(photograph(90, 90), "PNG"), files[0][:-500]]
    found = decoder.pixels(files, IMAGENET)
    assert [place for place, pixels in enumerate(found) if pixels is None] == [2, 3]
    for content, pixels in zip(files, found, strict=True):
        if pixels is not None:
            assert_same(pixels, exact_pixels(content))


def test_photographs_are_decoded_to_the_pixels_of_pillow(decoder, photographs):
    found = decoder.pixels(photographs[:16], IMAGENET)
    for content, pixels in zip(photographs[:16], found, strict=True):
        assert Image.open(io.BytesIO(content)).mode == "L" or pixels is not None
        if pixels is not None:
            assert_same(pixels, exact_pixels(content))


@pytest.mark.usefixtures("pillow_warnings_as_served")
def test_it_takes_no_file_that_pillow_refuses(decoder, shared_data):
    taken = 0
    for name, content in hostile_files(shared_data):
        (pixels,) = decoder.pixels([content], IMAGENET)
        if pixels is not None:
            taken += 1
            exact = exact_pixels(content)
            assert exact is not None, name
            assert np.abs(pixels.astype(int) - exact).max() <= LARGEST_DIFFERENCE, name
    assert taken > 100


def test_a_decoder_with_other_pixels_is_not_used(decoder):
    prove(decoder)
    with pytest.raises(ServingError, match=r"levels of 255 away from Pillow's; up to 0\.5"):
        prove(JpegDecoder(on_gpu=False, interpolates_colours=False))
