"""Names of files and models in a repository, and how messages name a command that works on it."""

import re
import shlex
from pathlib import Path

CONFIG_FILE = "config.pbtxt"
"""In a model's folder: what Triton reads. In a version's folder: what the version was published with."""

ONNX_FILE = "model.onnx"

PROVENANCE_FILE = "provenance.json"
"""In a version's folder, for people: the provenance that its config.pbtxt holds too."""

REPORT_FILE, REPORT_TABLE = "report.json", "report.txt"
"""In a version's folder: what the gate found, for programs and for people."""

REFERENCE_FILE = "reference.npz"
"""In a version's folder: `images`, uint8 (N, H, W, 3), and PyTorch's answers to them under the name of each output,
float32 (N, classes). Before the version runs elsewhere, such as a plan on another GPU, it is compared with these.
"""

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}")
"""A model's name is a folder name, part of a URL, and a metric label."""

VERSION_NUMBER = re.compile(r"[1-9][0-9]*")
"""Triton ignores version folders with other names, also those that start with 0."""


def models_command(subcommand: str, *arguments: object, repository: Path) -> str:
    """A command line of `deit models` for messages, quoted for a shell."""
    words = ["deit", "models", subcommand, *map(str, arguments), "--repository", str(repository)]
    return f"`{shlex.join(words)}`"
