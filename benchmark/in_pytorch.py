"""Models in eager PyTorch, measured the paper's way, and the machine's limit beside them."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmark.eager import eager_rate
from benchmark.machine_limit import REPETITIONS, fastest, machine_limit
from benchmark.results import Environment, Figure, Record
from benchmark.work import gflop_per_image, pytorch_model
from deit.checkpoint import WEIGHTS_FILE
from deit.model import Provenance
from training.processes import choose_device


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine can do at most.

    Attributes:
        gflop_per_s: by precision; empty on a GPU, whose products are not measured.
        gflop_per_image: of the model in Triton; None when none of those in PyTorch is the same.
    """

    gflop_per_s: dict[str, Figure]
    gflop_per_image: float | None

    def share(self, rate: Figure, precision: str) -> dict[str, Figure]:
        """The share of the limit that a rate is, as the figure limit_share; nothing where there is no limit."""
        return share_of_limit(rate, self.gflop_per_image, self.gflop_per_s.get(precision))


@dataclass(frozen=True, kw_only=True)
class PyTorchModel:
    """A model with random or trained weights, and the side of its images in pixels."""

    name: str
    model: nn.Module
    image_size: int
    gflop_per_image: float


def open_models(names: list[str]) -> list[PyTorchModel]:
    """Raises BenchmarkError when a name is neither a checkpoint folder nor timm's."""
    opened = ((name, *pytorch_model(name)) for name in names)
    return [
        PyTorchModel(name=name, model=model, image_size=size, gflop_per_image=gflop_per_image(model, size))
        for name, model, size in opened
    ]


def measure_in_pytorch(
    models: list[PyTorchModel],
    device_name: str,
    environment: Environment,
    *,
    command: str,
    in_triton: Provenance,
    image_size: int,
) -> tuple[list[Record], Limits]:
    """A record of the limit for each precision and one of the rate, for each model.

    Args:
        in_triton, image_size: of the model in Triton, whose precision and arithmetic the limits are to tell too.
    """
    device = choose_device(device_name)
    record = partial(Record, command=command, environment=environment)
    limits = limits_of({"fp32", in_triton.precision}, environment.cores) if device.type == "cpu" else {}
    records = []
    for each in models:
        for precision, limit in limits.items():
            figures = {"gflop_per_s": limit, "gflop_per_image": Figure(value=each.gflop_per_image, unit="GFLOP")}
            records.append(record(kind="machine_limit", model=each.name, precision=precision, figures=figures))
        records.append(eager_record(record, each, device, limits.get("fp32")))
    same = (each for each in models if each.image_size == image_size and is_made_from(each.name, in_triton))
    return records, Limits(gflop_per_s=limits, gflop_per_image=next((each.gflop_per_image for each in same), None))


def eager_record(record: "partial[Record]", each: PyTorchModel, device: torch.device, limit: Figure | None) -> Record:
    eager = eager_rate(each.model, each.image_size, device)
    rate = Figure(
        value=eager.images_per_s, unit="images/s", lowest=eager.lowest, highest=eager.highest, runs=eager.runs
    )
    return record(
        kind="eager",
        model=each.name,
        precision="fp32",
        conditions={"batch_size": eager.batch_size, "device": device.type, "pytorch": each.name},
        figures={"images_per_s": rate, **share_of_limit(rate, each.gflop_per_image, limit)},
    )


def share_of_limit(rate: Figure, gflop: float | None, limit: Figure | None) -> dict[str, Figure]:
    if gflop is None or limit is None:
        return {}
    return {"limit_share": Figure(value=rate.value * gflop / limit.value, unit="share")}


def is_made_from(name: str, provenance: Provenance) -> bool:
    """Whether a served model was exported from this one: the same weights file, or timm's architecture."""
    if Path(name).is_dir():
        with (Path(name) / WEIGHTS_FILE).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == provenance.checkpoint_sha256
    return name.partition(".")[0] == provenance.architecture.partition(".")[0]


def limits_of(precisions: set[str], threads: int) -> dict[str, Figure]:
    """By precision the rate of the matrix product that runs fastest, with as many threads as the machine has cores."""
    rates = machine_limit(threads, precisions=tuple(sorted(precisions & {"fp32", "bf16", "int8"})))
    return {
        precision: Figure(value=rate.gops_median, unit="GFLOP/s", highest=rate.gops_best, runs=REPETITIONS)
        for precision, rate in fastest(rates).items()
    }
