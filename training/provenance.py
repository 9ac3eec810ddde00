"""What a run was made with, kept beside its settings."""

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import PIL
import timm
import torch
import torchvision

from deit import __version__
from training.images import LabelledImages


def provenance(splits: dict[str, LabelledImages]) -> dict[str, Any]:
    """Versions, commit, and a fingerprint of each split."""
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm, numpy, PIL)}
    return {
        "versions": {"deit-server": __version__, "python": platform.python_version(), **versions},
        "commit": commit(),
        "data": {
            name: {"images": len(images), "classes": len(images.label_names), "fingerprint": fingerprint(images)}
            for name, images in splits.items()
        },
    }


def commit() -> str | None:
    """Of the sources, marked when they were changed since; None where they are no git checkout."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def fingerprint(images: LabelledImages) -> str:
    """SHA-256 over the names of the classes and, in order, each image's file name and class. No image is read."""
    digest = hashlib.sha256("\n".join(images.label_names).encode())
    for index in range(len(images)):
        digest.update(f"\n{images.file_name(index)}\t{images.label(index)}".encode())
    return digest.hexdigest()
