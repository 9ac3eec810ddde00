"""Builds a TensorRT plan of each model on this machine's GPU, in NVIDIA's Triton image, before Triton starts.

    build_plans.py [MODELS PLANS CACHE]        /models, /plans and /cache unless given

A plan runs only on the kind of GPU and the TensorRT release that it was built with, so PLANS/repository/NAME/plan.json
keeps what it was built from, and a plan is kept while nothing of that has changed. A model whose plan cannot be built
goes into the repository as ONNX, which Triton runs with ONNX Runtime on CUDA. Standard library only: nothing of ours is
in NVIDIA's image.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
LIBRARIES = Path("/usr/lib")
BUILD_TIMEOUT_S = 3600


def main(models: Path, plans: Path, cache: Path, trtexec: str = TRTEXEC, libraries: Path = LIBRARIES) -> None:
    """Make PLANS/repository anew, whole."""
    machine = machine_fingerprint(libraries)
    print(f"plans for {machine or 'no GPU that nvidia-smi or TensorRT knows'}", flush=True)
    repository = plans / "repository"
    # an earlier one that was killed
    for left in plans.glob(".repository.*"):
        shutil.rmtree(left)
    new = Path(tempfile.mkdtemp(prefix=".repository.", dir=plans))
    for model in sorted(path for path in models.iterdir() if path.is_dir() and not path.name.startswith(".")):
        fingerprint = machine and model_fingerprint(model, machine)
        kept = repository / model.name
        if fingerprint and read_fingerprint(kept) == fingerprint:
            print(f"{model.name}: the plan fits and is kept", flush=True)
            shutil.copytree(kept, new / model.name)
        elif fingerprint and build(model, new / model.name, cache, trtexec):
            (new / model.name / "plan.json").write_text(json.dumps(fingerprint, indent=2))
            print(f"{model.name}: a new plan", flush=True)
        else:
            print(f"{model.name}: no plan, it runs as it was exported, ONNX with ONNX Runtime on CUDA", flush=True)
            shutil.rmtree(new / model.name, ignore_errors=True)
            shutil.copytree(model, new / model.name)
        let_large_batches_join(new / model.name / "config.pbtxt")
    new.chmod(0o755)
    if repository.exists():
        repository.rename(new.with_name(f"{new.name}.old"))
    new.rename(repository)
    shutil.rmtree(new.with_name(f"{new.name}.old"), ignore_errors=True)


def machine_fingerprint(libraries: Path) -> dict[str, str] | None:
    """GPU and TensorRT, or None when either is missing."""
    try:
        gpu = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    tensorrt = sorted(path.name.partition(".so.")[2] for path in libraries.glob("**/libnvinfer.so.*.*.*"))
    if not gpu or not tensorrt:
        return None
    return {"gpu": ", ".join(sorted(set(gpu))), "tensorrt": tensorrt[-1]}


def model_fingerprint(model: Path, machine: dict[str, str]) -> dict[str, str]:
    digest = hashlib.sha256()
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        digest.update(file.relative_to(model).as_posix().encode() + b"\0" + file.read_bytes())
    return {**machine, "model_sha256": digest.hexdigest()}


def read_fingerprint(model: Path) -> dict[str, str] | None:
    try:
        fingerprint: dict[str, str] = json.loads((model / "plan.json").read_text())
    except (OSError, ValueError):
        return None
    return fingerprint


def build(model: Path, target: Path, cache: Path, trtexec: str) -> bool:
    """Write `model` as a TensorRT model to `target`; False when a version of it cannot be built, and why is printed."""
    config = (model / "config.pbtxt").read_text()
    if 'backend: "onnxruntime"' not in config:  # it was exported for another backend
        return False
    most = int(matched(r"^max_batch_size: (\d+)", config)[0])
    name = matched(r'^input \{\s*name: "(\w+)"', config)[0]
    dims = "x".join(re.findall(r"dims: (\d+)", matched(r"^input \{(.*?)^\}", config)[0]))
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("model.onnx"))
    config = config.replace('backend: "onnxruntime"', 'backend: "tensorrt"')
    (target / "config.pbtxt").write_text(re.sub(r'(default_model_filename: )".*"', r'\1"model.plan"', config))
    for onnx in sorted(model.glob("*/model.onnx")):
        command = [
            *(trtexec, f"--onnx={onnx}", f"--saveEngine={target / onnx.parent.name / 'model.plan'}", "--noTF32"),
            *(f"--minShapes={name}:1x{dims}", f"--optShapes={name}:{max(1, most // 2)}x{dims}"),
            *(f"--maxShapes={name}:{most}x{dims}", f"--timingCacheFile={cache / 'timing.cache'}", "--skipInference"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{model.name}: {error}", flush=True)
            return False
        if done.returncode != 0 or not (target / onnx.parent.name / "model.plan").is_file():
            print(f"{model.name}: trtexec ended with {done.returncode}:", done.stdout[-2000:], done.stderr[-2000:])
            return False
    return True


def let_large_batches_join(config: Path) -> None:
    """Take out the batch size that `deit export` prefers on processors: GPUs compute large batches faster."""
    config.write_text(re.sub(r"^ *preferred_batch_size: \d+\n", "", config.read_text(), flags=re.MULTILINE))


def matched(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise SystemExit(f"config.pbtxt has nothing like {pattern}; was it written by `deit export`?")
    return match.groups()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:] or ("/models", "/plans", "/cache")))
