"""`deit benchmark gpu-check`."""

import sys

import typer

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.options import console
from deit.options import command_of

COLOURS = {"passed": "green", "failed": "red", "measured": "cyan", "not possible here": "yellow"}


@command_of(GpuCheckConfig)
def gpu_check(config: GpuCheckConfig) -> None:
    """Check a GPU host from end to end: rates, training, export, Triton, HTTP; minutes, unattended, resumable.

    Prints what passed, failed or is not possible here and why, and ends with status 1 if something failed.
    """
    from rich.console import Console
    from rich.table import Table

    from benchmark.gpu_check.check import run_steps

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
                f"[{COLOURS[finding.verdict]}]{finding.verdict}[/]",
                finding.name,
                finding.text,
            )
    wide.print(table)
    if failed:
        raise typer.Exit(1)
