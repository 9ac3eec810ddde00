"""What `deit serve` and `deit triton` share: the model repository, and the embedded Triton."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from deit.options import named, wrong
from serving.settings.panels import MODELS, TRITON


@dataclass(frozen=True, kw_only=True)
class TritonPorts:
    """Where the embedded Triton listens."""

    grpc: Annotated[
        int,
        Option(
            "--triton-grpc-port",
            help="gRPC port of the embedded Triton; 0 picks a free one, as `deit serve` does if 8001 is taken. Set it "
            "so that other programs can reach Triton.",
            rich_help_panel=TRITON,
        ),
    ] = 8001
    metrics: Annotated[
        int,
        Option(
            "--triton-metrics-port",
            help="Metrics port of the embedded Triton; 0 picks a free one, as `deit serve` does if 8002 is taken. "
            "Set it for Prometheus.",
            rich_help_panel=TRITON,
        ),
    ] = 8002
    http: Annotated[
        int | None,
        Option(
            "--triton-http-port",
            help="HTTP port of the embedded Triton, only on loopback. Open it for perf_analyzer or a health check; "
            "it is closed by default.",
            rich_help_panel=TRITON,
        ),
    ] = None

    def by_flag(self) -> dict[str, int]:
        flags = {"--triton-grpc-port": self.grpc, "--triton-metrics-port": self.metrics}
        return flags if self.http is None else {**flags, "--triton-http-port": self.http}

    def __post_init__(self) -> None:
        ports = self.by_flag()
        for flag, port in ports.items():
            if not 0 <= port <= 65535:
                raise wrong(flag, port, "choose a port from 1 to 65535, or 0 for a free one")
        chosen = [port for port in ports.values() if port]
        if len(set(chosen)) < len(chosen):
            listed = ", ".join(f"{named(flag)} is {port}" for flag, port in ports.items())
            raise ValueError(f"{listed}: two services of Triton cannot share a port; give each its own")


DecodingDevice = Literal["gpu", "cpu"]


@dataclass(frozen=True, kw_only=True)
class TritonSettings:
    """The options about models and Triton that `deit serve` and `deit triton` share."""

    model_repository: Annotated[
        Path,
        Option(help="Folder that `deit export` publishes models in. Set it to serve your own.", rich_help_panel=MODELS),
    ] = Path("model_repository")
    start_timeout_s: Annotated[
        float,
        Option(
            help="Seconds that Triton may take to load all models. Raise it if Triton builds TensorRT engines.",
            rich_help_panel=TRITON,
        ),
    ] = 120.0
    decodes_on: Annotated[
        DecodingDevice | None,
        Option(
            "--triton-decode",
            help="Decode plain JPEGs in the embedded Triton; unset, the gateway's processes decode everything. Choose "
            "gpu if decoding keeps the cores busy while the GPU waits; cpu is for tests.",
            rich_help_panel=TRITON,
        ),
    ] = None
    ports: TritonPorts = TritonPorts()

    def __post_init__(self) -> None:
        if not 0 < self.start_timeout_s < math.inf:
            raise wrong("--start-timeout-s", self.start_timeout_s, "give seconds above 0; the default is 120")
