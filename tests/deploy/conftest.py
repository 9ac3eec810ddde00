"""docker-compose.yml on a real engine: images built from a clean clone, up, and nothing left at the end."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deit.ports import free_ports
from tests.conftest import REPOSITORY_ROOT
from tests.serving.conftest import model_repository, server  # noqa: F401

UP_TIMEOUT_S = 1500  # with the images built from nothing


class Stack:
    """A project of Docker Compose of its own name and port, made from a clone."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.project = f"deit-test-{secrets.token_hex(4)}"
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"

    def run(self, *command: str, timeout_s: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.clone,
            env={
                **os.environ,
                "COMPOSE_PROJECT_NAME": self.project,
                "DEIT_PORT": str(self.port),
                "DEIT_VERSION": "test",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def compose(self, *arguments: str, timeout_s: float = 300, **environment: str) -> str:
        done = self.run("docker", "compose", *arguments, timeout_s=timeout_s, **environment)
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> dict:
        return json.loads(self.run("docker", "inspect", container).stdout)[0]

    def everything(self) -> dict[str, list[str]]:
        """What the engine holds of this project, by kind."""
        label = f"label=com.docker.compose.project={self.project}"
        return {
            "containers": self.run("docker", "ps", "--all", "--quiet", "--filter", label).stdout.split(),
            "networks": self.run("docker", "network", "ls", "--quiet", "--filter", label).stdout.split(),
            "volumes": self.run("docker", "volume", "ls", "--quiet", "--filter", label).stdout.split(),
        }


def has_engine() -> bool:
    if shutil.which("docker") is None:
        return False
    probes = (["docker", "info"], ["docker", "compose", "version"])
    return all(subprocess.run(probe, capture_output=True).returncode == 0 for probe in probes)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if not has_engine():
        pytest.skip("needs a Docker engine with compose v2 that this user may use")
    clone = tmp_path_factory.mktemp("clone") / "deit-server"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY_ROOT), str(clone)], check=True)
    stack = Stack(clone)
    try:
        stack.compose("up", "--detach", "--wait", "--build", timeout_s=UP_TIMEOUT_S)
        yield stack
    finally:
        done = stack.run("docker", "compose", "--profile", "*", "down", "--volumes", "--remove-orphans")
    assert done.returncode == 0, done.stderr
