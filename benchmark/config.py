"""The options of each command of `deit benchmark`, as fields of frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typer import Option

from deit.options import MODEL_SOURCES

RESULTS = Path("runs/benchmark")

PerfAnalyzerOption = Annotated[
    Path, Option(help="Environment made by `make perf-analyzer`.", envvar="DEIT_PERF_ANALYZER")
]
ResultsOption = Annotated[Path, Option(help="Folder for the result files, one per day and machine.")]
RoundsOption = Annotated[
    int,
    Option(
        min=1,
        help="Rounds of all measurements; the report shows median and spread. Raise it on a shared machine.",
    ),
]
ImagesOption = Annotated[
    Path,
    Option(
        help="Photographs: an image file, a folder of them, a parquet or tar file, or a data set with a split test."
    ),
]

WAYS = ("pytorch", "onnx", "triton", "http")

OURS = "deit serve"
PEERS = ("fastapi", "litserve", "bentoml", "ray", "mosec")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The server to measure: a running one, or one started for the measurement."""

    model: Annotated[str, Option(help="Name of the model.")]
    serve: Annotated[
        Path | None,
        Option(
            help="Start `deit serve` with this model repository for the measurement. Default: measure a running server."
        ),
    ] = None
    url: Annotated[str, Option(help="Address of the gateway, if not started by --serve.")] = "http://127.0.0.1:8080"
    triton_url: Annotated[str, Option(help="gRPC address of Triton, if not started by --serve.")] = "127.0.0.1:8001"


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig(Served):
    data: Annotated[
        Path, Option(help="Data set with a split test (or val), a parquet or tar file, or ImageNet V2's folders.")
    ]
    way: Annotated[
        list[str], Option(help="Ways to run the model: onnx, triton, http, and pytorch with --checkpoint. Repeatable.")
    ] = field(default_factory=lambda: ["onnx", "triton", "http"])
    variant: Annotated[
        list[str],
        Option(help="Another model of the repository to compare with, such as its int8 variant. Repeatable."),
    ] = field(default_factory=list)
    model_repository: Annotated[Path, Option(help="Model repository, for --way onnx.")] = Path("model_repository")
    checkpoint: Annotated[str | None, Option(help=f"Model for --way pytorch: {MODEL_SOURCES}.")] = None
    architecture: Annotated[
        str | None, Option(help="timm's name of the architecture, for a weights file that does not give it.")
    ] = None
    real: Annotated[bool, Option("--real", help="Also evaluate ImageNet's validation images with ReaL labels.")] = False
    count: Annotated[int | None, Option(min=1, help="Evaluate only the first N images. Default: all.")] = None
    page: Annotated[
        Path | None,
        Option(help="Write every wrong prediction with its image to this HTML file, which grows with their number."),
    ] = None
    results: ResultsOption = RESULTS

    def __post_init__(self) -> None:
        if unknown := set(self.way) - set(WAYS):
            raise ValueError(f"--way {', '.join(sorted(unknown))}: known are {', '.join(WAYS)}")
        if ("pytorch" in self.way) != (self.checkpoint is not None):
            raise ValueError("--way pytorch and --checkpoint go together")
        if not self.way:
            raise ValueError("--way: give at least one")


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig(Served):
    batch_size: Annotated[list[int], Option(help="Images per request. Repeatable.")] = field(
        default_factory=lambda: [1, 8]
    )
    concurrency: Annotated[list[int], Option(help="Requests in flight. Repeatable.")] = field(
        default_factory=lambda: [1, 8]
    )
    requests: Annotated[int, Option(min=50, help="Requests per measured window. Raise it if windows disagree.")] = 200
    rounds: RoundsOption = 1
    pytorch: Annotated[
        list[str],
        Option(
            help="A model to measure in PyTorch too, as the paper does: a checkpoint folder or timm name. Repeatable."
        ),
    ] = field(default_factory=list)
    device: Annotated[str, Option(help="torch device, such as cuda:1. auto: a GPU if there is one.")] = "auto"
    perf_analyzer: PerfAnalyzerOption = Path(".perf-analyzer")
    csv: Annotated[Path, Option(help="Folder for perf_analyzer's CSV files.")] = Path("runs/throughput")
    results: ResultsOption = RESULTS


