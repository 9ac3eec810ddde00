import pytest
import torch
from torch import Tensor, nn

from tests.training.test_data import config
from training.optimizer import create_optimizer, restore_optimizer, update

GPU = torch.device("cuda")  # decides that the optimiser is fused; torch's fused AdamW runs on a CPU's weights as well
CPU = torch.device("cpu")


def stepped(model: nn.Linear, optimizer: torch.optim.Optimizer, loss: float) -> tuple[bool, Tensor]:
    """A step whose loss is said to be `loss`, and how far the weights went."""
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    moved = update(optimizer, scaler, torch.tensor([loss, 1.0]))
    return moved, (model.weight.detach() - before).abs().max()


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_step_whose_loss_is_no_number_changes_nothing_not_even_the_first(
    optimizer_name: str, device: torch.device
) -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(model.state_dict())
    asked = config(optimizer=optimizer_name, learning_rate=0.01)
    optimizer, plain = create_optimizer(model, asked, device), create_optimizer(other, asked, CPU)
    for loss in (float("nan"), 1.0, float("inf"), 1.0):
        moved, distance = stepped(model, optimizer, loss)
        assert (distance > 0) == (loss == 1.0)
        assert moved == (loss == 1.0) or (device == GPU and optimizer_name == "adamw")  # left to the device
    for _ in range(2):
        stepped(other, plain, 1.0)
    torch.testing.assert_close(model.weight, other.weight)


@pytest.mark.parametrize(("before", "after"), [(CPU, GPU), (GPU, CPU)])
def test_a_state_from_another_device_keeps_the_optimiser_of_this_one(before: torch.device, after: torch.device) -> None:
    model = nn.Linear(4, 3)
    first = create_optimizer(model, config(learning_rate=0.01), before)
    stepped(model, first, 1.0)
    second = create_optimizer(model, config(learning_rate=0.01), after)
    restore_optimizer(second, first.state_dict())
    assert [group["fused"] for group in second.param_groups] == [True if after == GPU else None] * 2
    assert stepped(model, second, float("nan"))[1] == 0
    assert stepped(model, second, 1.0)[1] > 0
