"""A Triton model repository on the disk: `<model>/{config.pbtxt,labels.txt,<version>/...}`, changed whole.

Which version Triton serves stands in config.pbtxt, as `version_policy { specific }`, and the folder of a version keeps
the configuration that it was published with. Publishing and going back are therefore one rename, that of config.pbtxt:
a reader, and a Triton that loads at that moment, sees the old version with its configuration or the new one with its
own. `latest` would serve the new version for a moment with the configuration of the old.

Needs Triton's schema of config.pbtxt, which the extras [serving] and [export] bring.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.durable import new_folder, sync, write_file
from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, read_labels, write_labels
from deit.model import CONFIG_FILE

LOCK_WAIT_S = 30.0
"""A writer holds the lock while it copies one model, a second or so; longer means that it hangs."""


def read_config(file: Path) -> model_config_pb2.ModelConfig:
    """A parsed config.pbtxt. Raises RepositoryError when it is missing or not one."""
    try:
        return text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise RepositoryError(f"{file} is no configuration that Triton reads: {error}") from error


def versions(model: Path) -> list[int]:
    """The versions in a model's folder, oldest first."""
    return sorted(int(entry.name) for entry in model.iterdir() if entry.name.isdecimal() and entry.is_dir())


def served_version(model: Path) -> int | None:
    """The version that Triton serves by config.pbtxt, or None when that one is not there."""
    policy, present = read_config(model / CONFIG_FILE).version_policy, versions(model)
    if policy.HasField("specific"):
        return max(set(policy.specific.versions) & set(present), default=None)
    return present[-1] if present else None  # `latest`, which is also Triton's default


def model_folder(repository: Path, name: str) -> Path:
    """The folder of a model. Raises RepositoryError that names the models there are."""
    folder = repository / name
    if not (folder / CONFIG_FILE).is_file():
        names = ", ".join(model_folders(repository)) or "none"
        raise RepositoryError(f"{repository} has no model {name!r}; it has: {names}")
    return folder


def model_folders(repository: Path) -> list[str]:
    """Names of the folders that Triton would take for models. Raises RepositoryError without a repository."""
    if not repository.is_dir():
        raise RepositoryError(f"the model repository {repository} does not exist; name another with --repository")
    return sorted(entry.name for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def publish(
    repository: Path,
    name: str,
    *,
    config: model_config_pb2.ModelConfig,
    label_names: tuple[str, ...],
    fill: Callable[[Path], None],
) -> int:
    """Put a model into the repository as its next version, serve that one, and return its number.

    Args:
        config: complete but for the name and the version policy, which are set here.
        fill: writes the version's files into the folder that it is given.

    Raises:
        RepositoryError: the model has other tensors or class names, another process is writing, or the disk is full.
            The repository is as it was.
    """
    config = _copy(config)
    config.name = name
    model = repository / name
    with writing(repository) as staging, _told_when_unwritable(model):
        if model.exists():
            _refuse_other_interface(model, config, label_names)
            _keep_own_configuration(model)
        version = 1 + max(versions(model), default=0) if model.exists() else 1
        text = _serving(config, version)
        if model.exists():
            with new_folder(model / str(version), staging=staging) as folder:
                fill(folder)
                (folder / CONFIG_FILE).write_text(text)
            write_file(model / CONFIG_FILE, text)
            return version
        with new_folder(model, staging=staging) as folder:
            write_file(folder / CONFIG_FILE, text)
            write_labels(folder / LABELS_FILE, label_names)
            (folder / str(version)).mkdir()
            fill(folder / str(version))
            (folder / str(version) / CONFIG_FILE).write_text(text)
        return version


def serve_version(repository: Path, name: str, version: int) -> None:
    """Make `version` the one that Triton serves from its next load on, with the configuration of that version.

    Raises:
        RepositoryError: there is no such version, or it was published by hand and keeps no configuration.
    """
    model = model_folder(repository, name)
    with writing(repository), _told_when_unwritable(model):
        if version not in versions(model):
            present = ", ".join(map(str, versions(model))) or "none"
            raise RepositoryError(f"{model} has no version {version}; it has: {present}")
        _keep_own_configuration(model)
        own = model / str(version) / CONFIG_FILE
        if not own.is_file():
            raise RepositoryError(
                f"{own.parent} keeps no {CONFIG_FILE}, so what it needs is not known: publish the version again"
            )
        write_file(model / CONFIG_FILE, _serving(read_config(own), version))


def remove(repository: Path, name: str, version: int | None = None) -> None:
    """Take a version away, or the whole model; it disappears by one rename, then its files are deleted.

    Raises:
        RepositoryError: there is no such model or version, or the version is the one that is served.
    """
    model = model_folder(repository, name)
    with writing(repository) as staging, _told_when_unwritable(model):
        target = model
        if version is not None:
            target = model / str(version)
            if version not in versions(model):
                raise RepositoryError(f"{model} has no version {version}")
            if version == served_version(model):
                raise RepositoryError(
                    f"{target} is the version that is served: first go to another with `deit models rollback {name}`"
                )
        target.rename(staging / target.name)
        sync(target.parent)
        shutil.rmtree(staging / target.name)


@contextmanager
def writing(repository: Path) -> Iterator[Path]:
    """The repository's lock, which the kernel frees when its holder dies, and a folder to prepare changes in.

    The folder lies beside the repository, because Triton takes every folder inside for a model, unless the repository
    is a file system of its own. What a killed writer left there is removed.

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
    beside = repository.absolute().parent
    if beside.stat().st_dev == repository.stat().st_dev and os.access(beside, os.W_OK):
        return beside / f".{repository.absolute().name}.publishing"
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
                "`deit models` finish, or end it"
            )
        time.sleep(0.05)


def _serving(config: model_config_pb2.ModelConfig, version: int) -> str:
    """The text of `config` with this version as the served one."""
    config = _copy(config)
    config.version_policy.specific.versions[:] = [version]
    text: str = text_format.MessageToString(config)
    return text


def _keep_own_configuration(model: Path) -> None:
    """Give the served version its configuration, if it came without, so that there is a way back to it."""
    version = served_version(model)
    if version is not None and not (own := model / str(version) / CONFIG_FILE).exists():
        write_file(own, _serving(read_config(model / CONFIG_FILE), version))


def _refuse_other_interface(model: Path, config: model_config_pb2.ModelConfig, label_names: tuple[str, ...]) -> None:
    """A version's clients keep their inputs, outputs and class names."""
    try:
        present = read_config(model / CONFIG_FILE)
        present_labels = read_labels(model / LABELS_FILE)
    except (RepositoryError, OSError, ValueError) as error:
        raise RepositoryError(
            f"{model} is no model that `deit export` wrote ({error}): choose another --name"
        ) from error
    if list(present.input) != list(config.input) or list(present.output) != list(config.output):
        raise RepositoryError(f"{model} has other inputs or outputs than this export: choose another --name")
    if present_labels != label_names:
        raise RepositoryError(f"{model} has other class names than this export: choose another --name")


def _copy(config: model_config_pb2.ModelConfig) -> model_config_pb2.ModelConfig:
    copy = model_config_pb2.ModelConfig()
    copy.CopyFrom(config)
    return copy


@contextmanager
def _told_when_unwritable(model: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise RepositoryError(f"{model} was changed by somebody else meanwhile ({error}); try again") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise  # a file of the caller's, which a full disk does not explain
        raise RepositoryError(
            f"{model} cannot be written: {error.strerror}. The versions before are untouched; make room and try again"
        ) from error
