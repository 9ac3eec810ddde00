import dataclasses
import json
from pathlib import Path

import pytest

from benchmark.environment import this_environment
from benchmark.results import Environment, Figure, Record, append, read, results_file
from deit.errors import BenchmarkError


@pytest.fixture(scope="module")
def environment() -> Environment:
    return this_environment()


def record(environment: Environment, **changes: object) -> Record:
    values = {
        "kind": "engine",
        "model": "deit_tiny",
        "precision": "fp32",
        "command": "deit benchmark engines",
        "environment": environment,
        "conditions": {"batch_size": 8, "engine": "onnxruntime"},
        "figures": {"images_per_s": Figure.of([50.0, 54.0, 49.0], "images/s")},
    }
    return Record(**{**values, **changes})


def test_records_come_back_as_they_were_written_and_files_only_grow(environment, tmp_path):
    file = tmp_path / "results.jsonl"
    first, second = record(environment), record(environment, measured_at="2099-01-01T00:00:00+00:00")
    append(file, [first])
    append(file, [second])
    assert read([file]) == [first, second]
    assert first.figures["images_per_s"] == Figure(value=50, unit="images/s", lowest=49, highest=54, runs=3)
    assert first.value("images_per_s") == 50
    assert first.value("p50_ms") is None


def test_the_environment_names_the_machine_and_the_commit(environment):
    assert environment.cores >= 1
    assert f"{environment.cores} cores" in environment.machine
    assert environment.versions["numpy"].startswith("1.")
    assert environment.commit is None or len(environment.commit) == 12


def test_a_file_is_named_after_the_day_and_the_machine(environment):
    named = dataclasses.replace(environment, machine="AMD EPYC, 2 cores, NVIDIA H100 80GB")
    assert results_file(Path("results"), named).name[10:] == "_amd-epyc-2-cores-nvidia-h100-80gb.jsonl"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"kind": "guess"}, "kind"),
        ({"colour": "red"}, "colour"),
        ({"figures": {"p50_ms": {"value": 1.0, "unit": "ms"}}}, "needs images_per_s"),
        ({"figures": {"images_per_s": {"value": "fast", "unit": "images/s"}}}, "images_per_s.value"),
        ({"figures": {}}, "has figures, or says why it failed"),
    ],
)
def test_a_line_that_is_no_measurement_is_named(environment, tmp_path, change, finding):
    file = tmp_path / "results.jsonl"
    append(file, [record(environment)])
    line = json.loads(file.read_text())
    file.write_text(file.read_text() + json.dumps({**line, **change}) + "\n")
    with pytest.raises(BenchmarkError, match=r"results\.jsonl:2 is not a measurement") as error:
        read([file])
    assert finding in str(error.value)
