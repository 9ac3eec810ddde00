"""What a step of the check found: a verdict with its reason, and the measurements behind it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from benchmark.environment import this_environment
from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.results import Record, Result, read, results_file
from deit.durable import write_file

Verdict = Literal["passed", "failed", "measured", "not possible here"]


class NotPossible(Exception):
    """A step, or a part of it, cannot run on this host; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table that the check ends with.

    Attributes:
        verdict: "measured" if there was nothing to compare with.
        text: the figures, or the reason.
        results: the measurements, which go into the results file.
    """

    name: str
    verdict: Verdict
    text: str
    results: tuple[Result, ...] = field(default=(), compare=False)


def judged(name: str, passed: bool, text: str, *results: Result) -> Finding:
    return Finding(name=name, verdict="passed" if passed else "failed", text=text, results=results)


def earlier(config: GpuCheckConfig) -> list[Record]:
    """What was measured on this machine today."""
    file = results_file(config.results, this_environment())
    return read([file]) if file.is_file() else []


def write_findings(file: Path, findings: Sequence[Finding], *, seconds: float, finished: bool) -> None:
    """Replace the file of a step; it is written after each finding, so that a killed step leaves what it had."""
    rows = [{key: value for key, value in asdict(each).items() if key != "results"} for each in findings]
    write_file(
        file, json.dumps({"finished": finished, "seconds": round(seconds, 1), "findings": rows}, indent=1) + "\n"
    )


def read_findings(file: Path) -> tuple[list[Finding], float, bool]:
    """The findings of a step, its seconds, and whether it ran to its end; nothing where it has not run."""
    if not file.is_file():
        return [], 0.0, False
    content = json.loads(file.read_text())
    return [Finding(**row) for row in content["findings"]], content["seconds"], content["finished"]
