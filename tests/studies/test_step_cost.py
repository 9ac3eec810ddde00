import re

import pytest
from typer.testing import CliRunner

from deit.errors import TrainingError
from studies.step_cost import LOSSES, CostConfig, StepCost, app, cost_table, measure_loss

SMALL = ["patch_size=8", "embed_dim=24", "depth=2", "num_heads=3"]
CONFIG = CostConfig(
    model_arg=SMALL, teacher_arg=SMALL, num_classes=3, image_size=16, batch_size=2, steps=1, rounds=1, device="cpu"
)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_each_loss_is_timed(loss: str) -> None:
    step_ms, peak_bytes = measure_loss(CONFIG, loss)
    assert step_ms > 0
    assert peak_bytes > 50 * 2**20  # an interpreter with torch


def test_a_teacher_without_tokens_is_told() -> None:
    with pytest.raises(TrainingError, match="the teacher resnet18 is not a vision transformer"):
        measure_loss(CostConfig(**{**vars(CONFIG), "teacher": "resnet18", "teacher_arg": None}), "vitkd")


def test_the_table_tells_what_a_loss_adds() -> None:
    costs = {
        "none": StepCost(step_ms=(10.0, 12.0, 11.0), peak_bytes=1000 * 2**20),
        "vitkd": StepCost(step_ms=(22.0, 20.0, 30.0), peak_bytes=1250 * 2**20),
    }
    table = cost_table(CONFIG, costs).splitlines()
    assert table[-1] == "| vitkd | 22.0 | 20.0 to 30.0 | +100% | 1,250 | +250 |"


@pytest.mark.soak
def test_the_command_measures_each_loss_in_a_process_of_its_own() -> None:
    arguments = [part for value in SMALL for part in ("--model-arg", value, "--teacher-arg", value)]
    small = ["--image-size", "16", "--batch-size", "2", "--steps", "1", "--rounds", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, *small])
    assert done.exit_code == 0, done.output
    assert re.findall(r"^\| ([a-z+ ]+) \|", done.output, re.MULTILINE) == ["loss", *LOSSES]
