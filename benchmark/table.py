"""A table of the report, of what was measured here or of what a paper has."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Headings and rows; `note` says what a reader must know to read it rightly."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
