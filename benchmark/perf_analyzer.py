"""NVIDIA's perf_analyzer against a running Triton: one invocation per cell, with its exit status and output row
checked.

A sweep in one invocation would stop at the first unstable level, leave it out of the CSV and still exit with 0.
https://github.com/triton-inference-server/perf_analyzer/blob/main/docs/cli.md
"""

import csv
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deit.errors import BenchmarkError

UNSTABLE = 2  # exit status when the last three windows did not agree
NEVER_STABLE = "unstable: no three windows of perf_analyzer agreed within 15 %"


@dataclass(frozen=True, kw_only=True)
class PerfAnalyzerRun:
    """What was measured. Latencies are those of a request, which is a whole batch; the rate counts images."""

    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def measure(
    environment: Path, *, url: str, model: str, batch_size: int, concurrency: int, requests: int, csv_file: Path
) -> PerfAnalyzerRun | None:
    """Run perf_analyzer once with random pixels over gRPC and keep its CSV; None if three windows never agreed.

    Args:
        environment: the folder that `make perf-analyzer` made.
        batch_size, concurrency: images of a request, and requests that are always in flight.
        requests: in each of the windows that must agree within 15 % (two shared cores do no better).

    Raises:
        BenchmarkError: perf_analyzer is not set up, or failed; the message ends with its own output.
    """
    command = [
        *(str(_binary(environment)), "-m", model, "-u", url, "-i", "grpc", "-b", str(batch_size)),
        *("--concurrency-range", f"{concurrency}:{concurrency}:1", "--input-data", "random"),
        *("--measurement-mode", "count_windows", "--measurement-request-count", str(requests)),
        *("-s", "15", "-r", "20", "-f", str(csv_file)),
    ]
    csv_file.parent.mkdir(parents=True, exist_ok=True)
    csv_file.unlink(missing_ok=True)
    libraries = ":".join(map(str, _library_folders(environment)))
    done = subprocess.run(
        command, env={**os.environ, "LD_LIBRARY_PATH": libraries}, capture_output=True, text=True, check=False
    )
    if done.returncode == UNSTABLE:
        return None
    if done.returncode != 0 or not csv_file.is_file():
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BenchmarkError(
            f"perf_analyzer exited with status {done.returncode} for {model} at {url}: {' '.join(words[-3:])}"
        )
    return read_cell(csv_file)


def read_cell(csv_file: Path) -> PerfAnalyzerRun:
    """The one row of perf_analyzer's CSV. Its latencies are in microseconds, its rate in images."""
    with csv_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != 1:
        raise BenchmarkError(f"{csv_file} has {len(rows)} rows, one was measured: perf_analyzer left a level out")
    row = rows[0]
    return PerfAnalyzerRun(
        images_per_s=float(row["Inferences/Second"]),
        p50_ms=float(row["p50 latency"]) / 1000,
        p95_ms=float(row["p95 latency"]) / 1000,
        p99_ms=float(row["p99 latency"]) / 1000,
    )


def _binary(environment: Path) -> Path:
    binary = environment / "bin" / "perf_analyzer"
    if not binary.is_file():
        raise BenchmarkError(f"{binary} is missing: set it up with `make perf-analyzer`")
    return binary


def _library_folders(environment: Path) -> list[Path]:
    """libb64 and CUDA's runtime, to which the binary links even without a GPU."""
    return [
        *environment.glob("libb64/usr/lib/*"),
        *environment.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"),
    ]
