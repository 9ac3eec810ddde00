"""`deit benchmark`: a command for each measurement; what it needs is imported only when it runs."""

import functools
import os
import signal
import sys

import typer

from benchmark.config import AccuracyConfig, HttpConfig, PeersConfig, ReportConfig, ThroughputConfig
from benchmark.gpu_check.config import GpuCheckConfig
from deit.options import command_of

VERDICT_COLOURS = {"passed": "green", "failed": "red", "measured": "cyan", "not possible here": "yellow"}

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def benchmark() -> None:
    """Measure models, servers and machines, and report the results."""
    # An exception, so that servers which were started for a measurement end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@app.command("accuracy")
@command_of(AccuracyConfig)
def accuracy(config: AccuracyConfig) -> None:
    """Measure a model's accuracy in PyTorch, ONNX, Triton and over HTTP, and where these and its variants differ."""
    from benchmark.accuracy import measure_accuracy
    from benchmark.environment import this_environment
    from benchmark.outcome import keep
    from benchmark.wrong_answers import write_page

    environment = this_environment()
    judged = measure_accuracy(config)
    keep(judged.results, environment, config.results)
    if config.page is not None:
        write_page(config.page, judged)
        typer.echo(f"wrong answers in {config.page}")


@app.command("throughput")
@command_of(ThroughputConfig)
def throughput(config: ThroughputConfig) -> None:
    """Measure a model in Triton with perf_analyzer: images per second by batch size and concurrency.

    With --pytorch also as in the paper: the largest batch, the mean of 30 runs.
    """
    from benchmark.environment import this_environment
    from benchmark.outcome import keep
    from benchmark.throughput import measure_throughput

    environment = this_environment()
    keep(measure_throughput(config), environment, config.results)


@app.command("http")
@command_of(HttpConfig)
def http(config: HttpConfig) -> None:
    """Measure rate and latency of /classify with real photographs, and its cost in processor time and memory."""
    from benchmark.environment import this_environment
    from benchmark.gateway import measure_http
    from benchmark.outcome import keep

    environment = this_environment()
    keep(measure_http(config), environment, config.results)


@app.command("peers")
@command_of(PeersConfig)
def peers(config: PeersConfig) -> None:
    """Compare our server with others, in turns: same model, images and client."""
    from benchmark.environment import this_environment
    from benchmark.outcome import keep
    from benchmark.peers.compare import compare_servers

    environment = this_environment()
    keep(compare_servers(config), environment, config.results)


@app.command("gpu-check")
@command_of(GpuCheckConfig)
def gpu_check(config: GpuCheckConfig) -> None:
    """Check a GPU machine, from the driver to predictions over HTTP.

    Takes minutes and runs unattended; a second call resumes the first. Prints what passed, what failed and what is
    not possible here, with reasons. Exit status 1 if anything failed.
    """
    from rich.console import Console
    from rich.table import Table

    from benchmark.gpu_check.check import run_steps
    from benchmark.outcome import console

    wide = Console(stderr=True, width=160) if not console.is_terminal else console
    table = Table(title="gpu-check")
    for heading in ("step", "verdict", "what", "found"):
        table.add_column(heading, overflow="fold")
    failed = 0
    for outcome in run_steps(config, sys.argv[sys.argv.index("gpu-check") + 1 :]):
        when = "earlier" if outcome.is_old else f"{outcome.seconds:.0f} s"
        console.print(f"{outcome.step}: {len(outcome.findings)} findings, {when}")
        for place, finding in enumerate(outcome.findings):
            failed += finding.verdict == "failed"
            table.add_row(
                f"{outcome.step}, {when}" if place == 0 else "",
                f"[{VERDICT_COLOURS[finding.verdict]}]{finding.verdict}[/]",
                finding.name,
                finding.text,
            )
    wide.print(table)
    if failed:
        raise typer.Exit(1)


@app.command("report")
@command_of(ReportConfig)
def report(config: ReportConfig) -> None:
    """Write the tables and figures of earlier measurements, as Markdown and as one HTML page."""
    from benchmark.report import drawn, filled, markdown, page, read_report
    from deit.durable import write_file

    reports = functools.cache(functools.partial(read_report, config.results))
    written = {
        config.output / "report.md": markdown(reports(config.machine)),
        config.output / "report.html": page(reports(config.machine)),
    }
    for document in config.document:
        text = document.read_text()
        written[document] = filled(text, reports, images=os.path.relpath(config.images, document.parent))
        written |= {config.images / f"{name}.svg": svg for name, svg in drawn(text, reports).items()}
    for path, content in written.items():
        write_file(path, content)
        typer.echo(f"wrote {path}")
