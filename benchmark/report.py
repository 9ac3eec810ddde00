"""The report of the result files, as Markdown, as one self-contained HTML page, and as blocks in documents.

It measures nothing. A document holds a block between `<!-- measured: NAME -->` and `<!-- end -->`, where NAME is a
table's or a picture's; `deit benchmark report --document README.md` writes what belongs there.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.pictures import pictures
from benchmark.results import Kind, Record, read
from benchmark.table import Table
from benchmark.tables import every_table, failures, newest, tables
from deit.errors import BenchmarkError

# `<!-- measured: http on AMD EPYC, 2 cores -->`, or without a machine, which is then the one that was measured last
BLOCK = re.compile(
    r"(<!-- measured: (?P<name>\w+)(?: on (?P<machine>.+?))? -->\n)(?P<content>.*?)(<!-- end -->)", re.DOTALL
)

Reports = Callable[[str | None], "BenchmarkReport"]
"""The report of a machine, by its name; of the one that was measured last without one."""

NOT_MEASURED = "*Not measured yet.*"

NAMES: dict[Kind, str] = {
    "eager": "the paper's way (`deit benchmark throughput --pytorch`)",
    "throughput": "Triton (`deit benchmark throughput`)",
    "http": "the gateway (`deit benchmark http`)",
    "peer": "other servers (`deit benchmark peers`)",
    "pair": "other servers side by side with ours (`deit benchmark peers --pairs`)",
    "accuracy": "accuracy (`deit benchmark accuracy`)",
    "engine": "engines (`deit benchmark gpu-check`)",
    "train": "training (`studies.training_speed`)",
    "machine_limit": "matrix products (`deit benchmark gpu-check`)",
    "strategy": "strategies of distillation (`studies.compare`)",
}

PICTURES = {
    "trade_off": "Accuracy and throughput: the paper's figure 1, and the same models here",
    "peers": "Images/s of each server",
    "latency": "Latency by offered load",
    "stages": "Time of a request by stage",
}

STYLE = """
:root { color-scheme: light } * { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 76rem; padding: 0 1.25rem; color: #1b1f24;
       background: #fff }
h1 { font-size: 1.7rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap }
th { border-bottom-color: #57606a; font-weight: 600 } th:first-child, td:first-child { text-align: left }
tbody tr:nth-child(even) { background: #f6f8fa } p.note { color: #57606a; font-size: 13px; max-width: 60rem }
figure { margin: 1rem 0; overflow-x: auto } figure svg { max-width: 100%; height: auto } dt { font-weight: 600 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: 13px } dd { margin: 0 }
@media (max-width: 40rem) { dl { display: block } dd { margin-bottom: .4rem } }
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Everything reported about one machine."""

    machine: str
    environment: tuple[tuple[str, str], ...]
    tables: dict[str, Table]
    pictures: dict[str, str]
    missing: tuple[str, ...]


def read_report(folder: Path, machine: str | None = None) -> BenchmarkReport:
    """The newest measurements of one machine; without a name, of the one that was measured last.

    Raises:
        BenchmarkError: the folder has no result files, a line is not a measurement, or the machine is not among them.
    """
    records = read(sorted(folder.glob("*.jsonl")))
    if not records:
        raise BenchmarkError(
            f"{folder} has no results; `make benchmark`, or the other `deit benchmark` commands, add them"
        )
    machines = list(dict.fromkeys(record.environment.machine for record in reversed(records)))
    machine = machine or machines[0]
    if machine not in machines:
        raise BenchmarkError(f"{folder} has no results of {machine!r}, but of: {'; '.join(machines)}")
    chosen = newest(records, machine)
    measured = {record.kind for record in chosen if record.figures}
    missing = [f"{name}: not measured on this machine" for kind, name in NAMES.items() if kind not in measured]
    return BenchmarkReport(
        machine=machine,
        # a study of confidence fills no table of the report, and how busy the machine was does not matter to it
        environment=_environment([record for record in chosen if record.kind != "confidence"] or chosen),
        tables=tables(chosen),
        pictures=pictures(chosen, machine),
        missing=(*missing, *failures(chosen)),
    )


def markdown(report: BenchmarkReport) -> str:
    parts = [f"# Benchmark: {report.machine}", "\n".join(f"- {name}: {value}" for name, value in report.environment)]
    parts += [f"## {table.title}\n\n{markdown_table(table)}\n\n{table.note}" for table in report.tables.values()]
    if report.missing:
        parts.append("## What was not measured\n\n" + "\n".join(f"- {each}" for each in report.missing))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|---|" + "--:|" * (len(table.headings) - 1)
    return "\n".join([line(table.headings), rule, *map(line, table.rows)])


def page(report: BenchmarkReport) -> str:
    """One self-contained HTML file."""
    environment = "".join(f"<dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd>" for n, v in report.environment)
    drawn = "".join(
        f'<section><h2>{html.escape(title)}</h2><figure role="img" aria-label="{html.escape(title)}">'
        f"{report.pictures[name]}</figure></section>"
        for name, title in PICTURES.items()
        if name in report.pictures
    )
    tabled = "".join(
        f"<section><h2>{html.escape(table.title)}</h2>{_html_table(name, table)}"
        f'<p class="note">{html.escape(table.note)}</p></section>'
        for name, table in report.tables.items()
    )
    missing = "".join(f"<li>{html.escape(each.replace('`', ''))}</li>" for each in report.missing)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Benchmark: {html.escape(report.machine)}</title><style>{STYLE}</style></head><body>"
        f"<h1>Benchmark: {html.escape(report.machine)}</h1><dl>{environment}</dl>{drawn}{tabled}"
        + (f"<section><h2>What was not measured</h2><ul>{missing}</ul></section>" if missing else "")
        + "</body></html>\n"
    )


def filled(document: str, reports: Reports, *, images: str) -> str:
    """The document with updated blocks.

    Args:
        images: path of the pictures, relative to the document.

    Raises:
        BenchmarkError: a block is named after no table and no picture, or after a machine without results.
    """

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{_content(match['name'], reports(match['machine']), images)}\n{match[5]}"

    return BLOCK.sub(block, document)


def drawn(document: str, reports: Reports) -> dict[str, str]:
    """The pictures that a document shows, as SVG by name."""
    found = {}
    for match in BLOCK.finditer(document):
        name = match["name"].removeprefix("picture_")
        if name in PICTURES and (svg := reports(match["machine"]).pictures.get(name)) is not None:
            found[name] = svg
    return found


def _content(name: str, report: BenchmarkReport, images: str) -> str:
    known = {*every_table(()), *(f"picture_{each}" for each in PICTURES), "environment", "screenshot"}
    if name not in known:
        raise BenchmarkError(f"a document asks for the block {name!r}; known are: {', '.join(sorted(known))}")
    if name == "screenshot":  # `make screenshots` takes it
        return f"![The report's page]({images}/benchmark.png)"
    if name == "environment":
        return "\n".join(f"- {key}: {value}" for key, value in report.environment)
    if name.startswith("picture_"):
        picture = name.removeprefix("picture_")
        return f"![{PICTURES[picture]}]({images}/{picture}.svg)" if picture in report.pictures else NOT_MEASURED
    if name not in report.tables:
        return NOT_MEASURED
    table = report.tables[name]
    return f"{markdown_table(table)}\n\n{table.note}"


def _html_table(name: str, table: Table) -> str:
    head = "".join(f"<th>{html.escape(each)}</th>" for each in table.headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _environment(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """The environment of the newest record, and what differed between records."""
    last = max(records, key=lambda record: record.measured_at)
    environment = last.environment
    commits = dict.fromkeys(
        f"{record.environment.commit}{' with changes' if record.environment.is_modified else ''}" for record in records
    )
    loads = [record.environment.load_average for record in records]
    days = sorted({record.measured_at[:10] for record in records})
    return (
        ("machine", f"{environment.machine}, {environment.memory_gib:g} GiB"),
        ("system", f"{environment.system}, Python {environment.python}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(environment.versions.items()))),
        ("commit", ", ".join(commits)),
        ("measured", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"),
        ("load average when a measurement began", f"{min(loads):g} to {max(loads):g}"),
    )
