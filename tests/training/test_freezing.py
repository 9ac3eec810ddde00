"""Fine-tuning of pretrained weights: frozen blocks, and learning rates by layer."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from deit.errors import TrainingError
from tests.training.conftest import tiny_student
from tests.training.test_data import config as options
from tests.training.test_loop import CONVNET, config, same, weights_of
from training.distillation import Objective
from training.freezing import freeze, to_training
from training.learner import loss_of
from training.loop import train
from training.model import create_model
from training.optimizer import create_optimizer, rate_of
from training.schedule import learning_rate_schedule

HEADS = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def convnet() -> nn.Module:
    arguments = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1]}
    return create_model("resnet18", num_classes=3, image_size=32, drop_path=0.5, model_args=arguments)


@pytest.mark.parametrize(
    ("blocks", "trained"), [("1", HEADS | {"dist_token", "norm.weight", "norm.bias"}), ("all", HEADS | {"dist_token"})]
)
def test_the_first_blocks_stay_and_the_distillation_token_learns(blocks: str, trained: set[str]) -> None:
    model = tiny_student()
    text = freeze(model, blocks)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learns if not name.startswith("blocks.1.")} == trained
    assert any(name.startswith("blocks.1.") for name in learns) == (blocks == "1")
    assert f"{1 if blocks == '1' else 2} of 2 blocks are frozen" in text


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(TrainingError, match="--freeze-blocks 3: the model has 2 blocks; give at most 2, or all"):
        freeze(tiny_student(), "3")


def test_a_model_whose_layers_timm_does_not_know_is_refused() -> None:
    with pytest.raises(TrainingError, match="--freeze-blocks: timm knows no groups of layers of Linear: leave it out"):
        freeze(nn.Linear(2, 2), "1")


def test_a_frozen_convnet_keeps_its_batch_statistics_and_drops_no_path() -> None:
    model = convnet()
    freeze(model, "2")
    to_training(model)
    frozen, trained = model.layer2, model.layer3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(4, 3, 32, 32))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in trained.modules())
    assert {name.split(".")[0] for name in changed} == {"layer3", "layer4"}


def test_a_run_leaves_frozen_weights_as_they_were(
    colours_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {"model": "resnet18", "model_arg": CONVNET, "image_size": 32, "epochs": 1, "warmup_epochs": 0}
    train(config(colours_data, tmp_path, name="first", **plain))
    start = str(tmp_path / "first" / "checkpoint")
    with caplog.at_level(logging.INFO):
        train(config(colours_data, tmp_path, name="probe", **plain, initial_checkpoint=start, freeze_blocks="all"))
    assert "stem and 4 of 4 blocks are frozen: 51 parameters are trained" in caplog.text
    before, after = weights_of(tmp_path / "first"), weights_of(tmp_path / "probe")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    train(config(colours_data, tmp_path, name="again", **plain, initial_checkpoint=start, freeze_blocks="all"))
    assert same(after, weights_of(tmp_path / "again"))


def test_each_block_learns_more_slowly_than_the_next() -> None:
    settings = options(layer_decay=0.5, learning_rate=0.1, distillation="hard", teacher="x")
    model = tiny_student()
    objective = Objective(model, loss_of(settings))
    optimizer = create_optimizer(objective, settings, torch.device("cpu"))
    learning_rate_schedule(optimizer, settings, 10)(settings.warmup_epochs, 0)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    peak = rates[id(model.head.weight)]
    assert rate_of(optimizer) == peak
    expected = {model.head_dist.weight: 1, model.dist_token: 1, model.norm.weight: 1 / 2, model.cls_token: 1 / 8}
    expected |= {model.blocks[1].norm1.weight: 1 / 2, model.blocks[0].norm1.weight: 1 / 4}
    for weight, factor in expected.items():
        assert rates[id(weight)] == pytest.approx(peak * factor)
    assert len(rates) == len(list(objective.parameters()))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"freeze_blocks": "most", "initial_checkpoint": "x"}, "--freeze-blocks 'most': must be a number of blocks"),
        ({"freeze_blocks": "2"}, "--freeze-blocks needs an --initial-checkpoint"),
    ],
)
def test_freezing_that_cannot_work_is_refused(changes: dict[str, str], finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        options(**changes)
