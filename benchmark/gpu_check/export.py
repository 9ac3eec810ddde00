"""The step `export`: `deit export --engine cuda` in every precision, judged on the GPU against PyTorch."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.finding import Finding, NotPossible, judged
from benchmark.gpu_check.host import device_of

NAME = "gpu_check"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """Needs a trained checkpoint and photographs; the gate itself refuses a session that is not on the GPU."""
    if config.checkpoint is None or config.images is None:
        raise NotPossible("export compares a trained model with PyTorch on photographs: give --checkpoint and --images")
    device_of(config)
    for precision in ("fp32",) if config.rehearse else PRECISIONS:
        yield exported(config, precision)


def exported(config: GpuCheckConfig, precision: str) -> Finding:
    """One precision, in a separate process."""
    done = subprocess.run(command(config, precision), capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, flush=True)
    name = f"deit export --engine {engine(config)} --precision {precision}"
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return judged(name, False, re.sub(r"\s+", " ", lines[-1] if lines else "it printed nothing")[:600])
    folder = Path(done.stdout.split()[-1])
    provenance = json.loads((folder / "provenance.json").read_text())
    return judged(
        name,
        True,
        f"{provenance['parity_images']} images, largest difference of a probability "
        f"{provenance['parity_max_difference']:.1e}",
    )


def command(config: GpuCheckConfig, precision: str) -> list[str]:
    labels = () if config.checkpoint is not None and config.checkpoint.is_dir() else ("--labels", "imagenet-1k")
    architecture = () if config.architecture is None else ("--architecture", config.architecture)
    return [
        *(sys.executable, "-m", "deit", "export", "--checkpoint", str(config.checkpoint), *architecture, *labels),
        *("--images", str(config.images), "--name", NAME, "--repository", str(config.repository)),
        *("--precision", precision, "--engine", engine(config)),
    ]


def engine(config: GpuCheckConfig) -> str:
    return "onnxruntime" if config.rehearse else "cuda"


def model_of(precision: str) -> str:
    """The name under which `deit export` publishes a precision."""
    return NAME if precision == "fp32" else f"{NAME}_{precision}"


def published(config: GpuCheckConfig) -> dict[str, Path]:
    """By precision the graph that the step exported. Raises NotPossible when there is none."""
    found = {
        precision: files[-1]
        for precision in PRECISIONS
        if (files := sorted((config.repository / model_of(precision)).glob("*/model.onnx")))
    }
    if not found:
        raise NotPossible("the step export published no model")
    return found
