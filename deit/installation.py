"""How this copy of deit-server was installed, and the command that adds an extra to it.

The distribution is on no index, so `pip install deit-server[...]` alone would find nothing, or a stranger's package.
"""

import importlib.util
import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "deit-server"

CHECKOUT = Path(__file__).parents[1]

# These install `onnxruntime-gpu`, which must not be installed next to `onnxruntime`: both packages own the same module.
EXCLUSIVE = {"gpu"}


def how_to_install(extra: str, *, reinstall: str | None = None) -> str:
    """How to install a missing library, as the end of a sentence: a command that works as printed, if there is one.

    Args:
        extra: the one with the library, from pyproject.toml.
        reinstall: a package of the extra that is installed but damaged.
    """
    if (CHECKOUT / "uv.lock").is_file() and Path(sys.prefix).resolve() == CHECKOUT.resolve() / ".venv":
        return f"install it with: {_sync(extra, reinstall)}"
    requirement = _requirement(extra)
    if requirement is None:
        return f"install the extra [{extra}] of {DISTRIBUTION} from where this copy came from"
    return f"install it with: {_pip(*(['--force-reinstall'] if reinstall else []), *requirement)}"


def _sync(extra: str, reinstall: str | None) -> str:
    """In the checkout's own environment: what uv.lock names, by hash."""
    uv = Path(sys.prefix) / "bin" / "uv"
    command = [str(uv) if uv.is_file() else "uv", "sync", "--frozen", "--no-default-groups", "--extra", extra]
    if Path.cwd() != CHECKOUT:
        command += ["--project", str(CHECKOUT)]
    if extra not in EXCLUSIVE:
        command.append("--inexact")  # what else is installed stays
    if reinstall is not None:
        command += ["--reinstall-package", reinstall]
    return shlex.join(command)


def _pip(*arguments: str) -> str:
    if importlib.util.find_spec("pip") is None:  # an environment that uv made
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, *arguments])
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def _requirement(extra: str) -> list[str] | None:
    """pip's arguments for this distribution with the extra, from the place that direct_url.json (PEP 610) names.

    None if it names none, or one that is gone: the copy came from a private index, or is part of an image.
    """
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        record = None
    if record is None:
        return None
    origin: dict[str, Any] = json.loads(record)
    url: str = origin["url"]
    place = Path(unquote(urlsplit(url).path))
    if url.startswith("file:") and not place.exists():
        return None
    if origin.get("dir_info", {}).get("editable"):
        return ["--editable", f"{place}[{extra}]"]
    if vcs := origin.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return [f"{DISTRIBUTION}[{extra}] @ {url}"]
