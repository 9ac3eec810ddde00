"""Throughput measured as in the paper: plain PyTorch, float32, the largest batch that fits, the mean of 30 runs.

Table 5 of arXiv:2012.12877; the settings are from https://github.com/facebookresearch/deit/issues/38.
"""

import statistics
import time

import torch
from torch import nn

from benchmark.results import Figure, Result
from training.opening import open_model
from training.processes import choose_device

RUNS = 30
WARM_UP_RUNS = 5
LARGEST_BATCH = 1024
LARGEST_BATCH_ON_CPU = 64
"""Far fewer keep a core busy; memory would hold thousands, and 30 runs of those take an hour."""


@torch.inference_mode()
def eager_rate(model: nn.Module, image_size: int, device: torch.device, *, runs: int = RUNS) -> tuple[int, Figure]:
    """The batch size, and images per second of the forward pass on batches in memory: the mean over the runs, as in
    the paper, and the spread.
    """
    model = model.eval().to(device)
    batch_size = LARGEST_BATCH_ON_CPU if device.type == "cpu" else largest_batch(model, image_size, device)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    for _ in range(min(WARM_UP_RUNS, runs)):
        _time_s(model, images)
    seconds = [_time_s(model, images) for _ in range(runs)]
    mean, lowest, highest = (batch_size / each for each in (statistics.fmean(seconds), max(seconds), min(seconds)))
    return batch_size, Figure(value=mean, unit="images/s", lowest=lowest, highest=highest, runs=runs)


def largest_batch(model: nn.Module, image_size: int, device: torch.device) -> int:
    """The largest power of two of images that the memory of the GPU holds."""
    batch_size = LARGEST_BATCH
    while True:
        try:
            _time_s(model, torch.randn(batch_size, 3, image_size, image_size, device=device))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            batch_size //= 2
            if not batch_size:
                raise
        else:
            return batch_size


def _time_s(model: nn.Module, images: torch.Tensor) -> float:
    began = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - began


def pytorch_model(name: str) -> tuple[nn.Module, int]:
    """A model in evaluation mode and the side of its images in pixels.

    Args:
        name: as training.opening understands it. timm's models get random weights, which do not change the time.

    Raises:
        CheckpointError: it cannot be opened.
    """
    trained = open_model(name, "--pytorch", downloads=False)
    return trained.model, trained.preprocessing.image_size


def measure_eager(names: list[str], device_name: str) -> list[Result]:
    """A result for each model.

    Raises:
        CheckpointError: one cannot be opened.
    """
    device = choose_device(device_name)
    opened = {name: pytorch_model(name) for name in names}  # all are found before the long part
    results = []
    for name, (model, image_size) in opened.items():
        batch_size, rate = eager_rate(model, image_size, device)
        results.append(
            Result(
                kind="eager",
                model=name,
                precision="fp32",
                conditions={"batch_size": batch_size, "device": device.type, "pytorch": name},
                figures={"images_per_s": rate},
            )
        )
    return results
