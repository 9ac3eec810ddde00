"""Draws the panels of the dashboard from a running Prometheus, for machines without Grafana.

    deploy/grafana/render.py --minutes 10 --output docs/images/dashboard.png

It asks the Prometheus of `docker compose --profile observability` for the dashboard's own queries. The result is
not a screenshot of Grafana: only queries, titles, units and positions are the dashboard's.
"""

import argparse
import json
import math
import re
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import matplotlib.dates as dates
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter, PercentFormatter

DASHBOARD = Path(__file__).parent / "dashboards" / "deit.json"
STEP_S = 5
RATE_INTERVAL = "20s"  # Grafana takes four scrape intervals
UNITS = {"s": "s", "bytes": "B", "reqps": "req/s", "ops": "/s", "short": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the dashboard's panels from a running Prometheus.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if not panel["title"].startswith("GPU")]
    end_s = time.time()
    start_s = end_s - 60 * arguments.minutes
    columns = 3
    figure, axes = plt.subplots(math.ceil(len(panels) / columns), columns, figsize=(18, 3.4 * len(panels) / columns))
    for panel, axis in zip(panels, axes.flat, strict=False):
        draw(panel, axis, start_s, end_s)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    day = time.strftime("%Y-%m-%d", time.gmtime(end_s))
    figure.suptitle(f"The dashboard's panels, drawn by deploy/grafana/render.py from Prometheus, {day} (UTC)")
    figure.tight_layout()
    figure.savefig(arguments.output, dpi=70)


def draw(panel: dict[str, Any], axis: Any, start_s: float, end_s: float) -> None:
    for target in panel["targets"]:
        for series in ask(target["expr"].replace("$__rate_interval", RATE_INTERVAL), start_s, end_s):
            times, values = zip(*((float(at), float(value)) for at, value in series["values"]), strict=True)
            name = re.sub(
                r"\{\{(\w+)\}\}", lambda match, of=series: of["metric"].get(match[1], ""), target["legendFormat"]
            )
            axis.plot(as_dates(times), values, label=name)
    axis.set_title(panel["title"], loc="left", fontweight="bold")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axis.yaxis.set_major_formatter(PercentFormatter(1) if unit == "percentunit" else EngFormatter(UNITS[unit]))
    axis.set_ylim(bottom=0)
    axis.set_xlim(*as_dates((start_s, end_s)))
    axis.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize="small", loc="upper left")


def as_dates(times: tuple[float, ...]) -> list[float]:
    """matplotlib's days since 1970."""
    return [at / 86400 for at in times]


def ask(query: str, start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Series of the query, from inside Prometheus' container, which is published nowhere."""
    parameters = {"query": query, "start": f"{start_s:.0f}", "end": f"{end_s:.0f}", "step": str(STEP_S)}
    url = f"http://127.0.0.1:9090/api/v1/query_range?{urlencode(parameters)}"
    command = ["docker", "compose", "exec", "-T", "prometheus", "curl", "-sS", url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    if answer["status"] != "success":
        raise SystemExit(f"Prometheus refuses {query}: {answer['error']}")
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


if __name__ == "__main__":
    main()
