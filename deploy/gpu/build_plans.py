"""Prepares the models for this machine's GPU, in NVIDIA's Triton image, before Triton starts on PLANS/repository.

    build_plans.py [MODELS PLANS CACHE]        /models, /plans and /cache unless given

The served version of each model becomes a TensorRT plan or, if none can be built, stays ONNX for ONNX Runtime on CUDA.
It is served only if its output in a temporary Triton matches what PyTorch gave at export; a model that does not match,
or does not run on GPUs, is left out and named in the log. Unchanged models are kept, so a restart is quick. Standard
library only: NVIDIA's image contains only these files of ours.
"""

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from compare import Refused, compare, read_reference, triton
from tensorrt_plan import (
    FINGERPRINT_FILE,
    PLAN_FILE,
    Machine,
    cuda_settings,
    fingerprint,
    gpu_kinds,
    is_current,
    plan_settings,
    profiles_for,
    release_of,
    trtexec_arguments,
)

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
LIBRARIES = Path("/usr/lib")
BUILD_TIMEOUT_S = 3600
BUILT_FILE = "built.json"
"""In a model's folder: the machine and the model that it was made for and from."""

# What `deit export` publishes by default for processors, and for GPUs: export/config_pbtxt.py.
BATCH, QUEUE = (32, 128), (256, 4096)


@dataclass(frozen=True)
class Model:
    """A model of /models, as far as it matters here."""

    folder: Path
    config: str
    backend: str
    versions: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Tools:
    """The tools in NVIDIA's image. Attributes: cache: the file with what TensorRT measured."""

    trtexec: str
    tritonserver: Sequence[str]
    cache: Path


Form = Callable[[Model, Path, Path, Machine, Tools], None]
"""Writes a model to a folder; the other folder is what was served of it before."""


def main(
    models: Path,
    plans: Path,
    cache: Path,
    trtexec: str = TRTEXEC,
    tritonserver: Sequence[str] = ("tritonserver",),
    libraries: Path = LIBRARIES,
) -> None:
    """Rebuild PLANS/repository atomically. Raises SystemExit, and changes nothing, if no model can be served."""
    machine = find_machine(libraries)
    print(f"TensorRT {machine.tensorrt} on {machine.gpus}", flush=True)
    tools = Tools(trtexec, tritonserver, cache / "timing.cache")
    repository = plans / "repository"
    with locked(plans):
        for left in plans.glob(".repository.*"):  # an earlier one that was killed
            shutil.rmtree(left)
        new = Path(tempfile.mkdtemp(prefix=".repository.", dir=plans))
        waiting: dict[str, Model] = {}
        reasons: dict[str, Refused] = {}
        for folder in sorted(path for path in models.iterdir() if path.is_dir() and not path.name.startswith(".")):
            if read_built(repository / folder.name) == built(folder, machine):
                say(folder.name, "it has not changed and is kept")
                shutil.copytree(repository / folder.name, new / folder.name)
                continue
            try:
                waiting[folder.name] = read_model(folder)
            except Refused as reason:
                reasons[folder.name] = reason
        for form in FORMS:
            waiting, failed = try_form(form, waiting, new, repository, machine, tools)
            reasons |= failed
        for name in sorted(reasons.keys() - {path.name for path in new.iterdir()}):
            leave_out(name, reasons[name], new, repository, machine)
        if not any(new.iterdir()):
            shutil.rmtree(new)
            raise SystemExit(f"no model of {models} can be served on this GPU; the lines above say why")
        swap(new, repository)


def find_machine(libraries: Path) -> Machine:
    """Raises SystemExit without a GPU or TensorRT, because nothing here computes on processors."""
    gpus = gpu_kinds()
    releases = sorted(path.name.partition(".so.")[2] for path in libraries.glob("**/libnvinfer.so.*.*.*"))
    if not gpus:
        raise SystemExit("nvidia-smi finds no GPU: start the container with its GPUs, or take the stack for CPUs")
    if not releases:
        raise SystemExit(f"TensorRT is not in {libraries}: take NVIDIA's Triton image")
    return Machine(tensorrt=release_of(releases[-1]), gpus=gpus)


