"""Limits of the gateway."""

import math
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from deit.options import wrong
from serving.settings.panels import LIMITS

LARGEST_IMAGE_PIXELS = 400_000_000
"""Twice the pixels of the largest cameras. A decoder may need 32 bytes for each."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on one request, and on all requests together."""

    max_body_bytes: Annotated[
        int,
        Option(
            help="Largest request body in bytes. Raise it for larger photographs; each request may take this much "
            "memory.",
            rich_help_panel=LIMITS,
        ),
    ] = 10 * 2**20
    max_image_pixels: Annotated[
        int,
        Option(
            help="Largest width x height of an image; with --decode fast, single-scan JPEGs may have eight times as "
            "many pixels. Raise it for larger images; decoding takes up to 32 bytes per pixel.",
            rich_help_panel=LIMITS,
        ),
    ] = 25_000_000
    max_images: Annotated[
        int,
        Option(
            help="Maximum number of images in one request. Raise it, and --max-body-bytes, for large batches of small "
            "images.",
            rich_help_panel=LIMITS,
        ),
    ] = 64
    request_timeout_s: Annotated[
        float,
        Option(
            help="Seconds from the first byte of a request to its response; beyond it, 504. Raise it for slow uploads, "
            "lower it if callers give up sooner.",
            rich_help_panel=LIMITS,
        ),
    ] = 10.0
    max_wait_s: Annotated[
        float,
        Option(
            help="Longest expected time in seconds from an image's arrival to its result; beyond it, new requests get "
            "429. Raise it if callers would rather wait.",
            rich_help_panel=LIMITS,
        ),
    ] = 0.5
    max_in_flight_bytes: Annotated[
        int,
        Option(
            help="Total bytes of request bodies in memory; beyond it, 429. Lower it if memory is short.",
            rich_help_panel=LIMITS,
        ),
    ] = 256 * 2**20
    max_in_flight_pixels: Annotated[
        int,
        Option(
            help="Total pixels of all images that wait or are being decoded; beyond it, large images get 429. Raise it "
            "if the machine has many cores.",
            rich_help_panel=LIMITS,
        ),
    ] = 100_000_000

    def __post_init__(self) -> None:
        for flag, count, default in (
            ("--max-body-bytes", self.max_body_bytes, Limits.max_body_bytes),
            ("--max-images", self.max_images, Limits.max_images),
            ("--max-in-flight-bytes", self.max_in_flight_bytes, Limits.max_in_flight_bytes),
            ("--max-in-flight-pixels", self.max_in_flight_pixels, Limits.max_in_flight_pixels),
        ):
            if count < 1:
                raise wrong(flag, count, f"give at least 1; the default is {default}")
        for flag, seconds, usual in (
            ("--request-timeout-s", self.request_timeout_s, Limits.request_timeout_s),
            ("--max-wait-s", self.max_wait_s, Limits.max_wait_s),
        ):
            if not 0 < seconds < math.inf:
                raise wrong(flag, seconds, f"give seconds above 0; the default is {usual:g}")
        if not 1 <= self.max_image_pixels <= LARGEST_IMAGE_PIXELS:
            raise wrong(
                "--max-image-pixels",
                self.max_image_pixels,
                f"give 1 to {LARGEST_IMAGE_PIXELS}; with --decode fast JPEGs may have eight times as many pixels",
            )
