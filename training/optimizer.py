"""The optimiser, and a step that skips losses and gradients that are not finite without waiting for the GPU."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from training.config import TrainConfig

FUSED = ("adamw", "adam")
"""timm's names of the optimisers that torch has as one kernel for all weights. Its SGD is left out: after skipping its
first step, it continues with a momentum that was never set (torch 2.15).
"""


def create_optimizer(objective: nn.Module, config: TrainConfig, device: torch.device) -> Optimizer:
    """timm's optimiser of that name; on a GPU torch's fused one, if there is one."""
    fused = {"fused": True} if device.type == "cuda" and config.optimizer in FUSED else {}
    optimizer: Optimizer = create_optimizer_v2(
        objective,
        opt=config.optimizer,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **fused,
    )
    return optimizer


def rate_of(optimizer: Optimizer) -> float:
    """The learning rate: with --layer-decay that of the heads, the highest."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load a saved state, also from a run on another kind of device; whether the optimiser is fused does not change."""
    for group, here in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        if "fused" in here:
            group["fused"] = here["fused"]
    optimizer.load_state_dict(saved)


def clip_gradients(
    optimizer: Optimizer, scaler: torch.amp.GradScaler, parameters: Iterable[Tensor], max_norm: float
) -> Tensor:
    """Scale the gradients to a norm of at most `max_norm`, and return the norm that they had."""
    scaler.unscale_(optimizer)
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def update(optimizer: Optimizer, scaler: torch.amp.GradScaler, numbers: Tensor) -> bool:
    """Move the weights if the step's numbers, such as its loss and its gradient's norm, are finite.

    A fused optimiser finds out on the GPU, so that the host need not wait. Returns whether the weights moved, as far as
    the host knows: True where it was left to the GPU.
    """
    is_finite = numbers.isfinite().all()
    by_itself = getattr(optimizer, "_step_supports_amp_scaling", False)  # as torch's GradScaler checks
    if scaler.is_enabled():  # it skips steps itself, and lowers its scale
        scaler.step(optimizer)
        scaler.update()
    elif by_itself:
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif is_finite:
        optimizer.step()
    return by_itself or bool(is_finite)


def read_later(numbers: Tensor) -> Callable[[], list[float]]:
    """A function that returns the numbers. On a GPU it waits only for their copy, not for what was queued since."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    copy = numbers.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        values: list[float] = copy.tolist()
        return values

    return read
