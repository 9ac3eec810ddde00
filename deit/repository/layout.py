"""Names of files and models in a repository, and how messages name a command that works on it."""

import re
import shlex
from pathlib import Path

CONFIG_FILE = "config.pbtxt"
"""In a model's folder: what Triton reads. In a version's folder: what the version was published with."""

ONNX_FILE = "model.onnx"
PLAN_FILE = "model.plan"

PROVENANCE_FILE = "provenance.json"
"""In a version's folder, for people: the provenance that its config.pbtxt holds too."""

FINGERPRINT_FILE = "fingerprint.json"
"""Next to a plan: the TensorRT and the GPU that it was built for, and the graph that it was built from."""

REPORT_FILE, REPORT_TABLE = "report.json", "report.txt"
"""In a version's folder: what the gate found, for programs and for people."""

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}")
"""A model's name is a folder name, part of a URL, and a metric label."""

VERSION_NUMBER = re.compile(r"[1-9][0-9]*")
"""Triton ignores version folders with other names, also those that start with 0."""


def models_command(subcommand: str, *arguments: object, repository: Path) -> str:
    """A command line of `deit models` for messages, quoted for a shell."""
    words = ["deit", "models", subcommand, *map(str, arguments), "--repository", str(repository)]
    return f"`{shlex.join(words)}`"
