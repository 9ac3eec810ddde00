"""Short `deit` commands as processes, forked from one that has made their imports, which take most of their time."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path

from deit.cli import main

REPOSITORY_ROOT = Path(__file__).parents[1]

# The first command waits for the imports of all, on a machine that is busy with other tests.
LONGEST_S = 240

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(
    [f"serving.{name}" for name in ("command", "triton_command", "launcher", "supervisor", "client.classify_command")]
    + [__name__, "training.command", "export.command", "deit.repository.command", "deit.repository.models"]
)


def deit(
    *arguments: str, environment: Mapping[str, str] = os.environ, folder: Path = REPOSITORY_ROOT
) -> subprocess.CompletedProcess[str]:
    """`deit` with these arguments.

    Args:
        environment: all variables of the process.
        folder: the one it runs in.
    """
    with tempfile.NamedTemporaryFile("w+") as output, tempfile.NamedTemporaryFile("w+") as errors:
        process = FORKED.Process(
            target=_deit, args=(arguments, dict(environment), folder, output.name, errors.name), name="deit"
        )
        process.start()
        process.join(LONGEST_S)
        is_late = process.is_alive()
        process.kill()
        process.join()
        assert not is_late, f"deit {arguments} was not done in {LONGEST_S} s; it printed:\n{errors.read()}"
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, output.read(), errors.read())


def _deit(arguments: tuple[str, ...], environment: dict[str, str], folder: Path, output: str, errors: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY), descriptor)
    sys.argv = ["deit", *arguments]
    main()
