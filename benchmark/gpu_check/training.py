"""The step `training`: a step of DeiT-S next to timm's own parts, and a run that is stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.finding import Finding, NotPossible, judged
from benchmark.gpu_check.host import device_of
from benchmark.training_speed import TrainingSpeedConfig, measure_training
from deit.checkpoint import WEIGHTS_FILE

STEP_AIM = 1.3
"""Times timm's step."""

# On a GPU the backward pass of attention adds with atomics, in another order each time; over a few steps at this
# learning rate the weights of a resumed run stay this close to those of an uninterrupted one.
RESUME_TOLERANCE = 2e-3


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """Needs photographs."""
    device = device_of(config)
    if config.images is None:
        raise NotPossible("training reads photographs: give a folder or parquet file of them with --images")
    for precision in ("fp32",) if config.rehearse else ("bf16", "fp16"):
        yield steps(config, precision)
    yield resumed(config, device)


def steps(config: GpuCheckConfig, precision: str) -> Finding:
    """Steps of hard distillation, ours and timm's in turns, data left out."""
    assert config.images is not None
    tiny = config.rehearse
    benchmark = TrainingSpeedConfig(
        images=config.images,
        rounds=1,
        workers=0 if tiny else max(2, len(os.sched_getaffinity(0)) - 2),
        loader_images=64 if tiny else 2048,
        batch_size=4 if tiny else 256,
        steps=2 if tiny else 15,
        model="deit_tiny_distilled_patch16_224" if tiny else "deit_small_distilled_patch16_224",
        teacher="resnet18" if tiny else "regnety_160",
        precision=precision,  # type: ignore[arg-type]
        compile=not tiny,
        results=config.results,
    )
    results = measure_training(benchmark)
    rates = {
        (str(result.conditions["part"]), str(result.conditions["implementation"])): result.figures["images_per_s"].value
        for result in results
    }
    ratio = rates["step", "here"] / rates["step", "timm"]
    loader = rates["loader", "here"] / rates["loader", "timm"]
    text = (
        f"step {rates['step', 'here']:.0f} images/s, {ratio:.2f} times timm's; "
        f"loader {rates['loader', 'here']:.0f} images/s, {loader:.2f} times timm's"
    )
    name = f"{benchmark.model} from {benchmark.teacher}, {precision}{'' if tiny else ', compiled'}"
    if tiny:
        return Finding(name=name, verdict="measured", text=text, results=tuple(results))
    return judged(name, ratio >= STEP_AIM, f"{text}; aim {STEP_AIM}", *results)


def resumed(config: GpuCheckConfig, device: torch.device) -> Finding:
    """A run stopped by SIGTERM inside an epoch and resumed ends where an uninterrupted one ends."""
    data = folder_of(config)
    runs = config.work / "runs"
    arguments = [
        *("--data", str(data), "--runs", str(runs), "--model", "deit_tiny_patch16_224", "--image-size", "64"),
        *("--epochs", "2", "--warmup-epochs", "0", "--batch-size", "16", "--learning-rate", "1e-4", "--seed", "1"),
        *("--precision", "fp32", "--workers", "2", "--device", device.type, "--random-erasing", "0"),
    ]
    run_training([*arguments, "--name", "whole"])
    stop_and_resume([*arguments, "--name", "stopped"], runs / "stopped")
    whole, stopped = (load_file(runs / name / "checkpoint" / WEIGHTS_FILE) for name in ("whole", "stopped"))
    difference = max(float((whole[key] - stopped[key]).abs().max()) for key in whole)
    allowed = 0.0 if device.type == "cpu" else RESUME_TOLERANCE
    return judged(
        "a run stopped by SIGTERM and resumed",
        difference <= allowed,
        f"weights differ by at most {difference:.1e} from an uninterrupted run, allowed {allowed:g}",
    )


def folder_of(config: GpuCheckConfig) -> Path:
    """A small data set of two classes from the photographs."""
    from training.images import open_images

    assert config.images is not None
    source = open_images(config.images, "test")
    target = config.work / "photographs"
    count = min(len(source), 48)
    for split, wanted in (("train", 64 if config.rehearse else 256), ("val", 8)):
        for place in range(wanted):
            folder = target / split / f"class{place % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{place}.jpeg").write_bytes(source.encoded(place % count))
    return target


def run_training(arguments: list[str]) -> None:
    """Raises CalledProcessError when the run fails; its output is in the step's log."""
    subprocess.run([sys.executable, "-m", "deit", "train", *arguments], check=True)


def stop_and_resume(arguments: list[str], folder: Path) -> None:
    """Stop the run after its first epoch has been written, inside the second, and let it go on."""
    process = subprocess.Popen([sys.executable, "-m", "deit", "train", *arguments])
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    print(json.dumps({"epochs done when stopped": done, "status": process.returncode}), flush=True)
    run_training([*arguments, "--resume"])
