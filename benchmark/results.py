"""Measurements as JSON lines, the form in which `deit benchmark` stores all results.

A measurement gives a Result: figures, and the conditions they hold under. A line is a Record: a result with the command
and the environment that it comes from. Files are called `<date>_<machine>.jsonl` and only grow. The report reads them
and never measures.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from deit.durable import write_file
from deit.errors import BenchmarkError

SCHEMA = 1
"""Incremented when a field changes its meaning; older files are then refused and must be measured again."""

Kind = Literal[
    "machine_limit",  # rate of matrix products
    "eager",  # the paper's way: PyTorch, the largest batch, no server
    "engine",  # a graph in an inference engine, no server
    "throughput",  # Triton, by perf_analyzer
    "http",  # the gateway, by the load client
    "peer",  # other servers, interleaved with ours
    "pair",  # ours and one other server, both up, window by window
    "accuracy",
    "train",  # the training step and the loader
    "strategy",  # an arm of a comparison of distillation strategies
    "disagreement",  # of two deciders of such a comparison
    "confidence",  # probabilities before and after a fit, and unfamiliar images
]

# Figures that a record of a kind always has, so that the report can rely on them.
REQUIRED: dict[str, tuple[str, ...]] = {
    "machine_limit": ("gflop_per_s",),
    "eager": ("images_per_s",),
    "engine": ("images_per_s",),
    "throughput": ("images_per_s", "p50_ms", "p95_ms", "p99_ms"),
    "http": ("images_per_s", "p50_ms", "p95_ms", "p99_ms"),
    "peer": ("images_per_s", "p50_ms", "p99_ms"),
    "pair": ("images_per_s", "peer_images_per_s", "ratio"),
    "accuracy": ("top1", "top5"),
    "train": ("images_per_s",),
    "strategy": ("top1",),
    "disagreement": ("disagreement",),
    "confidence": ("calibration_error_before", "calibration_error"),
}

Condition = str | int | float | bool | None

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number.

    Attributes:
        value: the median when there were several runs.
        unit: such as "images/s", "ms", "share".
        lowest, highest: over the runs.
    """

    __pydantic_config__ = _STRICT

    value: float
    unit: str
    lowest: float | None = None
    highest: float | None = None
    runs: int = 1

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> "Figure":
        """The median of several runs, with their spread."""
        return cls(
            value=statistics.median(values), unit=unit, lowest=min(values), highest=max(values), runs=len(values)
        )


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and with what something was measured.

    Attributes:
        machine: kind and size in one line, the same for all measurements that may be compared.
        commit: of this project, None outside a git checkout; `is_modified`: files differed from it.
        load_average: of one minute when the command began; far above 0 means that others used the machine.
    """

    __pydantic_config__ = _STRICT

    machine: str
    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None
    system: str
    python: str
    versions: dict[str, str]
    commit: str | None
    is_modified: bool
    load_average: float


@dataclass(frozen=True)
class Result:
    """One measurement.

    Attributes:
        model: its name in the repository, or timm's name.
        precision: of the arithmetic, such as "fp32".
        conditions: what the figures depend on: batch size, concurrency, server, data set.
        figures: by name; REQUIRED lists those that a kind always has. Empty when it failed, and `failure` says why.
        measured_at: UTC, ISO 8601.
    """

    __pydantic_config__ = _STRICT

    kind: Kind
    model: str
    precision: str
    conditions: dict[str, Condition] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    failure: str | None = None
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema {self.schema}, this version reads {SCHEMA}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind {self.kind!r}; known: {', '.join(get_args(Kind))}")
        if bool(self.figures) == (self.failure is not None):
            raise ValueError("a result has figures, or says why it failed")
        if self.figures and (missing := [name for name in REQUIRED[self.kind] if name not in self.figures]):
            raise ValueError(f"a result of kind {self.kind} needs {', '.join(missing)}")
        for name, figure in self.figures.items():
            if not math.isfinite(figure.value):
                raise ValueError(f"{name} is {figure.value}")

    def value(self, figure: str) -> float | None:
        """None when it was not measured."""
        return self.figures[figure].value if figure in self.figures else None


@dataclass(frozen=True, kw_only=True)
class Record(Result):
    """A result with what it comes from."""

    command: str
    environment: Environment


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def recorded(results: Sequence[Result], environment: Environment, command: str) -> list[Record]:
    return [Record(**vars(result), environment=environment, command=command) for result in results]


def results_file(folder: Path, environment: Environment) -> Path:
    """Where today's measurements on this machine go."""
    slug = "-".join("".join(letter if letter.isalnum() else " " for letter in environment.machine.lower()).split())
    return folder / f"{datetime.now(UTC):%Y-%m-%d}_{slug}.jsonl"


def append(file: Path, records: Sequence[Record]) -> None:
    """Add the records to the file, which is replaced whole."""
    before = file.read_bytes() if file.is_file() else b""
    write_file(file, before + b"".join(_RECORD.dump_json(record) + b"\n" for record in records))


def read(files: Sequence[Path]) -> list[Record]:
    """All records of the files, oldest first.

    Raises:
        BenchmarkError: a line is not a record of this schema; names the file, the line and the field.
    """
    records = []
    for file in files:
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise BenchmarkError(f"{file} cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, start=1):
            try:
                records.append(_RECORD.validate_json(line, strict=True))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise BenchmarkError(f"{file}:{number} is not a measurement: {place} {first['msg']}") from error
    return sorted(records, key=lambda record: record.measured_at)
