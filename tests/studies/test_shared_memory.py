import re

from typer.testing import CliRunner

from studies.shared_memory import app


def test_both_ways_are_measured_with_a_real_triton() -> None:
    done = CliRunner().invoke(app, ["--images-per-request", "8", "--images", "64", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    rows = re.findall(r"^\| 8 \| ([a-z ]+) \| ([\d.]+) .* \| ([\d.]+) ", done.output, re.MULTILINE)
    assert [row[0] for row in rows] == ["in the request", "shared memory"]
    assert all(float(figure) > 0 for row in rows for figure in row[1:])
