"""The machine, versions and data of a run, kept next to its settings."""

import hashlib
import os
import platform
from typing import Any

import numpy
import PIL
import timm
import torch
import torchvision

from deit import __version__
from deit.machine import commit, processor
from training.images import LabelledImages
from training.opening import weights_identity


def provenance(splits: dict[str, LabelledImages], *, teacher: str | None) -> dict[str, Any]:
    """Machine, versions, commit, a fingerprint of each split, and the identity of the teacher's weights."""
    hash_, is_modified = commit()
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm, numpy, PIL)}
    return {
        "machine": machine(),
        "versions": {"deit-server": __version__, "python": platform.python_version(), **versions},
        "commit": f"{hash_}-dirty" if is_modified else hash_,
        "data": {
            name: {"images": len(images), "classes": len(images.label_names), "fingerprint": fingerprint(images)}
            for name, images in splits.items()
        },
        "teacher": None if teacher is None else weights_identity(teacher),
    }


def machine() -> str:
    """The GPUs, or the processor and how many of its cores the process may use."""
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{len(os.sched_getaffinity(0))} cores of {processor()}"


def fingerprint(images: LabelledImages) -> str:
    """SHA-256 over the names of the classes and, in order, each image's file name and class. No image is read."""
    digest = hashlib.sha256("\n".join(images.label_names).encode())
    for index in range(len(images)):
        digest.update(f"\n{images.file_name(index)}\t{images.label(index)}".encode())
    return digest.hexdigest()
