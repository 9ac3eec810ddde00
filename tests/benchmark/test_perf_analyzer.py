from pathlib import Path

import pytest

from benchmark.perf_analyzer import measure, read_cell
from deit.errors import BenchmarkError

# As perf_analyzer 2.50 wrote it for a model on two cores.
HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
)
ROW = "8,101.068,41,1210,1433,189,74237,32,3,80142,95021,98011,105897\n"


def test_a_row_gives_images_per_second_and_milliseconds(tmp_path: Path) -> None:
    file = tmp_path / "cell.csv"
    file.write_text(HEADER + ROW)
    cell = read_cell(file)
    assert (cell.images_per_s, cell.p50_ms, cell.p95_ms, cell.p99_ms) == (101.068, 80.142, 98.011, 105.897)


def test_a_level_that_was_left_out_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "cell.csv"
    file.write_text(HEADER)
    with pytest.raises(BenchmarkError, match="has 0 rows"):
        read_cell(file)


def environment(tmp_path: Path, script: str) -> Path:
    binary = tmp_path / "environment" / "bin" / "perf_analyzer"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return tmp_path / "environment"


def measure_with(tmp_path: Path, script: str) -> object:
    return measure(
        environment(tmp_path, script),
        url="127.0.0.1:8001",
        model="tiny",
        batch_size=1,
        concurrency=8,
        requests=50,
        csv_file=tmp_path / "cell.csv",
    )


def test_an_unstable_cell_has_no_figures(tmp_path: Path) -> None:
    assert measure_with(tmp_path, "exit 2") is None


def test_a_failure_carries_perf_analyzers_own_words(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="status 99 for tiny at 127.0.0.1:8001: failed to connect"):
        measure_with(tmp_path, "echo 'failed to connect' >&2; exit 99")


def test_an_environment_that_is_not_set_up_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="make perf-analyzer"):
        measure(
            tmp_path,
            url="127.0.0.1:8001",
            model="tiny",
            batch_size=1,
            concurrency=1,
            requests=50,
            csv_file=tmp_path / "cell.csv",
        )
