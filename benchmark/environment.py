"""What a measurement ran on."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil

from benchmark.results import Environment

PACKAGES = (
    "deit-server",
    "fastapi",
    "nvidia-pytriton",
    "numpy",
    "onnxruntime",
    "openvino",
    "pillow",
    "timm",
    "torch",
    "uvicorn",
)


def this_environment() -> Environment:
    """The machine, the versions and the commit of now."""
    cpu, cores, gpu = _cpu(), len(os.sched_getaffinity(0)), _gpu()
    commit, is_modified = _commit()
    return Environment(
        machine=f"{cpu}, {cores} cores" + (f", {gpu}" if gpu else ""),
        cpu=cpu,
        cores=cores,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=gpu,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
        commit=commit,
        is_modified=is_modified,
        load_average=round(os.getloadavg()[0], 2),
    )


def _cpu() -> str:
    """The model's name, without frequency and marks."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].partition("@")[0]
            return " ".join(name.replace("(R)", "").replace("(TM)", "").split())
    return platform.machine()


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return "; ".join(done.stdout.split("\n")).strip("; ") or None if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> tuple[str | None, bool]:
    """The checkout's commit, and whether its files differ from it. Result files are being written and do not count."""
    checkout = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(checkout), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmark/results", ":!docs", ":!README.md"
    )
    return git("rev-parse", "--short=12", "HEAD"), bool(changes)
