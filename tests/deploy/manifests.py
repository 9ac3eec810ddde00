"""The deployment files as the tools read them: put together by kustomize, and by Docker Compose where it is installed,
else by those of its rules that our files use.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY_ROOT

KUBERNETES = REPOSITORY_ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "cpu-autoscaled", "gpu-autoscaled")

COMPOSE_FILES = {
    "cpu": ("docker-compose.yml",),
    "gpu": ("docker-compose.yml", "docker-compose.gpu.yml"),
}
GPU_IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3@sha256:" + 64 * "0"


# --- Docker Compose ---


def has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0


def composed(name: str, **environment: str) -> dict[str, Any]:
    """The merged project, every profile on."""
    environment = {"TRITON_IMAGE": GPU_IMAGE, **environment}
    files = COMPOSE_FILES[name]
    if has_compose():
        command = ["docker", "compose", "--profile", "*", *(f"--file={file}" for file in files)]
        done = subprocess.run(
            [*command, "config", "--format", "json"],
            cwd=REPOSITORY_ROOT,
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return composed_plainly(name, environment)


class Replace:
    """`!reset` and `!override`: what this node holds takes the place of what was there."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Loader(yaml.SafeLoader):
    pass


def construct_replacement(loader: Loader, node: yaml.Node) -> Replace:
    if isinstance(node, yaml.MappingNode):
        return Replace(loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Replace(loader.construct_sequence(node, deep=True))
    return Replace(None)


Loader.add_constructor("!reset", construct_replacement)
Loader.add_constructor("!override", construct_replacement)


def composed_plainly(name: str, environment: dict[str, str]) -> dict[str, Any]:
    project: dict[str, Any] = {}
    for file in COMPOSE_FILES[name]:
        text = interpolated((REPOSITORY_ROOT / file).read_text(), environment)
        project = merged(project, yaml.load(text, Loader))
    return {key: value for key, value in project.items() if not key.startswith("x-")}


def interpolated(text: str, environment: dict[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        name, operator, word = match["name"], match["operator"] or "", match["word"] or ""
        value = environment.get(name, "")
        if operator == ":+":
            return word if value else ""
        if operator == ":?" and not value:
            raise KeyError(f"{name}: {word}")
        return value or (word if operator == ":-" else "")

    return re.sub(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-+?])(?P<word>[^}]*))?\}", replacement, text)


def merged(old: Any, new: Any) -> Any:
    if isinstance(new, Replace):
        return new.value
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        return old + new
    return new


# --- kustomize ---


@cache
def kustomization(folder: Path) -> str:
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kustomized(overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay, as kubectl would apply them."""
    return list(yaml.safe_load_all(kustomization(KUBERNETES / "overlays" / overlay)))


def identity(object_: dict[str, Any]) -> tuple[str, str]:
    return object_["kind"], object_["metadata"]["name"]


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] in ("Deployment", "Job")]
    return [container for pod in pods for container in [*pod.get("initContainers", []), *pod["containers"]]]
