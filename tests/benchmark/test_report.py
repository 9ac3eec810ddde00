"""The report says what the records say: every figure of its tables, nothing from another machine."""

import dataclasses
import functools
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmark.environment import this_environment
from benchmark.report import filled, markdown, page
from benchmark.report import read_report as read_report_anew
from benchmark.results import Figure, Record, append
from deit.errors import BenchmarkError
from tests.browser import chromium, find_chromium

read_report = functools.cache(read_report_anew)  # it draws pictures, for a second

LATENCIES = {"p50_ms": 20.0, "p95_ms": 31.0, "p99_ms": 42.5}


def records(machine: str, rate: float) -> list[Record]:
    environment = dataclasses.replace(this_environment(), machine=machine)

    def record(kind: str, conditions: dict[str, object], **figures: float) -> Record:
        units = {
            "_ms": "ms",
            "_share": "share",
            "top1": "share",
            "top5": "share",
            "disagreement": "share",
            "_mib": "MiB",
        }
        return Record(
            kind=kind,
            model="deit_tiny",
            precision="fp32",
            command=f"deit benchmark {kind}",
            environment=environment,
            conditions=conditions,
            figures={
                name: Figure(value=value, unit=next((units[end] for end in units if name.endswith(end)), "images/s"))
                for name, value in figures.items()
            },
        )

    name = "deit_tiny_distilled_patch16_224"
    found = [
        record("eager", {"pytorch": name, "batch_size": 64}, images_per_s=rate),
        record("throughput", {"batch_size": 1, "concurrency": 8}, images_per_s=rate + 1, **LATENCIES, mean_batch=3.5),
        *(
            record(
                "http",
                {"loop": "closed", "concurrency": in_flight},
                images_per_s=rate + 2 + in_flight,
                **LATENCIES,
                stage_decode_ms=4.0,
                stage_model_ms=15.0,
                refused_share=0.0,
            )
            for in_flight in (1, 8)
        ),
        *(
            record("http", {"loop": "open", "load": load, "offered_per_s": load * rate}, images_per_s=rate, **LATENCIES)
            for load in (0.5, 0.7)
        ),
        *(
            record(
                "peer",
                {"server": server, "version": "1.0", "settings": "defaults", "concurrency": 32},
                images_per_s=rate + place,
                **LATENCIES,
                failed_share=0.0,
            )
            for place, server in enumerate(("deit serve", "litserve"))
        ),
        record(
            "pair",
            {"server": "litserve", "version": "1.0", "settings": "defaults", "concurrency": 32},
            images_per_s=rate,
            peer_images_per_s=rate + 1,
            ratio=0.98,
        ),
        record("accuracy", {"way": "http", "data": "test.parquet", "count": 10000}, top1=0.7451, top5=0.9189),
        *(
            record("disagreement", {"comparison": "small", "other": other}, disagreement=0.125 / place)
            for place, other in enumerate(("teacher", "none, class"), start=1)
        ),
        record("strategy", {"comparison": "small", "seeds": 3}, top1=0.6123),
    ]
    failed = dataclasses.replace(
        next(each for each in found if each.kind == "peer"),
        conditions={"server": "ray", "concurrency": 32},
        figures={},
        failure="did not start",
    )
    return [*found, failed]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    append(folder / "older.jsonl", records("Large, 64 cores", 5000.0))
    late = [dataclasses.replace(each, measured_at="2099-01-01T00:00:00+00:00") for each in records("Small", 50.25)]
    append(folder / "newer.jsonl", [*records("Small", 33.25), *late])
    return folder


