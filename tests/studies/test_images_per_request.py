import re

import pytest
from typer.testing import CliRunner

from serving.gateway.connection import wait_until_ready
from serving.gateway.models import discover_models
from studies.images_per_request import MODEL, JoiningConfig, app, engine


def test_the_gateway_takes_the_simulated_engine_for_a_triton_with_a_gpu() -> None:
    with engine(JoiningConfig(images_per_request=[1])) as port:
        url = wait_until_ready([f"127.0.0.1:{port}"], timeout_s=200, raise_if_in_vain=lambda: None)
        model = discover_models(url).models[MODEL]
    assert (model.is_on_gpu, model.largest_batch, len(model.labels)) == (True, 64, 1000)


@pytest.mark.soak
def test_the_command_measures_each_setting() -> None:
    settings = ["--images-per-request", "1", "--images-per-request", "8", "--gateways", "1", "--gateways", "2"]
    done = CliRunner().invoke(app, [*settings, "--rounds", "1", "--seconds", "1"])
    assert done.exit_code == 0, done.output
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+\.\d) \| [^|]+ \| (\d+\.\d+) \(", done.output, re.MULTILINE)
    assert [row[:2] for row in rows] == [("1", "1"), ("1", "8"), ("2", "1"), ("2", "8")]
    assert rows[0][2] == "1.0"
    assert all(float(gateway_ms) > 0.1 for *_, gateway_ms in rows)
