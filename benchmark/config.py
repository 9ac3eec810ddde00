"""What each command of `deit benchmark` may be told: frozen dataclasses whose fields are its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typer import Option

RESULTS = Path("runs/benchmark")

PerfAnalyzerOption = Annotated[
    Path, Option(help="Environment that `make perf-analyzer` made.", envvar="DEIT_PERF_ANALYZER")
]
ResultsOption = Annotated[Path, Option(help="Folder whose file of today and this machine gets the measurements.")]
RoundsOption = Annotated[
    int, Option(min=1, help="How often everything is measured, in turns; the report tells the median and the spread.")
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
    """The server to measure: one that runs, or one that is started for it."""

    model: Annotated[str, Option(help="Name of the model.")]
    serve: Annotated[
        Path | None,
        Option(help="Start `deit serve` with this model repository for the measurement and stop it afterwards."),
    ] = None
    url: Annotated[str, Option(help="The gateway's address, without --serve.")] = "http://127.0.0.1:8080"
    triton_url: Annotated[str, Option(help="Triton's gRPC address, without --serve.")] = "127.0.0.1:8001"


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig(Served):
    """What to judge, on what, and through which ways."""

    data: Annotated[
        Path, Option(help="Data set with a split test (or val), a parquet or tar file, or ImageNet V2's folders.")
    ]
    way: Annotated[
        list[str], Option(help="How the model is asked: onnx, triton, http, and pytorch with --checkpoint. Repeatable.")
    ] = field(default_factory=lambda: ["onnx", "triton", "http"])
    variant: Annotated[
        list[str],
        Option(help="Other models of the repository to compare it with, such as its int8 variant. Repeatable."),
    ] = field(default_factory=list)
    model_repository: Annotated[Path, Option(help="Folder of the models, for the way onnx.")] = Path("model_repository")
    checkpoint: Annotated[
        Path | None, Option(help="Checkpoint folder, or a weights file with --architecture, for the way pytorch.")
    ] = None
    architecture: Annotated[str | None, Option(help="timm's name of the architecture of a weights file.")] = None
    real: Annotated[bool, Option("--real", help="Judge ImageNet's validation images by the ReaL labels as well.")] = (
        False
    )
    count: Annotated[int | None, Option(min=1, help="Only the first so many images.")] = None
    page: Annotated[
        Path | None, Option(help="Write every wrong answer with its picture to this HTML file; large for many images.")
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
    """Cells to measure in Triton, and models to measure in PyTorch."""

    batch_size: Annotated[list[int], Option(help="Images a request. Repeatable.")] = field(
        default_factory=lambda: [1, 8]
    )
    concurrency: Annotated[list[int], Option(help="Requests in flight. Repeatable.")] = field(
        default_factory=lambda: [1, 8]
    )
    requests: Annotated[int, Option(min=50, help="Requests in each measured window.")] = 200
    rounds: RoundsOption = 1
    pytorch: Annotated[
        list[str],
        Option(help="A model to measure the paper's way as well: a checkpoint folder or timm's name. Repeatable."),
    ] = field(default_factory=list)
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"
    perf_analyzer: PerfAnalyzerOption = Path(".perf-analyzer")
    csv: Annotated[Path, Option(help="Folder for perf_analyzer's CSV files.")] = Path("runs/throughput")
    results: ResultsOption = RESULTS


@dataclass(frozen=True, kw_only=True)
class HttpConfig(Served):
    """Loads to put on the gateway."""

    images: ImagesOption
    concurrency: Annotated[list[int], Option(help="Requests in flight, closed loop. Repeatable.")] = field(
        default_factory=lambda: [1, 8, 32]
    )
    load: Annotated[
        list[float],
        Option(help="Share of the best closed-loop rate to offer as an open loop of random arrivals. Repeatable."),
    ] = field(default_factory=lambda: [0.5, 0.7, 0.9])
    seconds: Annotated[float, Option(min=1, help="Of each measured window, after a warm-up of two.")] = 10
    rounds: RoundsOption = 3
    raw: Annotated[bool, Option("--raw", help="Send the image as the body, not as a form as curl -F does.")] = False
    api_key: Annotated[str | None, Option(envvar="DEIT_API_KEY", help="For a gateway that asks for one.")] = None
    engine: Annotated[
        bool,
        Option(
            "--engine/--no-engine",
            help="Measure Triton alone beside it, by perf_analyzer, to tell how much of its rate survives.",
        ),
    ] = True
    perf_analyzer: PerfAnalyzerOption = Path(".perf-analyzer")
    results: ResultsOption = RESULTS

    def __post_init__(self) -> None:
        if any(not 0 < share < 2 for share in self.load):
            raise ValueError("--load: a share of the best rate, between 0 and 2")


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """Which servers to compare, and how."""

    images: ImagesOption
    model: Annotated[str, Option(help="Name of the fp32 model, which every server serves.")]
    best_model: Annotated[
        str | None,
        Option(
            help="Also compare the best that an accuracy gate admits: this variant of the model in ours, and in the "
            "peers too where ONNX Runtime can run it."
        ),
    ] = None
    model_repository: Annotated[Path, Option(help="Folder of the models.")] = Path("model_repository")
    peer: Annotated[list[str], Option(help="Which peers. Repeatable.")] = field(default_factory=lambda: list(PEERS))
    concurrency: Annotated[list[int], Option(help="Requests in flight. Repeatable.")] = field(
        default_factory=lambda: [1, 8, 32]
    )
    seconds: Annotated[float, Option(min=1, help="Of each measured window, after a warm-up of two.")] = 10
    rounds: RoundsOption = 3
    pairs: Annotated[
        int,
        Option(
            min=0,
            help="Also run ours and each peer side by side, so many windows of each in turns, and tell the ratio: it "
            "shows smaller differences on a machine whose speed changes.",
        ),
    ] = 0
    tune: Annotated[
        bool,
        Option(
            "--tune/--no-tune",
            help="First try each peer's stated settings at the highest concurrency and go on with its best.",
        ),
    ] = True
    environments: Annotated[Path, Option(help="Folder of the peers' own environments, made when they are missing.")] = (
        Path(".peers")
    )
    results: ResultsOption = RESULTS

    def __post_init__(self) -> None:
        if unknown := set(self.peer) - set(PEERS):
            raise ValueError(f"--peer {', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to tell, and where."""

    results: Annotated[Path, Option(help="Folder of the result files.")] = RESULTS
    output: Annotated[Path, Option(help="Folder for report.md and report.html.")] = RESULTS
    machine: Annotated[
        str | None, Option(help="Which machine, as the results name it; without it, the one measured last.")
    ] = None
    document: Annotated[
        list[Path],
        Option(help="Write the measured blocks of this document too, such as README.md. Repeatable."),
    ] = field(default_factory=list)
    images: Annotated[Path, Option(help="Folder for the documents' pictures.")] = Path("docs/images")
