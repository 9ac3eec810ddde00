"""Files and folders are written whole or not at all, even if the machine loses power.

The order is PostgreSQL's `durable_rename`: write next to the target, flush to the disk, rename, flush the folder.
https://github.com/postgres/postgres/blob/master/src/common/file_utils.c
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: bytes | str) -> None:
    """Replace the file at `path`; a reader sees either the old content or the new, never a mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacement(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it when the block ends without an error."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp gives 0600; an artefact is read by other users, such as Triton's
        sync(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def new_folder(path: Path, staging: Path | None = None, *, is_private: bool = False) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` when the block ends without an error.

    Args:
        staging: where to create the temporary folder, on the same file system as `path`; by default next to `path`.
        is_private: for this user alone. An artefact is read by other users, such as Triton's.

    Raises:
        FileExistsError: `path` exists. It was not changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=staging or path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for file in files:
                (Path(folder) / file).chmod(0o600 if is_private else 0o644)  # safetensors keeps others out
                sync(Path(folder) / file)
            Path(folder).chmod(0o700 if is_private else 0o755)  # as mkdtemp does
            sync(Path(folder))
        if path.exists():
            raise FileExistsError(f"{path} already exists")
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` when the block ends without an error.

    A folder cannot be renamed over another, so `path` becomes a symbolic link to a hidden folder next to it; renaming a
    link is atomic. The folder it pointed to before is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = path.resolve() if path.is_symlink() else None
    target = path.parent / Path(tempfile.mktemp(dir=path.parent, prefix=f".{path.name}.")).name
    with new_folder(target) as temporary:
        yield temporary
    link = path.parent / f"{target.name}.link"
    link.symlink_to(target.name)
    link.rename(path)
    sync(path.parent)
    if previous is not None:
        shutil.rmtree(previous)


def removed_folder(path: Path) -> bool:
    """Remove what `replaced_folder` left, if it is there: the link first, so that readers never find half of it."""
    if not path.is_symlink():
        return False
    folder = path.resolve()
    path.unlink()
    sync(path.parent)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def sync(path: Path) -> None:
    """Wait until the file or the folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
