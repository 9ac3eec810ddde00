"""Every measured figure in the documents is in a committed file.

Tables and pictures stand in blocks that `deit benchmark report --document` writes; here they are written again and must
be the same. Figures in prose are found by their units and looked up: in benchmark/results, in the training logs, and,
for the paper's own, in benchmark/paper.py.
"""

import json
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pytest

from benchmark.paper import TABLE_5
from benchmark.report import BLOCK, filled, image_folder, read_report
from benchmark.results import read
from tests.conftest import REPOSITORY_ROOT

RESULTS = REPOSITORY_ROOT / "benchmark" / "results"
REPORTS = cache(partial(read_report, RESULTS))
DOCUMENTS = [REPOSITORY_ROOT / "README.md", *sorted((REPOSITORY_ROOT / "docs").glob("*.md"))]

# A rate, a latency with its percentile, an accuracy with decimals. Settings and limits have other forms.
PROSE = re.compile(
    r"(?P<rate>\d[\d,]*(?:\.\d+)?) images/s|p(?:50|95|99)[ :a-z]{1,12}(?P<ms>\d[\d,]*(?:\.\d+)?) ms"
    r"|(?P<percent>\d+\.\d+) %"
)


def prose_figures(text: str) -> list[str]:
    return [next(filter(None, match.groups())) for match in PROSE.finditer(BLOCK.sub("", text))]


def committed_values() -> Iterator[float]:
    for record in read(sorted(RESULTS.glob("*.jsonl"))):
        for figure in record.figures.values():
            yield from (figure.value, 100 * figure.value)
    for log in (REPOSITORY_ROOT / "training" / "recipes").glob("*.jsonl"):
        for line in log.read_text().splitlines():
            for value in json.loads(line).values():
                if isinstance(value, int | float):
                    yield from (value, 100 * value)
    for row in TABLE_5:
        yield from (value for value in (row.images_per_s, row.top1, row.real, row.v2) if value is not None)


def is_found(figure: str, values: list[float]) -> bool:
    """A committed value that is written so when it is rounded to as many decimals."""
    decimals = len(figure.partition(".")[2])
    return any(f"{value:,.{decimals}f}" == figure or f"{value:.{decimals}f}" == figure for value in values)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_figure_in_prose_is_in_a_committed_file(document: Path) -> None:
    values = list(committed_values())
    missing = [figure for figure in prose_figures(document.read_text()) if not is_found(figure, values)]
    assert missing == [], f"{document.name} tells figures that no committed file holds"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_measured_blocks_are_those_of_the_committed_results(document: Path) -> None:
    images = image_folder(document, REPOSITORY_ROOT / "docs" / "images")
    text = document.read_text()
    assert text == filled(text, REPORTS, images=images), "run deit benchmark report with --document for each document"


def test_an_invented_figure_is_found() -> None:
    values = [806.2, 4.43, 69.84]
    text = (
        "It does 806 images/s (p99 4.4 ms) with 69.84 % right.\n<!-- measured: http -->\n9,999 images/s\n<!-- end -->"
    )
    assert [is_found(figure, values) for figure in prose_figures(text)] == [True, True, True]
    assert prose_figures("It does 1,234.5 images/s, p99 of 7 ms, 99.9 % right") == ["1,234.5", "7", "99.9"]
    assert not any(is_found(figure, values) for figure in ("1,234.5", "7", "99.9"))
