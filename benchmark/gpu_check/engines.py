"""The step `engines`: images/s of the exported graphs in ONNX Runtime, as Triton's backend calls it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.export import model_of, published
from benchmark.gpu_check.finding import Finding, judged
from benchmark.gpu_check.host import device_of
from benchmark.gpu_check.timing import rate
from benchmark.results import Condition, Result
from deit.cuda_provider import cuda_provider, gpu_session
from deit.model import IMAGES

BATCHES = (1, 8, 32, 128)
BUDGET_S = 1.0


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """Pixels come from the host's memory and probabilities go back to it, as they do in Triton."""
    device = device_of(config)
    for precision, file in published(config).items():
        session = open_session(file, device)
        active = session.get_providers()
        if device.type == "cuda":
            yield judged(f"{precision}: provider", active[0] == "CUDAExecutionProvider", ", ".join(active))
        for batch_size in (2,) if config.rehearse else BATCHES:
            yield measured(session, precision, batch_size, config, device)


def open_session(file: Path, device: torch.device) -> Any:
    """With the CUDA provider, float32 as float32; on the CPU in a rehearsal."""
    if device.type == "cpu":
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return gpu_session(file, onnxruntime.SessionOptions(), [cuda_provider()])


def measured(session: Any, precision: str, batch_size: int, config: GpuCheckConfig, device: torch.device) -> Finding:
    shape = [batch_size, *session.get_inputs()[0].shape[1:]]
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = rate(
        lambda: session.run(None, {IMAGES: images}),
        batch_size,
        "images/s",
        torch.device("cpu"),  # run() returns when the answer is there
        budget_s=0.1 if config.rehearse else BUDGET_S,
    )
    conditions: dict[str, Condition] = {
        "batch_size": batch_size,
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "device": device.type,
        "instances": 1,
    }
    result = Result("engine", model_of(precision), precision, conditions, {"images_per_s": found})
    return Finding(
        name=f"{precision}, batch {batch_size}",
        verdict="measured",
        text=f"{found.value:.0f} images/s",
        results=(result,),
    )
