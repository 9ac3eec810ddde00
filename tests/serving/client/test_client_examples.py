"""The examples of docs/clients.md run."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY_ROOT, encoded, photograph
from tests.serving.conftest import LABELS

PAGE = (REPOSITORY_ROOT / "docs" / "clients.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]


@pytest.fixture
def run(server, tmp_path):
    """run(program, *arguments) -> its output, next to the pictures that the examples name."""
    (tmp_path / "photo.jpg").write_bytes(encoded(photograph(96, 64)))
    (tmp_path / "other.png").write_bytes(encoded(photograph(64, 96, seed=1), "PNG"))
    (tmp_path / "pictures").mkdir()
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "pictures")
    (tmp_path / "bin").mkdir()
    deit = tmp_path / "bin" / "deit"
    deit.write_text(f'#!/bin/sh\nexec {sys.executable} -m deit "$@"\n')
    deit.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY_ROOT),
        "DEIT_URL": server.url,
        "DEIT_API_KEY": "a-key-that-nobody-asks-for",
    }

    def run(*command):
        address = server.url.removeprefix("http://")
        done = subprocess.run(
            [each.replace("127.0.0.1:8080", address).replace('"MODEL"', '"tiny"') for each in command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_answers(run, command):
    if command.startswith("curl") and shutil.which("curl") is None:
        pytest.skip("needs curl")
    assert any(label in run("sh", "-c", command) for label in LABELS)


@pytest.mark.parametrize("program", blocks("python"))
def test_a_python_program_answers(run, program):
    output = run(sys.executable, "-c", program)
    assert any(label in output for label in LABELS)


def test_the_refusal_in_python_has_its_name(run):
    assert "415 unsupported-type" in run(sys.executable, "-c", blocks("python")[0])


@pytest.mark.parametrize("program", blocks("js"))
def test_a_javascript_program_answers(run, program):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node 20 or later")
    output = run(node, "--no-warnings", "--input-type=module", "--eval", program)
    assert sum(any(label in line for label in LABELS) for line in output.splitlines()) == 3
