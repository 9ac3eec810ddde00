"""The files of one run of Triton: a temporary folder, and the shared memory of its Python stubs.

Both have the launcher's process id in their name, so that the next start can remove what a killed run left. (A stub
removes its shared memory when Triton is killed, but not when it is killed itself or has not finished loading.)
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "deit-triton-"
SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder of this process; leftovers of earlier ones are removed before, and all of ours after."""
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        try:
            yield Path(folder)
        finally:
            remove_shared_memory()


def remove_shared_memory() -> None:
    """Remove that of this process's Triton, once no stub lives."""
    for region in SHARED_MEMORY.glob(f"{shared_memory_prefix()}*"):
        region.unlink(missing_ok=True)


def close_shared_memory() -> None:
    """Let only this user read the pictures in that of this process's Triton.

    Triton makes it readable for all, whatever the umask: Boost.Interprocess sets the mode itself. Call it often: a
    region exists before its model is ready, when it does not yet hold a picture.
    """
    for region in SHARED_MEMORY.glob(f"{shared_memory_prefix()}*"):
        with contextlib.suppress(FileNotFoundError):  # its model was unloaded meanwhile
            if region.stat().st_mode & 0o077:
                region.chmod(0o600)


def shared_memory_prefix() -> str:
    return f"{PREFIX}{os.getpid()}-"


def remove_leftovers() -> None:
    for parent in (Path(tempfile.gettempdir()), SHARED_MEMORY):
        for left in parent.glob(f"{PREFIX}*-*"):
            with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or not one of ours after all
                pid = int(left.name.removeprefix(PREFIX).partition("-")[0])
                if left.lstat().st_uid != os.getuid() or Path(f"/proc/{pid}").exists():
                    continue
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
