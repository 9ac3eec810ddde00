"""The report's pictures, as SVG."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmark.paper import TABLE_5, published
from benchmark.results import Record

OURS, OTHERS, FAMILIES = "#0969da", "#8c959f", {"DeiT": "#0969da", "EfficientNet": "#bf8700", "RegNet": "#1a7f37"}
STYLE = {"svg.hashsalt": "deit", "svg.fonttype": "none", "font.size": 9}
"""The same figures give the same bytes, so that a test can compare."""

STAGES = ("receive", "wait", "decode", "preprocess", "model")


def pictures(records: Sequence[Record], machine: str) -> dict[str, str]:
    """SVG by name of every picture that the records of one machine fill."""
    with matplotlib.rc_context(STYLE):
        drawn = {
            "trade_off": _trade_off(records, machine),
            "latency": _latency(records),
            "stages": _stages(records),
            "peers": _peers(records),
        }
        return {name: as_svg(canvas) for name, canvas in drawn.items() if canvas is not None}


def _trade_off(records: Sequence[Record], machine: str) -> Canvas | None:
    """The paper's figure 1, and next to it, on a separate axis, the same models here."""
    here = [
        (row, record)
        for record in records
        if record.kind == "eager" and record.figures and (row := published(record.conditions["pytorch"])) is not None
    ]
    if not here:
        return None
    canvas = Canvas(figsize=(9, 4), layout="constrained")
    paper, ours = canvas.subplots(1, 2, sharey=True)
    for family in ("DeiT", "EfficientNet", "RegNet", "ResNet", "ViT"):
        rows = sorted(
            (row for row in TABLE_5 if row.name.startswith(family)), key=lambda row: (row.name.count("⚗"), row.top1)
        )
        for marked in {"⚗" in row.name for row in rows}:
            line = [row for row in rows if ("⚗" in row.name) == marked]
            paper.plot(
                [row.images_per_s for row in line],
                [row.top1 for row in line],
                marker="*" if marked else "o",
                markersize=8 if marked else 4,
                linewidth=1,
                color=FAMILIES.get(family, OTHERS),
                linestyle="-" if family == "DeiT" else ":",
                label=family + (" distilled" if marked else ""),
            )
    paper.set_title("paper: V100, fp32, largest batch")
    paper.legend(fontsize=7, loc="lower left")
    paper.set_ylabel("ImageNet top-1, %, as published")
    for row, record in here:
        ours.plot(record.figures["images_per_s"].value, row.top1, marker="*" if "⚗" in row.name else "o", color=OURS)
        name = row.name.replace("⚗", " distilled")
        ours.annotate(name, (record.figures["images_per_s"].value, row.top1), xytext=(5, 4), textcoords="offset points")
    ours.set_title(f"here: {machine}, fp32, eager PyTorch")
    ours.margins(x=0.45)
    for axes in (paper, ours):
        axes.set_xscale("log")
        axes.set_xlabel("images/s")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    return canvas


def _latency(records: Sequence[Record]) -> Canvas | None:
    """Percentiles over the offered load, open loop, a line each."""
    opened = [record for record in records if record.kind == "http" and record.conditions.get("loop") == "open"]
    models = sorted({record.model for record in opened if record.figures})
    if not models:
        return None
    canvas = Canvas(figsize=(4.5 * len(models), 3.2), layout="constrained")
    for axes, model in zip(canvas.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        points = sorted(
            (float(record.conditions["offered_per_s"] or 0), record) for record in opened if record.model == model
        )
        measured = [(rate, record) for rate, record in points if record.figures]
        for percentile, style in ((50, "-"), (95, "--"), (99, ":")):
            axes.plot(
                [rate for rate, _ in measured],
                [record.figures[f"p{percentile}_ms"].value for _, record in measured],
                style,
                marker="o",
                color=OURS,
                label=f"p{percentile}",
            )
        axes.set(title=f"{model}: latency by load", xlabel="offered requests/s (Poisson)", ylabel="ms", ylim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
    return canvas


def _stages(records: Sequence[Record]) -> Canvas | None:
    """Where the time of a request goes, by load."""
    closed = [
        record
        for record in records
        if record.kind == "http" and record.conditions.get("loop") == "closed" and record.figures
    ]
    if not closed:
        return None
    canvas = Canvas(figsize=(7.5, 0.9 + 0.45 * len(closed)), layout="constrained")
    axes = canvas.subplots()
    names = [f"{record.model}, {record.conditions['concurrency']} in flight" for record in closed]
    left = [0.0] * len(closed)
    for stage, colour in zip(STAGES, ("#d0d7de", "#8c959f", "#bf8700", "#1a7f37", OURS), strict=True):
        widths = [record.value(f"stage_{stage}_ms") or 0.0 for record in closed]
        axes.barh(names, widths, left=left, color=colour, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("mean ms of a request by stage; model holds Triton's queue")
    axes.legend(ncols=len(STAGES), fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return canvas


def _peers(records: Sequence[Record]) -> Canvas | None:
    """Rate of every server at the highest concurrency, with the spread of its rounds."""
    measured = [record for record in records if record.kind == "peer" and record.figures]
    if not measured:
        return None
    most = max(int(record.conditions["concurrency"] or 0) for record in measured)
    shown = sorted(
        (record for record in measured if record.conditions["concurrency"] == most),
        key=lambda record: record.figures["images_per_s"].value,
    )
    canvas = Canvas(figsize=(7.5, 0.9 + 0.32 * len(shown)), layout="constrained")
    axes = canvas.subplots()
    values = [record.figures["images_per_s"] for record in shown]
    axes.barh(
        [f"{record.conditions['server']}, {record.model} ({record.precision})" for record in shown],
        [each.value for each in values],
        xerr=[
            [each.value - (each.lowest or each.value) for each in values],
            [(each.highest or each.value) - each.value for each in values],
        ],
        color=[OURS if record.conditions["server"] == "deit serve" else OTHERS for record in shown],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    axes.set_xlabel(f"images/s with {most} requests in flight; bars: lowest to highest round")
    return canvas


def as_svg(canvas: Any) -> str:
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return "\n".join(line.rstrip() for line in svg[svg.index("<svg") :].splitlines()) + "\n"
