"""The command that a message prints to install what is missing works as printed, in each kind of installation."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deit.cli import EXTRA_OF_MODULE
from deit.installation import CHECKOUT, how_to_install
from tests.conftest import REPOSITORY_ROOT, encoded, photograph

EXTRAS = sorted(tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
BIN = Path(sys.executable).parent
UV = BIN / "uv"

# What pip and uv print if the package index is missing or does not respond.
UNREACHABLE = (
    r"Failed to (fetch|download)|Could not find a version|No matching distribution|timed out|Connection|error sending"
)

in_its_own_environment = pytest.mark.skipif(
    Path(sys.prefix) != CHECKOUT / ".venv", reason="needs the checkout's own .venv, which make makes"
)


def shell(command: str, cwd: Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env={**os.environ, **path, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )


def command_in(hint: str) -> str:
    assert hint.count("install it with: ") == 1, hint
    return hint.rpartition("install it with: ")[2].strip()


def changes(output: str, sign: str) -> set[str]:
    """The packages that uv would install (+) or remove (-); one that it would replace is among both."""
    return set(re.findall(rf"^ \{sign} ([a-z0-9-]+)==", output, re.MULTILINE))


@in_its_own_environment
@pytest.mark.parametrize("extra", EXTRAS)
def test_in_a_checkout_uv_adds_the_extra_from_the_lock(extra: str, tmp_path: Path) -> None:
    for folder in (tmp_path, REPOSITORY_ROOT):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            command = command_in(how_to_install(extra))
        done = shell(f"{command} --dry-run --offline", folder)
        assert done.returncode == 0, done.stderr
        removed = changes(done.stderr, "-") - changes(done.stderr, "+")
        # onnxruntime-gpu and onnxruntime own the same module; all else stays
        assert "onnxruntime" in removed if extra == "gpu" else not removed


@in_its_own_environment
def test_in_a_checkout_uv_repairs_a_package() -> None:
    command = command_in(how_to_install("serving", reinstall="nvidia-pytriton"))
    done = shell(f"{command} --dry-run --offline", Path.cwd())
    assert done.returncode == 0, done.stderr
    assert "nvidia-pytriton" in changes(done.stderr, "-") & changes(done.stderr, "+")


def test_every_missing_module_names_an_extra_that_exists() -> None:
    assert set(EXTRA_OF_MODULE.values()) <= set(EXTRAS)


def test_the_page_about_installation_lists_every_extra_and_its_commands_work() -> None:
    page = (REPOSITORY_ROOT / "docs" / "installation.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == EXTRAS
    commands = re.findall(r"^\$ (.*uv sync .*)", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        done = shell(f"{command} --dry-run --offline", REPOSITORY_ROOT)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = shell(f"uv build --quiet --wheel --out-dir {folder}", REPOSITORY_ROOT)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


def installed_from(wheel: Path, environment: Path) -> Path:
    """The folder of the programs of an environment with the wheel and its locked dependencies, without any extra."""
    sync = "uv sync --quiet --frozen --inexact --no-default-groups --no-install-project"
    for command in (f"{sync} --python {sys.executable}", f"uv pip install --quiet --no-deps --python . {wheel}"):
        folder = REPOSITORY_ROOT if command.startswith(sync) else environment
        done = shell(command, folder, UV_PROJECT_ENVIRONMENT=environment)
        assert done.returncode == 0, done.stderr
    return environment / "bin"


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_wheel_gets_its_extra_by_the_printed_command(wheel: Path, installer: str, tmp_path: Path) -> None:
    environment = tmp_path / "environment with a space"
    if installer == "pip":
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    programs = installed_from(wheel, environment)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(photograph(96, 64)))
    classify = shlex.join([str(programs / "deit"), "classify", str(photo), "--url", "http://127.0.0.1:1"])

    done = shell(classify, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("deit: httpx is not installed; ")
    command = command_in(done.stderr)
    assert ("-m pip" in command) == (installer == "pip")
    done = shell(command, tmp_path)
    if done.returncode and re.search(UNREACHABLE, done.stderr):
        pytest.skip("needs a package index, or httpx in the cache")
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:1" in shell(classify, tmp_path).stderr, "it runs, and nothing listens there"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"url": "https://example.org/{wheel}", "archive_info": {}},
            "'deit-server[client] @ https://example.org/{wheel}'",
        ),
        (
            {"url": "https://example.org/deit.git", "vcs_info": {"vcs": "git", "commit_id": "1" * 40}},
            f"'deit-server[client] @ git+https://example.org/deit.git@{'1' * 40}'",
        ),
        ({"url": "file://{folder}", "dir_info": {"editable": True}}, "--editable '{folder}[client]'"),
        ({"url": "file://{folder}", "dir_info": {}}, "'deit-server[client] @ file://{folder}'"),
        ({"url": "file:///gone/{wheel}", "archive_info": {}}, None),
        (None, None),
    ],
    ids=["url", "git", "editable", "folder", "gone", "index"],
)
def test_the_command_follows_where_the_copy_came_from(
    record: dict[str, object] | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PEP 610 records it. Without a record there is no command: the name alone would find a stranger's package."""

    def filled(text: str) -> str:
        return text.replace("{folder}", str(tmp_path)).replace("{wheel}", "deit_server-0.1.0-py3-none-any.whl")

    information = tmp_path / "deit_server-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: deit-server\nVersion: 0.1.0\n")
    if record is not None:
        (information / "direct_url.json").write_text(filled(json.dumps(record)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    hint = how_to_install("client")
    if expected is None:
        assert hint == "install the extra [client] of deit-server from where this copy came from"
    else:
        assert command_in(hint).endswith(f" install {filled(expected)}")


def test_what_make_serve_installs_is_enough_for_the_client(tmp_path: Path) -> None:
    """In an environment made by the Makefile's own command."""
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/serving"],
        cwd=REPOSITORY_ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (sync,) = re.findall(r"^\.venv/bin/uv (sync .*)", printed, re.MULTILINE)
    sync = sync.replace(".venv/bin/python", sys.executable).replace("--compile-bytecode", "")
    done = shell(f"uv {sync} --offline", REPOSITORY_ROOT, UV_PROJECT_ENVIRONMENT=tmp_path / "venv")
    if "--offline" in done.stderr or "not found in the cache" in done.stderr:
        pytest.skip("needs the packages in uv's cache, where `make test` has put them unless it was emptied since")
    assert done.returncode == 0, done.stderr
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(photograph(96, 64)))
    for command in (
        f"venv/bin/deit classify {photo} --url http://127.0.0.1:1",
        f'venv/bin/python -c \'from serving.client import Client; Client("http://127.0.0.1:1").classify("{photo}")\'',
    ):
        assert "127.0.0.1:1" in shell(command, tmp_path).stderr, "it runs, and nothing listens there"


def test_a_python_that_does_not_fit_is_refused_before_anything_is_made(tmp_path):
    for name in ("Makefile", "requirements"):
        (tmp_path / name).symlink_to(REPOSITORY_ROOT / name)
    (tmp_path / "python3.13").write_text("#!/bin/sh\nexit 1\n")  # as a Python does that says no to the version
    (tmp_path / "python3.13").chmod(0o755)
    done = shell(f"make .venv/uv PYTHON={tmp_path / 'python3.13'}", tmp_path)
    assert done.returncode != 0
    assert "python3.13 is not Python 3.11 or 3.12" in done.stdout
    assert not (tmp_path / ".venv").exists()
