"""The size in the header is what Pillow sees, or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.declared_size import declared_pixels
from tests.conftest import encoded, photograph

PICTURE = photograph(123, 45)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + b"x" * 40_000}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM"}),
    ],
)
def test_it_reads_what_was_written(image_format, options):
    assert declared_pixels(encoded(PICTURE, image_format, **options)) == 123 * 45


@given(
    st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8X"]),
    st.binary(max_size=100),
)
def test_nonsense_is_a_number_or_nothing(signature, rest):
    found = declared_pixels(signature + rest)
    assert found is None or found >= 0


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_of_a_torn_header_nothing_is_decoded(image_format):
    content = encoded(PICTURE, image_format)
    assert declared_pixels(content[:20]) == 0
