"""What a measurement ran on."""

import importlib.metadata
import os
import platform
import shutil
import subprocess

import psutil

from benchmark.results import Environment
from deit.machine import commit, processor

# Results, and the documents that report them, are written during measurements.
WRITTEN_HERE = ("benchmark/results", "docs", "README.md")

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
    """The machine, versions and commit of this process."""
    cpu, cores, gpu = processor(), len(os.sched_getaffinity(0)), _gpu()
    hash_, is_modified = commit(besides=WRITTEN_HERE)
    return Environment(
        machine=f"{cpu}, {cores} cores" + (f", {gpu}" if gpu else ""),
        cpu=cpu,
        cores=cores,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=gpu,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
        commit=hash_,
        is_modified=is_modified,
        load_average=round(os.getloadavg()[0], 2),
    )


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
