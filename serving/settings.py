"""What the user of `deit serve` and `deit triton` may set, validated once."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deit.log import LogFormat

# Pillow warns of a decompression bomb above this many pixels (PIL.Image.MAX_IMAGE_PIXELS), and the gateway takes the
# warning as an error, so a larger limit would not hold.
PILLOW_MAX_IMAGE_PIXELS = 89_478_485


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost, and all together.

    Attributes:
        max_body_bytes: of the request body, before anything is parsed.
        max_image_pixels: width x height, checked in the header before decoding.
        max_images: in one form.
        request_timeout_s: from the first byte of the body to the answer.
        max_wait_s: how long an image may take, from its arrival to its answer, before further requests are refused.
        max_in_flight_bytes: of all bodies together.
        max_in_flight_pixels: of all images that wait or are decoded, above which no large one is let in.
    """

    max_body_bytes: int = 10 * 2**20
    max_image_pixels: int = 25_000_000
    max_images: int = 64
    request_timeout_s: float = 10.0
    max_wait_s: float = 0.5
    max_in_flight_bytes: int = 256 * 2**20
    max_in_flight_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if self.max_body_bytes < 1:
            raise ValueError(f"--max-body-bytes {self.max_body_bytes}: must be at least 1; the default is 10485760")
        if not 1 <= self.max_image_pixels <= PILLOW_MAX_IMAGE_PIXELS:
            raise ValueError(
                f"--max-image-pixels {self.max_image_pixels}: must be between 1 and {PILLOW_MAX_IMAGE_PIXELS}, "
                "above which Pillow refuses an image as a decompression bomb"
            )
        if self.max_images < 1:
            raise ValueError(f"--max-images {self.max_images}: must be at least 1; the default is 64")
        if not 0 < self.request_timeout_s < float("inf"):
            raise ValueError(f"--request-timeout-s {self.request_timeout_s}: must be above 0; the default is 10")
        if not 0 < self.max_wait_s < float("inf"):
            raise ValueError(f"--max-wait-s {self.max_wait_s}: must be above 0; the default is 0.5")
        for flag, value in (
            ("--max-in-flight-bytes", self.max_in_flight_bytes),
            ("--max-in-flight-pixels", self.max_in_flight_pixels),
        ):
            if value < 1:
                raise ValueError(f"{flag} {value}: must be at least 1")


def processes_by_cores() -> int:
    """One more than there are cores: large images keep at most as many busy as there are cores."""
    return len(os.sched_getaffinity(0)) + 1


