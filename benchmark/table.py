"""A table of the report, and what fills a cell of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.results import Kind, Record

Cell = Callable[[Record], str]

SPREAD = ("images_per_s", "peer_images_per_s", "ratio")
"""Figures that are shown with their lowest and highest run."""


@dataclass(frozen=True)
class Table:
    """Headings and rows; `note` says what a reader must know to read it rightly."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class MeasuredTable:
    """A table with a row for each record of one kind. A column that no record fills is left out."""

    kind: Kind
    title: str
    columns: Mapping[str, Cell]
    note: str

    def of(self, records: Sequence[Record]) -> Table:
        shown = [record for record in records if record.kind == self.kind and record.figures]
        columns = {heading: cell for heading, cell in self.columns.items() if any(map(cell, shown))}
        rows = tuple(tuple(cell(record) for cell in columns.values()) for record in shown)
        return Table(self.title, tuple(columns), rows, self.note)


def model(record: Record) -> str:
    return record.model


def precision(record: Record) -> str:
    return record.precision


def condition(name: str) -> Cell:
    return lambda record: "" if (value := record.conditions.get(name)) is None else str(value)


def figure(name: str, *, digits: int = 1, scientific: bool = False) -> Cell:
    def cell(record: Record) -> str:
        found = record.figures.get(name)
        if found is None:
            return ""
        shape = ".1e" if scientific else f",.{digits}f"
        text = f"{found.value:{shape}}"
        if found.runs > 1 and found.lowest is not None and found.highest is not None and name in SPREAD:
            text += f" ({found.lowest:{shape}} to {found.highest:{shape}})"
        return text

    return cell


def share(name: str) -> Cell:
    return lambda record: "" if (value := record.value(name)) is None else f"{100 * value:.0f} %"


def percent(name: str, which: Literal["value", "lowest", "highest"] = "value") -> Cell:
    def cell(record: Record) -> str:
        value = getattr(record.figures.get(name), which, None)
        return "" if value is None else f"{100 * value:.2f} %"

    return cell
