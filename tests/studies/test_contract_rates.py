import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from studies.contract_rates import app
from tests.conftest import encoded, photograph


@pytest.mark.soak
def test_the_command_measures_every_contract(tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(encoded(photograph(64, 48)))
    done = CliRunner().invoke(app, ["--image", str(picture), "--rounds", "1", "--seconds", "1"])
    assert done.exit_code == 0, done.output
    assert len(re.findall(r"^\| [\w/ ,]+ \| \d\.\d\d \(", done.output, re.MULTILINE)) == 8
