"""Measured figures in the documents come from committed files.

Tables and pictures stand in blocks that `deit benchmark report --document` writes; here they are written again and must
be the same. In prose four kinds of figures are recognised by their units and looked up among those of the same kind:
rates in images/s, latencies with their percentile, memory, and percentages with decimals. The files are
benchmark/results, the training logs and, for the paper's own figures, benchmark/paper.py.
"""

import json
import os
import re
from functools import cache, partial
from pathlib import Path

import pytest

from benchmark.paper import TABLE_5
from benchmark.report import BLOCK, filled, read_report
from benchmark.results import read
from tests.conftest import REPOSITORY_ROOT

RESULTS = REPOSITORY_ROOT / "benchmark" / "results"
REPORTS = cache(partial(read_report, RESULTS))
DOCUMENTS = [REPOSITORY_ROOT / "README.md", *sorted((REPOSITORY_ROOT / "docs").glob("*.md"))]

# Settings and limits have other forms: 10 MiB, 5 s, 97 %.
PROSE = re.compile(
    r"(?P<rate>\d[\d,]*(?:\.\d+)?) images/s|p(?:50|95|99)[ :a-z]{1,12}(?P<latency>\d[\d,]*(?:\.\d+)?) ms"
    r"|(?P<memory>\d[\d,]*) MiB of memory|(?P<share>\d+\.\d+) %"
)
UNITS = {"images/s": "rate", "ms": "latency", "MiB": "memory", "share": "share"}

Values = dict[str, list[float]]
"""Committed values by the kind of figure; shares in percent."""


def prose_figures(text: str) -> list[tuple[str, str]]:
    """The kind and the text of each figure outside the measured blocks."""
    return [(str(match.lastgroup), match[str(match.lastgroup)]) for match in PROSE.finditer(BLOCK.sub("", text))]


def committed_values() -> Values:
    values: Values = {kind: [] for kind in UNITS.values()}
    for record in read(sorted(RESULTS.glob("*.jsonl"))):
        for figure in record.figures.values():
            if (kind := UNITS.get(figure.unit)) is not None:
                values[kind].append(100 * figure.value if kind == "share" else figure.value)
    for log in (REPOSITORY_ROOT / "training" / "recipes").glob("*.jsonl"):
        for line in log.read_text().splitlines():
            values["share"] += [100 * value for name, value in json.loads(line).items() if "_top" in name]
    for row in TABLE_5:
        values["rate"].append(row.images_per_s)
        values["share"] += [share for share in (row.top1, row.real, row.v2) if share is not None]
    return values


def is_found(kind: str, figure: str, values: Values) -> bool:
    """Whether a committed value of this kind, rounded to as many decimals, is written so."""
    decimals = len(figure.partition(".")[2])
    return any(f"{value:,.{decimals}f}" == figure or f"{value:.{decimals}f}" == figure for value in values[kind])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_figures_with_a_unit_in_prose_are_in_a_committed_file(document: Path) -> None:
    values = committed_values()
    missing = [each for each in prose_figures(document.read_text()) if not is_found(*each, values)]
    assert missing == [], f"{document.name} states figures that no committed file holds"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_measured_blocks_are_those_of_the_committed_results(document: Path) -> None:
    images = os.path.relpath(REPOSITORY_ROOT / "docs" / "images", document.parent)
    text = document.read_text()
    assert text == filled(text, REPORTS, images=images), "run deit benchmark report with --document for each document"


def test_an_invented_figure_is_found() -> None:
    values: Values = {"rate": [806.2], "latency": [4.43], "memory": [679.0], "share": [69.84]}
    true = "It does 806 images/s (p99 4.4 ms) in 679 MiB of memory with 69.84 % right."
    block = "<!-- measured: http -->\n9,999 images/s\n<!-- end -->"
    assert [is_found(*each, values) for each in prose_figures(f"{true}\n{block}")] == [True] * 4
    invented = "It does 4.4 images/s, p99 of 806 ms, in 680 MiB of memory, 69.9 % right"
    assert [kind for kind, _ in prose_figures(invented)] == ["rate", "latency", "memory", "share"]
    assert not any(is_found(*each, values) for each in prose_figures(invented))