@dataclass(frozen=True, kw_only=True)
class HttpConfig(Served):
    images: ImagesOption
    concurrency: Annotated[list[int], Option(help="Requests in flight, closed loop. Repeatable.")] = field(
        default_factory=lambda: [1, 8, 32]
    )
    load: Annotated[
        list[float],
        Option(help="Open loop: share of the best closed-loop rate to offer, with random arrivals. Repeatable."),
    ] = field(default_factory=lambda: [0.5, 0.7, 0.9])
    seconds: Annotated[float, Option(min=1, help="Seconds of each measured window, after a warm-up of two.")] = 10
    rounds: RoundsOption = 3
    raw: Annotated[bool, Option("--raw", help="Send the image as the body, not as a form.")] = False
    api_key: Annotated[str | None, Option(envvar="DEIT_API_KEY", help="API key, for a gateway that needs one.")] = None
    engine: Annotated[
        bool,
        Option(
            "--engine/--no-engine",
            help="Also measure Triton alone, by perf_analyzer, to report the gateway's rate as a share of it.",
        ),
    ] = True
    perf_analyzer: PerfAnalyzerOption = Path(".perf-analyzer")
    results: ResultsOption = RESULTS

    def __post_init__(self) -> None:
        if any(not 0 < share < 2 for share in self.load):
            raise ValueError("--load: a share of the best rate, between 0 and 2")


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    images: ImagesOption
    model: Annotated[str, Option(help="Name of the fp32 model that every server serves.")]
    best_model: Annotated[
        str | None,
        Option(
            help="Also compare this variant of the model, which passed the gate: in our server, and in the peers "
            "if ONNX Runtime can run it."
        ),
    ] = None
    model_repository: Annotated[Path, Option(help="Model repository.")] = Path("model_repository")
    peer: Annotated[list[str], Option(help="A peer to compare with. Default: all. Repeatable.")] = field(
        default_factory=lambda: list(PEERS)
    )
    concurrency: Annotated[list[int], Option(help="Requests in flight. Repeatable.")] = field(
        default_factory=lambda: [1, 8, 32]
    )
    seconds: Annotated[float, Option(min=1, help="Seconds of each measured window, after a warm-up of two.")] = 10
    rounds: RoundsOption = 3
    pairs: Annotated[
        int,
        Option(
            min=0,
            help="Also measure our server and each peer side by side, in this many alternating windows, and report "
            "the ratio: it resolves smaller differences on a machine whose speed varies.",
        ),
    ] = 0
    tune: Annotated[
        bool,
        Option(
            "--tune/--no-tune",
            help="First try two settings of each peer at the highest concurrency, and measure the better one.",
        ),
    ] = True
    environments: Annotated[Path, Option(help="Folder of the peers' environments, created if missing.")] = Path(
        ".peers"
    )
    results: ResultsOption = RESULTS

    def __post_init__(self) -> None:
        if unknown := set(self.peer) - set(PEERS):
            raise ValueError(f"--peer {', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    results: Annotated[Path, Option(help="Folder of the result files.")] = RESULTS
    output: Annotated[Path, Option(help="Folder to write report.md and report.html to.")] = RESULTS
    machine: Annotated[
        str | None, Option(help="Machine to report, as the results name it. Default: the one measured last.")
    ] = None
    document: Annotated[
        list[Path],
        Option(help="Document whose measured blocks to update, such as docs/benchmark.md. Repeatable."),
    ] = field(default_factory=list)
    images: Annotated[Path, Option(help="Folder for the images in the documents.")] = Path("docs/images")
