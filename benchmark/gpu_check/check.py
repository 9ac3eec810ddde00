"""Runs the steps, each in a separate process: a crash, a hang or a full GPU ends one step and not the check."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark.gpu_check.config import LIMITS_S, GpuCheckConfig
from benchmark.gpu_check.finding import Finding, read_findings


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """A step with its findings; `is_old` when an earlier call of the check had finished it."""

    step: str
    findings: tuple[Finding, ...]
    seconds: float
    is_old: bool


def run_steps(config: GpuCheckConfig, arguments: list[str]) -> Iterator[StepOutcome]:
    """Each step's outcome as soon as it is known.

    Args:
        arguments: the command line after `deit benchmark gpu-check`, which the step's process reads again.
    """
    config.work.mkdir(parents=True, exist_ok=True)
    for step in config.steps:
        file = findings_file(config, step)
        findings, seconds, finished = read_findings(file)
        if finished and not config.again:
            yield StepOutcome(step=step, findings=tuple(findings), seconds=seconds, is_old=True)
            continue
        file.unlink(missing_ok=True)
        began = time.monotonic()
        ending = run_step(config, step, arguments)
        findings, _, finished = read_findings(file)
        if not finished:
            findings.append(Finding(name=step, verdict="failed", text=f"{ending}; log: {log_file(config, step)}"))
        yield StepOutcome(step=step, findings=tuple(findings), seconds=round(time.monotonic() - began, 1), is_old=False)


def run_step(config: GpuCheckConfig, step: str, arguments: list[str]) -> str:
    """How the step's process ended, in words. Everything that it printed is in its log."""
    limit_s = LIMITS_S[step]
    with log_file(config, step).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmark.gpu_check.step", step, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"ended after its limit of {limit_s} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # what the step started and left running, if anything
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"ended with status {status}: {last_line(log_file(config, step))}"


def last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"


def findings_file(config: GpuCheckConfig, step: str) -> Path:
    return config.work / f"{step}.json"


def log_file(config: GpuCheckConfig, step: str) -> Path:
    return config.work / f"{step}.log"
