"""One step of the check, as a process: `python -m benchmark.gpu_check.step NAME OPTION...`."""

import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

import typer

from benchmark.environment import this_environment
from benchmark.gpu_check.check import findings_file
from benchmark.gpu_check.config import STEPS, GpuCheckConfig
from benchmark.gpu_check.finding import Finding, NotPossible, write_findings
from benchmark.results import append, recorded, results_file
from deit.options import command_of

Step = Callable[[GpuCheckConfig], Iterator[Finding]]


def run(name: str, config: GpuCheckConfig, command: str) -> None:
    """Write the step's findings and records as they come; an exception is left to the caller's log."""
    began = time.monotonic()
    environment = this_environment()
    step: Step = importlib.import_module(f"benchmark.gpu_check.{name}").check
    findings: list[Finding] = []
    file = findings_file(config, name)
    try:
        for finding in step(config):
            print(f"{finding.verdict}: {finding.name}: {finding.text}", flush=True)
            findings.append(finding)
            if finding.results:
                records = recorded(finding.results, environment, command)
                append(results_file(config.results, environment), records)
            write_findings(file, findings, seconds=time.monotonic() - began, finished=False)
    except NotPossible as reason:
        findings.append(Finding(name=name, verdict="not possible here", text=str(reason)))
    write_findings(file, findings, seconds=time.monotonic() - began, finished=True)


def main() -> None:
    name, *arguments = sys.argv[1:]
    if name not in STEPS:
        raise SystemExit(f"{name}: choose from {', '.join(STEPS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    app = typer.Typer()

    @app.command()
    @command_of(GpuCheckConfig)
    def step(config: GpuCheckConfig) -> None:
        run(name, config, f"deit benchmark gpu-check --step {name}")

    app(arguments)


if __name__ == "__main__":
    main()