def read_model(folder: Path) -> Model:
    """Raises Refused when it cannot be compared, or computes on processors alone."""
    config = (folder / "config.pbtxt").read_text()
    backend = matched(r'^backend: "(\w+)"', config)[0]
    if backend not in ("onnxruntime", "tensorrt"):
        raise Refused(f"it runs on {backend}, which computes on processors: export it with --engine cuda or tensorrt")
    there = sorted((path.name for path in folder.iterdir() if path.name.isdigit()), key=int)
    chosen = re.search(r"^version_policy \{(.*?)^\}", config, re.MULTILINE | re.DOTALL)
    asked = re.findall(r"versions: (\d+)", chosen[1]) if chosen else []
    versions = tuple(version for version in there if version in asked) or tuple(there[-1:])
    for version in versions:
        read_reference(folder / version)
    return Model(folder, for_gpus(config), backend, versions)


def try_form(
    form: Form,
    models: dict[str, Model],
    new: Path,
    repository: Path,
    machine: Machine,
    tools: Tools,
) -> tuple[dict[str, Model], dict[str, Refused]]:
    """Move what answers rightly in this form to `new`; the models that do not, and why."""
    failed: dict[str, Refused] = {}
    with tempfile.TemporaryDirectory(prefix=".repository.", dir=new.parent) as scratch:
        trial = Path(scratch)
        for name, model in models.items():
            try:
                form(model, trial / name, repository / name, machine, tools)
            except Refused as reason:
                failed[name] = reason
                shutil.rmtree(trial / name, ignore_errors=True)
        if any(trial.iterdir()):
            with triton(trial, tools.tritonserver) as url:
                for name in models.keys() - failed.keys():
                    try:
                        compare_model(url, models[name])
                    except Refused as reason:
                        failed[name] = reason
        for name in sorted(models.keys() - failed.keys()):
            (trial / name / BUILT_FILE).write_text(built(models[name].folder, machine))
            (trial / name).rename(new / name)
            say(name, f"served as {FORMS[form]}, which answers as PyTorch did")
    for name, reason in failed.items():
        say(name, f"not as {FORMS[form]}: {reason}")
    return {name: models[name] for name in failed}, failed


def compare_model(url: str, model: Model) -> None:
    """Raises Refused that says what differs."""
    most = int(matched(r"^max_batch_size: (\d+)", model.config)[0])
    for version in model.versions:
        compare(url, model.name, version, read_reference(model.folder / version), most)


def as_plan(model: Model, target: Path, kept: Path, machine: Machine, tools: Tools) -> None:
    """Raises Refused. A plan that is there already is taken if this machine would build the same."""
    most = int(matched(r"^max_batch_size: (\d+)", model.config)[0])
    profiles = profiles_for(most)
    inputs = matched(r"^input \{(.*?)^\}", model.config)[0]
    image = matched(r'name: "(\w+)"', inputs)[0]
    height, width, channels = map(int, re.findall(r"dims: (\d+)", inputs))
    copy_but(model, target, "model.onnx", PLAN_FILE, FINGERPRINT_FILE)
    for version in model.versions:
        onnx, plan = model.folder / version / "model.onnx", target / version / PLAN_FILE
        if not onnx.is_file():
            raise Refused("it came as a plan without its graph: publish it again with `deit export`")
        expected = fingerprint(machine, onnx, profiles)
        there = [folder / version / PLAN_FILE for folder in (kept, model.folder)]
        current = [each for each in there if is_current(each, expected)]
        if current:
            shutil.copy(current[0], plan)
        else:
            say(model.name, f"building a plan of version {version}, which takes minutes the first time")
            shape = (height, width, channels)
            build(
                [
                    tools.trtexec,
                    *trtexec_arguments(onnx, plan, image=image, shape=shape, profiles=profiles, cache=tools.cache),
                ],
                plan,
            )
        (target / version / FINGERPRINT_FILE).write_text(expected.to_json())
    instances = 1 if model.backend == "onnxruntime" else instances_of(model.config)
    write_config(model, target, backend="tensorrt", file=PLAN_FILE, settings=plan_settings(instances, profiles))


