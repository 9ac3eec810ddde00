"""Options of `deit benchmark gpu-check`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from benchmark.config import RESULTS, ResultsOption

LIMITS_S = {
    "host": 60,
    "products": 60,
    "models": 420,
    "training": 300,
    "export": 420,
    "engines": 180,
    "triton": 240,
    "http": 240,
    "jpegs": 300,
}
"""Seconds after which a step is ended. On an H200 the whole check took a third of their sum."""

STEPS = tuple(LIMITS_S)
"""In the order in which they run: a later step may need the files of an earlier one."""

WORK = Path("runs/gpu-check")


@dataclass(frozen=True, kw_only=True)
class GpuCheckConfig:
    images: Annotated[
        Path | None,
        Option(
            help="Photographs, 64 or more: a folder of image files, or a parquet file. The steps training, export, "
            "engines, triton, http and jpegs need them."
        ),
    ] = None
    checkpoint: Annotated[
        Path | None,
        Option(
            help="Trained DeiT: a checkpoint folder, or a weights file with --architecture. The steps export, engines, "
            "triton, http and jpegs need one."
        ),
    ] = None
    architecture: Annotated[
        str | None, Option(help="Architecture of a weights file by its timm name, such as deit_tiny_patch16_224.")
    ] = None
    step: Annotated[list[str] | None, Option(help=f"Step to run: {', '.join(STEPS)}. Repeatable. Default: all.")] = None
    again: Annotated[
        bool, Option("--again", help="Repeat finished steps. By default a second call resumes the first.")
    ] = False
    rehearse: Annotated[
        bool,
        Option("--rehearse", help="Run every step on the CPU with tiny settings, to test the check itself."),
    ] = False
    work: Annotated[Path, Option(help="Folder for what the steps write: findings, logs, exported models.")] = WORK
    results: ResultsOption = RESULTS

    def __post_init__(self) -> None:
        for name in self.step or ():
            if name not in STEPS:
                raise ValueError(f"--step {name}: choose from {', '.join(STEPS)}")

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps to run, in their order."""
        return tuple(name for name in STEPS if not self.step or name in self.step)

    @property
    def repository(self) -> Path:
        """The model repository that the step `export` fills."""
        return self.work / "model_repository"
