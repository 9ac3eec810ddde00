"""A lock that lets one writer at a time change a repository, and a folder in which to prepare the change."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit.errors import RepositoryError

LOCK_WAIT_S = 30.0
"""A writer holds the lock while it copies one model, a second or so; longer means that it hangs."""


@contextmanager
def writing(repository: Path) -> Iterator[Path]:
    """Hold the repository's lock, which the kernel frees when its holder dies, and give a folder to prepare changes in.

    The folder lies next to the repository, because Triton takes every folder inside for a model; inside only if the
    repository is a separate file system. What a killed writer left there is removed.

    Raises:
        RepositoryError: another process holds the lock for too long.
    """
    repository.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        _lock(descriptor, repository)
        staging = staging_folder(repository)
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(descriptor)


def staging_folder(repository: Path) -> Path:
    """Where changes of the repository are prepared; it exists while one is made."""
    parent = repository.absolute().parent
    if parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK):
        return parent / f".{repository.absolute().name}.publishing"
    return repository / ".publishing"


def _lock(descriptor: int, repository: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise RepositoryError(f"{repository} cannot be locked ({error.strerror}); use a local disk") from error
        if time.monotonic() > deadline:
            raise RepositoryError(
                f"another process has been writing {repository} for {LOCK_WAIT_S:.0f} s: let that `deit export` or "
                "`deit models` finish, or stop it"
            )
        time.sleep(0.05)