class Cells(HTMLParser):
    """The text of every cell, by the table's id."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[str]] = {}
        self._table, self._in_cell = "", False

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self._table = dict(attributes)["id"]
            self.tables[self._table] = []
        self._in_cell = tag in ("td", "th")
        if self._in_cell:
            self.tables[self._table].append("")

    def handle_endtag(self, tag):
        self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.tables[self._table][-1] += data


def test_the_pages_tables_agree_with_the_records(results):
    report = read_report(results)
    parser = Cells()
    parser.feed(page(report))
    measured = {"paper", "throughput", "http", "cost", "peers", "pairs", "accuracy", "strategies", "disagreement"}
    assert set(parser.tables) == measured
    for name, table in report.tables.items():
        assert parser.tables[name] == [cell for row in (table.headings, *table.rows) for cell in row]
    assert {"50.2", "2,529.5", "74.5 %"} <= set(parser.tables["paper"])
    assert {"51.2", "42.5", "3.5"} <= set(parser.tables["throughput"])
    assert {"53.2", "60.2", "8 in flight", "35.2/s offered (70 %)"} <= set(parser.tables["http"])
    assert {"74.51 %", "91.89 %"} <= set(parser.tables["accuracy"])
    assert "61.23 %" in parser.tables["strategies"]
    # a row for each of three deciders; of the two that were never compared nothing is said
    assert parser.tables["disagreement"][5:10] == ["small", "1 teacher", "0.000", "0.125", ""]


def test_the_newest_measurement_of_one_machine_counts(results):
    for text in (markdown(read_report(results)), page(read_report(results))):
        assert "33.2" not in text  # measured again
        assert "5,000" not in text  # another machine
    other = markdown(read_report(results, "Large, 64 cores"))
    assert "5,000.0" in other
    assert "50.2" not in other
    with pytest.raises(BenchmarkError, match="has no results of 'Tiny', but of: Small; Large, 64 cores"):
        read_report(results, "Tiny")


def test_what_was_not_measured_and_what_failed_is_told(results):
    text = markdown(read_report(results))
    assert "engines (`deit benchmark gpu-check`): not measured on this machine" in text
    assert "(server ray, concurrency 32): did not start" in text
    assert "accuracy (`deit benchmark accuracy`): not" not in text


def test_the_page_needs_nothing_else(results):
    text = page(read_report(results))
    assert text.count("<svg") == 4
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text)
    assert "@import" not in text


def test_blocks_of_a_document_are_written_and_the_rest_is_left(results):
    reports = partial(read_report, results)
    document = "# Ours\n\n<!-- measured: accuracy -->\nold\n<!-- end -->\n\n12 % of text.\n"
    written = filled(document, reports, images="docs/images")
    assert "old" not in written
    assert "| deit_tiny | fp32 | http | test.parquet (10000) | 74.51 % | 91.89 % |" in written
    assert written.endswith("<!-- end -->\n\n12 % of text.\n")
    assert filled(written, reports, images="docs/images") == written
    with pytest.raises(BenchmarkError, match="'speed'"):
        filled("<!-- measured: speed -->\n<!-- end -->", reports, images="")


def test_a_block_may_name_its_machine(results):
    document = "<!-- measured: paper on Large, 64 cores -->\n<!-- end -->\n<!-- measured: paper -->\n<!-- end -->\n"
    large, small = filled(document, partial(read_report, results), images="").split("<!-- end -->\n")[:2]
    assert large.startswith("<!-- measured: paper on Large, 64 cores -->\n")
    assert "5,000.0" in large
    assert "50.2" in small


def test_pictures_are_the_same_bytes_each_time(results):
    assert read_report(results).pictures == read_report_anew(results).pictures


def test_a_folder_without_results_names_the_next_step(tmp_path):
    with pytest.raises(BenchmarkError, match="make benchmark"):
        read_report(tmp_path)


def test_the_page_shows_tables_and_pictures_and_nothing_sticks_out(results):
    """In Chromium, on a phone and on a wide screen; wide tables scroll within their box."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium: make chromium")
    with chromium(executable) as browser:
        for width in (390, 1280):
            shown = browser.new_page(viewport={"width": width, "height": 800})
            shown.set_content(page(read_report(results)))
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            for selector, count in (("figure svg", 4), ("table", 9)):
                boxes = [each.bounding_box() for each in shown.locator(selector).all()]
                assert len(boxes) == count
                assert all(box["width"] > 150 and box["height"] > 30 for box in boxes)
