"""The options of `deit export`. Free of torch, so that `deit export --help` is instant."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from deit.options import MODEL_SOURCES
from deit.repository.layout import MODEL_NAME
from training.columns import IMAGE_COLUMN_HELP, LABEL_COLUMN_HELP

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ENGINES = ("auto", "onnxruntime", "openvino", "cuda", "tensorrt", "tensorrt-rtx")
PLAN_ENGINES = ("tensorrt", "tensorrt-rtx")
GPU_ENGINES = ("cuda", *PLAN_ENGINES)
COMPUTE_CAPABILITY = re.compile(r"sm\d{2,3}")
FEWEST_HELD_OUT = 256
FALSE_REFUSALS = 0.05
READOUTS = ("joint-probability", "joint-logit", "class", "distillation")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One export: from a checkpoint to a new version of a model in a repository."""

    images: Annotated[
        Path,
        Option(
            help="Real images to compare with PyTorch on: a data set as for `deit train`, a parquet file, or a folder "
            "of images. Give images like those that will be served."
        ),
    ]
    checkpoint: Annotated[str, Option(help=f"The model: {MODEL_SOURCES}.")]
    architecture: Annotated[
        str | None, Option(help="timm's name of the architecture, for a weights file that does not give it.")
    ] = None
    labels: Annotated[
        str | None,
        Option(help="Class names, if the checkpoint has none: a file with one per line, or imagenet-1k."),
    ] = None
    crop_pct: Annotated[
        float | None,
        Option(
            help="Share of the shorter side that the crop keeps. Default: the checkpoint's. DeiT's own code uses 0.875."
        ),
    ] = None

    repository: Annotated[Path, Option(help="Model repository to publish in.")] = Path("model_repository")
    name: Annotated[str | None, Option(help="Name of the model. Default: the architecture's.")] = None
    precision: Annotated[
        str,
        Option(
            help="Precisions to export, such as fp32,bf16,int8. Each that passes the gate becomes a model: NAME, "
            "NAME_bf16 and so on."
        ),
    ] = "fp32"
    engine: Annotated[
        str,
        Option(
            help="Engine: onnxruntime or openvino on CPUs; cuda (ONNX Runtime) or tensorrt (a plan) on this machine's "
            "GPU; tensorrt-rtx (plans) for GPUs in other machines. auto times the CPU engines, under load and "
            "alone, and takes the fastest that passes the gate, openvino only if it is a tenth faster."
        ),
    ] = "auto"
    compute_capability: Annotated[
        str | None,
        Option(
            help="Compute capabilities of the GPUs that tensorrt-rtx builds plans for, such as sm80,sm89. The plans go "
            "to REPOSITORY.plans/NAME/sm80 and so on, which Triton does not serve."
        ),
    ] = None
    readout: Annotated[
        str | None,
        Option(
            help="What `probabilities` is: joint-probability (the default for a distilled model), joint-logit, class "
            "or distillation."
        ),
    ] = None
    image_column: Annotated[str | None, Option(help=IMAGE_COLUMN_HELP)] = None
    label_column: Annotated[str | None, Option(help=LABEL_COLUMN_HELP)] = None
    parity_images: Annotated[int | None, Option(min=1, help="Number of images to compare on. Default: up to 512.")] = (
        None
    )

    calibrate: Annotated[
        bool | None,
        Option(
            help="Calibrate the probabilities on labelled images that the gate does not use, so that of predictions "
            "with a probability of 80 %, about 80 % are right. The top-1 class never changes. Default: on if "
            f"there are at least {FEWEST_HELD_OUT} such images."
        ),
    ] = None
    false_refusals: Annotated[
        float | None,
        Option(
            min=0.0,
            max=0.5,
            help="Share of images like the test split's that abstain=true may refuse; measured on those of "
            f"--calibrate. Default: {FALSE_REFUSALS}.",
        ),
    ] = None

    explain: Annotated[
        bool,
        Option(
            "--explain",
            help="Also publish NAME_explain, which computes heat maps and features for explain=true and "
            "embedding=true; the models themselves do not get slower.",
        ),
    ] = False

    max_batch_size: Annotated[
        int | None,
        Option(min=1, help="Largest batch in Triton. Default: 32 on a CPU, 128 on a GPU."),
    ] = None
    instances: Annotated[
        int | None,
        Option(
            min=1,
            help="Instances of the model that run in parallel, per GPU if there is one. Default: 1 for a plan, else "
            "2, because with one the embedded Triton sometimes delays a single request by half a second.",
        ),
    ] = None
    threads: Annotated[
        int,
        Option(
            min=0,
            help="CPU threads of each instance. 0: an equal share of the cores, and all of them for a single request "
            "to an unquantized model on OpenVINO; one on a GPU. Set 1 if other programs keep the cores busy.",
        ),
    ] = 0
    queue_delay_us: Annotated[
        int,
        Option(
            min=0,
            help="Microseconds that Triton waits for a fuller batch. Above 0, a request that arrives alone waits "
            "that long.",
        ),
    ] = 0
    queue_size: Annotated[
        int | None,
        Option(
            min=1,
            help="Requests that may wait before Triton refuses more. Default: 256 on a CPU, 4096 on a GPU.",
        ),
    ] = None
    queue_timeout_ms: Annotated[
        int,
        Option(
            min=1,
            help="Longest wait in the queue in milliseconds; also the longest deadline that a request may ask for.",
        ),
    ] = 10_000

    def __post_init__(self) -> None:
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"--crop-pct {self.crop_pct}: must be above 0 and at most 1")
        for option, values, allowed in (
            ("--precision", self.precisions, PRECISIONS),
            ("--engine", (self.engine,), ENGINES),
            ("--readout", (self.readout,), (None, *READOUTS)),
        ):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{option} {value}: choose from {', '.join(filter(None, allowed))}")
        if bool(self.capabilities) != (self.engine == "tensorrt-rtx"):
            raise ValueError(
                "--engine tensorrt-rtx and --compute-capability, such as sm80,sm89, go together: give both or neither"
            )
        for capability in self.capabilities:
            if not COMPUTE_CAPABILITY.fullmatch(capability):
                raise ValueError(f"--compute-capability {capability}: write 8.9 as sm89")
        if self.false_refusals is not None and self.calibrate is False:
            raise ValueError("--false-refusals needs the calibration: drop it, or drop --no-calibrate")
        if self.explain and self.engine in PLAN_ENGINES:
            raise ValueError(
                "--explain runs on ONNX Runtime: export it separately with another --engine, under the same --name"
            )
        if self.name is not None and not MODEL_NAME.fullmatch(self.name):
            raise ValueError(f"--name {self.name!r}: must match {MODEL_NAME.pattern}")

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of --precision, each once, in order."""
        return _parts(self.precision)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities to build plans for, as "sm89", each once."""
        return () if self.compute_capability is None else _parts(self.compute_capability.lower())

    @property
    def plans(self) -> Path:
        """Folder for plans that Triton must not load: next to the repository, where every folder is a model."""
        return (folder := self.repository.resolve()).with_name(f"{folder.name}.plans")


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))
