"""The deployment files as the tools read them: merged by Docker Compose and kustomize where these are, else by the
rules of theirs that our files use.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY_ROOT

KUBERNETES = REPOSITORY_ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")

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


def kustomized(overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay."""
    if shutil.which("kubectl") is None:
        return kustomized_plainly(KUBERNETES / "overlays" / overlay)
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def kustomized_plainly(folder: Path) -> list[dict[str, Any]]:
    """`resources`, `patches` by path and `images`, which is all that ours use."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects = []
    for resource in kustomization["resources"]:
        path = (folder / resource).resolve()
        objects += kustomized_plainly(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in kustomization.get("patches", []):
        for change in yaml.safe_load_all((folder / patch["path"]).read_text()):
            (index,) = [i for i, each in enumerate(objects) if identity(each) == identity(change)]
            objects[index] = patched(objects[index], change)
    for image in kustomization.get("images", []):
        for container in containers(objects):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    return objects


def identity(object_: dict[str, Any]) -> tuple[str, str]:
    return object_["kind"], object_["metadata"]["name"]


def patched(old: Any, change: Any, key: str = "") -> Any:
    """Strategic merge: mappings by key, lists of named things by their name (volume mounts by their path)."""
    if isinstance(old, dict) and isinstance(change, dict):
        return {**old, **{name: patched(old.get(name), value, name) for name, value in change.items()}}
    if isinstance(old, list) and isinstance(change, list) and isinstance(change[0], dict):
        by = "mountPath" if key == "volumeMounts" else "name"
        changes = {each[by]: each for each in change}
        kept = [patched(each, changes.pop(each[by])) if each[by] in changes else each for each in old]
        return [*kept, *changes.values()]
    return change


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]
    return [container for pod in pods for container in [*pod.get("initContainers", []), *pod["containers"]]]