DecodingMode = Literal["exact", "fast"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How images are decoded.

    Attributes:
        processes: that decode, each one image at a time.
        mode: exact decodes every pixel; fast lets libjpeg decode large JPEGs at a fraction of their size, and
            resizes only what the crop keeps.
    """

    processes: int = field(default_factory=processes_by_cores)
    mode: DecodingMode = "exact"

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= 256:
            raise ValueError(f"--decoders {self.processes}: must be from 1 to 256; leave it out for the cores and one")


@dataclass(frozen=True, kw_only=True)
class TritonPorts:
    """Where the embedded Triton listens, on loopback. `http` is None unless perf_analyzer needs it."""

    grpc: int = 8001
    metrics: int = 8002
    http: int | None = None

    def by_flag(self) -> dict[str, int]:
        flags = {"--triton-grpc-port": self.grpc, "--triton-metrics-port": self.metrics}
        return flags if self.http is None else {**flags, "--triton-http-port": self.http}

    def __post_init__(self) -> None:
        ports = self.by_flag()
        for flag, port in ports.items():
            if not 1 <= port <= 65535:
                raise ValueError(f"{flag} {port}: must be a port from 1 to 65535")
        if len(set(ports.values())) < len(ports):
            listed = ", ".join(f"{flag} {port}" for flag, port in ports.items())
            raise ValueError(f"{listed}: two services of Triton cannot share a port; give each its own")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The whole of `deit serve`.

    Attributes:
        model_repository: the folder Triton loads; without meaning when `triton_url` is set.
        api_keys_file: SHA-256 and name of each key that may ask.
        insecure: listen beyond this machine without keys.
        rate_limit: requests a second for each key.
        cors_origins: of pages elsewhere that may ask from a browser.
        triton_url: HOST:PORT of a Triton's gRPC service elsewhere, or None to start the embedded one.
        default_model: answers requests that name no model; None takes the first by name.
        metrics_port: for /metrics alone, without keys; None shows them on `port`.
        log_requests: a line for each request, but not for refusals under load.
        start_timeout_s: until Triton must have loaded every model.
        allow_reload: take commands of this user to load other models while serving.
        triton_restarts: how often in a row the embedded Triton is started again; 0 ends the server instead.
    """

    model_repository: Path
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys_file: Path | None = None
    insecure: bool = False
    rate_limit: float | None = None
    cors_origins: tuple[str, ...] = ()
    triton_url: str | None = None
    triton_ports: TritonPorts = TritonPorts()
    default_model: str | None = None
    start_timeout_s: float = 120.0
    allow_reload: bool = False
    triton_restarts: int = 5
    limits: Limits = Limits()
    decoding: Decoding = field(default_factory=Decoding)
    metrics_port: int | None = None
    log_requests: bool = True
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: must be a port from 1 to 65535, or 0 for any free one")
        if self.metrics_port is not None and not 1 <= self.metrics_port <= 65535:
            raise ValueError(f"--metrics-port {self.metrics_port}: must be a port from 1 to 65535")
        if self.metrics_port is not None and self.metrics_port == self.port:
            raise ValueError(f"--metrics-port {self.metrics_port} is also --port; leave it out to have /metrics there")
        if self.rate_limit is not None and not 0 < self.rate_limit < float("inf"):
            raise ValueError(f"--rate-limit {self.rate_limit}: must be above 0, in requests a second")
        for origin in self.cors_origins:
            if not re.fullmatch(r"https?://[^\s/?#*]+", origin):
                raise ValueError(
                    f"--cors-origins {origin!r}: must be the origin of a page, such as https://app.example.org, "
                    "without a path and without *"
                )
        if self.triton_url is not None:
            if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}", self.triton_url):
                raise ValueError(
                    f"--triton-url {self.triton_url!r}: must be HOST:PORT of Triton's gRPC service, "
                    "without http://, such as triton:8001"
                )
            if self.allow_reload:
                raise ValueError(
                    "--allow-reload belongs to the embedded Triton; one elsewhere is told to load models there"
                )
            if self.triton_ports.http is not None:
                raise ValueError(
                    "--triton-http belongs to the embedded Triton, and --triton-url uses another one: drop either"
                )
        elif self.port in self.triton_ports.by_flag().values():
            raise ValueError(f"--port {self.port} is also a port of the embedded Triton; choose another for either")
        if self.triton_restarts < 0:
            raise ValueError(f"--triton-restarts {self.triton_restarts}: must be 0 or more; the default is 5")
        if self.start_timeout_s <= 0:
            raise ValueError(f"--start-timeout-s {self.start_timeout_s}: must be above 0; the default is 120")


@dataclass(frozen=True, kw_only=True)
class StandaloneSettings:
    """The whole of `deit triton`.

    Attributes:
        host: IPv4 address of gRPC and metrics. Triton's HTTP port, when open, stays on loopback.
        insecure: `host` may be beyond this machine.
    """

    model_repository: Path
    host: str = "127.0.0.1"
    ports: TritonPorts = TritonPorts()
    insecure: bool = False
    start_timeout_s: float = 120.0
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        try:
            is_loopback = ipaddress.IPv4Address(self.host).is_loopback
        except ValueError as error:
            raise ValueError(f"--host {self.host!r}: must be an IPv4 address, such as 127.0.0.1 or 0.0.0.0") from error
        if not is_loopback and not self.insecure:
            raise ValueError(
                f"--host {self.host} admits other machines, and Triton asks nobody for a key: "
                "say --insecure where the network lets only the gateway through"
            )
        if self.start_timeout_s <= 0:
            raise ValueError(f"--start-timeout-s {self.start_timeout_s}: must be above 0; the default is 120")
