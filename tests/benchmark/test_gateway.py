"""`deit benchmark http` against a real `deit serve` that it starts itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.gateway import stages_ms
from benchmark.processes import ServerProcesses
from benchmark.results import read
from benchmark.tables import unavoidable
from deit.errors import BenchmarkError
from tests.conftest import REPOSITORY_ROOT, encoded, photograph


@pytest.fixture
def photographs_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(4):
        (folder / f"{seed}.jpg").write_bytes(encoded(photograph(160, 120, seed)))
    return folder


def test_a_gateway_is_measured_with_its_costs_and_its_stages(photographs_folder, tmp_path):
    command = [
        *(sys.executable, "-m", "deit", "benchmark", "http", "--serve", "model_repository", "--model", "deit_cifar10"),
        *("--images", photographs_folder, "--concurrency", "2", "--load", "0.5", "--seconds", "1", "--rounds", "1"),
        *("--no-engine", "--results", tmp_path / "results"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    closed, opened = read(list((tmp_path / "results").glob("*.jsonl")))
    assert (closed.conditions["loop"], closed.conditions["concurrency"]) == ("closed", 2)
    assert (opened.conditions["loop"], opened.conditions["load"]) == ("open", 0.5)
    assert closed.precision == "fp32"  # as the model's provenance says
    for record in (closed, opened):
        figures = {name: figure.value for name, figure in record.figures.items()}
        assert figures["images_per_s"] > 0
        assert figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert figures["refused_share"] == 0
        assert figures["mean_batch"] >= 1
        assert 0 < figures["client_cores"] < 1
        assert figures["memory_mib"] > 100  # the gateway, Triton and the stubs of two instances
        # each of them works for an image, and together they are all of it
        parts = [figures[f"cpu_{name}_ms_per_image"] for name in ("tritonserver", "triton_python_backend_stub")]
        assert 0 < sum(parts) < figures["server_cpu_ms_per_image"]
        assert 0 < int(unavoidable(record).removesuffix(" %")) < 100
        assert figures["stage_decode_ms"] > 0
        assert figures["triton_compute_infer_ms"] > 0
        assert 0 < figures["stage_model_ms"] < figures["p99_ms"]
    assert closed.value("mean_batch") <= 2


def test_the_header_server_timing_is_read_by_stage():
    assert stages_ms("receive;dur=0.1, decode;dur=2.5, model;dur=18.0") == {"receive": 0.1, "decode": 2.5, "model": 18}
    assert stages_ms("") == {}


def test_a_port_where_nothing_listens_is_named():
    with pytest.raises(BenchmarkError, match="listens on port 9"):
        ServerProcesses.listening_at("http://127.0.0.1:9/classify")
