"""What the gate found, for people (a table) and for programs (JSON, and a summary in config.pbtxt)."""

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from export.engines import Engine
from export.gate import Judgement, thresholds

CLEARLY_FASTER = 1.1
"""Another engine is published only if it is this many times as fast as ONNX Runtime; runs of one differ by less."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant on an engine, what the gate found, and how fast it is here.

    Attributes:
        method: how the variant was made: "" or, for int8, one of `quantization.METHODS`.
        images_per_s: with all instances busy; None when it was not measured, because it failed or had no rival.
        images_per_s_alone: of single images, one after the other; None likewise.
    """

    method: str
    engine: Engine
    judgement: Judgement
    images_per_s: float | None = None
    images_per_s_alone: float | None = None

    @property
    def title(self) -> str:
        return f"{self.judgement.precision}{f' {self.method}' if self.method else ''}"

    @property
    def passes(self) -> bool:
        return not self.judgement.failures


def best(candidates: Sequence[tuple[Path, Candidate]]) -> tuple[Path, Candidate] | None:
    """The fastest that passes, with its graph; None if none passes.

    The fastest is the one with the best geometric mean of the rates under load and alone. ONNX Runtime, which every
    installation has, is preferred unless another is clearly faster.
    """

    def worth(each: tuple[Path, Candidate]) -> float:
        _, candidate = each
        speed = math.sqrt((candidate.images_per_s or 0.0) * (candidate.images_per_s_alone or 0.0))
        return speed * (CLEARLY_FASTER if candidate.engine.backend == "onnxruntime" else 1)

    return max((each for each in candidates if each[1].passes), key=worth, default=None)


def summary(candidate: Candidate) -> dict[str, Any]:
    """The summary of the gate in `parameters` of config.pbtxt."""
    facts = {key: value for key, value in asdict(candidate.judgement).items() if key != "failures"}
    facts |= {
        "method": candidate.method or None,
        "images_per_s": candidate.images_per_s,
        "images_per_s_alone": candidate.images_per_s_alone,
    }
    return {key: round(value, 9) if isinstance(value, float) else value for key, value in facts.items()}


def as_json(candidates: list[Candidate], published: Candidate) -> dict[str, Any]:
    """The complete report: the thresholds, each candidate, and which one is published."""
    return {
        "thresholds": asdict(thresholds(published.judgement.precision, on_gpu=published.engine.on_gpu)),
        "published": candidates.index(published),
        "candidates": [
            {**summary(each), "settings": each.engine.parameters, "failures": list(each.judgement.failures)}
            for each in candidates
        ],
    }


def table(candidates: list[Candidate], chosen: list[Candidate], outcome: str = "published") -> Table:
    """One row per candidate.

    Args:
        outcome: what was done with the chosen candidates, such as "published".
    """
    found = Table("variant", "engine", box=None, pad_edge=False)
    for heading in ("images", "agree", "top-1", "PyTorch", "largest diff.", "neighbours", "images/s", "alone", "gate"):
        found.add_column(heading, justify="right")
    for each in candidates:
        judgement = each.judgement
        found.add_row(
            each.title,
            each.engine.title,
            str(judgement.images),
            f"{judgement.agreement:.2%}",
            _share(judgement.top1),
            _share(judgement.reference_top1),
            f"{judgement.max_difference:.1e}",
            f"{judgement.neighbours:.1e}",
            *("" if rate is None else f"{rate:.1f}" for rate in (each.images_per_s, each.images_per_s_alone)),
            outcome if each in chosen else "passed" if each.passes else "failed",
        )
    return found


def as_text(candidates: list[Candidate], chosen: Candidate, outcome: str = "published") -> str:
    """The table, and why candidates failed."""
    console = Console(file=io.StringIO(), width=140)
    console.print(table(candidates, [chosen], outcome))
    for each in candidates:
        for failure in each.judgement.failures:
            console.print(f"{each.title} on {each.engine.title}: {failure}")
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