def build(command: list[str], plan: Path) -> None:
    """Raises Refused with the end of what trtexec said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(str(error)) from error
    if done.returncode != 0 or not plan.is_file():
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line] or [done.stderr[-500:]]
        raise Refused(f"trtexec ended with {done.returncode}: {'; '.join(errors[-3:])}")


def as_onnx(model: Model, target: Path, kept: Path, machine: Machine, tools: Tools) -> None:
    """Raises Refused."""
    copy_but(model, target, PLAN_FILE, FINGERPRINT_FILE)
    if not all((target / version / "model.onnx").is_file() for version in model.versions):
        raise Refused("it came as a plan without its graph: publish it again with `deit export`")
    settings = cuda_settings(max(2, instances_of(model.config)))
    write_config(model, target, backend="onnxruntime", file="model.onnx", settings=settings)


FORMS = {as_plan: "a TensorRT plan", as_onnx: "ONNX, with ONNX Runtime on CUDA"}


def copy_but(model: Model, target: Path, *names: str) -> None:
    """The labels and the served versions without these files."""
    others = {path.name for path in model.folder.iterdir() if path.name.isdigit()} - set(model.versions)
    shutil.copytree(model.folder, target, ignore=shutil.ignore_patterns(*names, *others))


def write_config(model: Model, target: Path, *, backend: str, file: str, settings: str) -> None:
    config = without(model.config, "instance_group", "optimization")
    config = re.sub(r"^platform: .*\n", "", config, flags=re.MULTILINE)
    config = re.sub(r'^backend: ".*"', f'backend: "{backend}"', config, flags=re.MULTILINE)
    config = re.sub(r'^default_model_filename: ".*"', f'default_model_filename: "{file}"', config, flags=re.MULTILINE)
    (target / "config.pbtxt").write_text(config.rstrip("\n") + "\n" + settings)


def for_gpus(config: str) -> str:
    """Without the batch that is preferred on processors, and with a GPU's batches and queue where nobody asked for
    others.
    """
    config = re.sub(r"^ *preferred_batch_size: \d+\n", "", config, flags=re.MULTILINE)
    config = re.sub(rf"^max_batch_size: {BATCH[0]}$", f"max_batch_size: {BATCH[1]}", config, flags=re.MULTILINE)
    config = re.sub(rf"^( *max_queue_size:) {QUEUE[0]}$", rf"\1 {QUEUE[1]}", config, flags=re.MULTILINE)
    warmed = rf'^( *name: "batch) {BATCH[0]}"\n( *batch_size:) {BATCH[0]}$'
    return re.sub(warmed, rf'\1 {BATCH[1]}"\n\2 {BATCH[1]}', config, flags=re.MULTILINE)


def without(config: str, *blocks: str) -> str:
    """The text without these blocks of the outermost level."""
    return re.sub(rf"^(?:{'|'.join(blocks)}) \{{.*?^\}}\n?", "", config, flags=re.MULTILINE | re.DOTALL)


def instances_of(config: str) -> int:
    return int(matched(r"^instance_group \{\s*count: (\d+)", config)[0])


def built(folder: Path, machine: Machine) -> str:
    """What a model is made for and from, as its BUILT_FILE keeps it."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return json.dumps({"machine": asdict(machine), "model_sha256": digest.hexdigest()}, indent=2) + "\n"


def read_built(model: Path) -> str:
    try:
        return (model / BUILT_FILE).read_text()
    except OSError:
        return ""


def leave_out(name: str, reason: Refused, new: Path, repository: Path, machine: Machine) -> None:
    """Serve what was served of the model on this machine before, if anything was."""
    before = read_built(repository / name)
    if before and json.loads(before)["machine"] == asdict(machine):
        say(name, f"cannot be served: {reason}. The versions served before stay", file=sys.stderr)
        shutil.copytree(repository / name, new / name)
    else:
        say(name, f"is left out: {reason}", file=sys.stderr)


def swap(new: Path, repository: Path) -> None:
    new.chmod(0o755)
    old = new.with_name(f"{new.name}.old")
    if repository.exists():
        repository.rename(old)
    new.rename(repository)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """If several containers start at once, the first builds and the others find the result."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def matched(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise Refused(f"its config.pbtxt has nothing like {pattern}: was it written by `deit export`?")
    return match.groups()


def say(name: str, text: str, file: TextIO | None = None) -> None:
    print(f"{name}: {text}", file=file, flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:] or ("/models", "/plans", "/cache")))
