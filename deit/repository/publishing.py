"""Changes of a model repository: publish, promote, roll back, remove. Each is atomic.

config.pbtxt names the version that Triton serves (`version_policy { specific }`), and each version keeps the
configuration that it was published with. So publishing and rolling back end with one rename, that of config.pbtxt:
a reader, or a Triton that loads at that moment, gets the old version with its configuration or the new one with
its own. With Triton's usual policy `latest`, the new version would run for a moment with the old configuration.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from deit.candidate import CandidateModel
from deit.durable import new_folder, sync, write_file
from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, read_labels, write_labels
from deit.model import VERSION_PARAMETER
from deit.repository.config import config_text, read_config, without_candidate
from deit.repository.doctor import examine_version, newest_sound, rollback_command
from deit.repository.layout import CONFIG_FILE, MODEL_NAME, models_command
from deit.repository.lock import writing
from deit.repository.models import (
    candidate_of,
    find_model,
    listed,
    model_folders,
    published_version,
    read_loaded,
    read_served,
    read_version,
    version_numbers,
)
from deit.repository.numbers import newest_number, remember_newest_number

logger = logging.getLogger(__name__)


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
    model = repository / name
    named = without_candidate(config)
    named.name = name
    with writing(repository) as staging, explain_unwritable(model):
        version = 1 + newest_number(model)
        named.parameters[VERSION_PARAMETER].string_value = str(version)
        if not model.exists():
            with new_folder(model, staging=staging) as folder:
                write_labels(folder / LABELS_FILE, label_names)
                (folder / str(version)).mkdir()
                fill(folder / str(version))
                for file in (folder / CONFIG_FILE, folder / str(version) / CONFIG_FILE):
                    file.write_text(config_text(named, [version]))
            return version
        _refuse_other_interface(model, named, label_names)
        _keep_configurations(model)
        ends = _candidate(model)
        with new_folder(model / str(version), staging=staging) as folder:
            fill(folder)
            (folder / CONFIG_FILE).write_text(config_text(named, [version]))
        write_file(model / CONFIG_FILE, config_text(named, [version]))
        _say_what_ends(model, ends)
        return version


def refuse_taken_name(model: Path, *, image_size: int, label_names: tuple[str, ...]) -> None:
    """Raise RepositoryError where `publish` would refuse a version with this input and these classes.

    For commands that take minutes before they publish.
    """
    if model.exists():
        present = _present(model)
        if list(present.input[0].dims) != [image_size, image_size, 3]:
            raise RepositoryError(f"{model} takes images of {list(present.input[0].dims)}: choose another --name")
        _refuse_other_classes(model, label_names)


def promote(model: Path, repository: Path, name: str, number: int | None = None) -> int:
    """Copy a version of the model in the folder `model`, the served one by default, to another repository.

    It becomes the next version of the model `name` there. Returns its number.

    Raises:
        RepositoryError: the version is not sound, or the model there has another interface.
    """
    if not MODEL_NAME.fullmatch(name):
        raise RepositoryError(f"--name {name!r}: must match {MODEL_NAME.pattern}")
    version = read_version(model, number)
    if findings := examine_version(version):
        raise RepositoryError(f"{version.folder} is not published: {findings[0]}")

    def copy_files(folder: Path) -> None:
        """Content only: a link would lead out of the repository that it is copied to."""
        for file in version.folder.iterdir():
            if file.is_file() and file.name != CONFIG_FILE:
                shutil.copyfile(file, folder / file.name)

    return publish(repository, name, config=version.config, label_names=version.labels, fill=copy_files)


def serve_version(repository: Path, name: str, number: int) -> None:
    """Make Triton serve this version from its next load on, with the configuration that it was published with.

    Raises:
        RepositoryError: the version does not exist, has a fault, or was made by hand and has no configuration.
    """
    model = find_model(repository, name)
    with writing(repository), explain_unwritable(model):
        with suppress(RepositoryError):  # an unreadable config.pbtxt is a reason to roll back, not to stop
            _keep_configurations(model)
        version = published_version(model, number)
        if findings := examine_version(version):
            raise RepositoryError(f"version {number} of {name} is not sound, nothing was changed: {findings[0]}")
        ends = _candidate(model)
        write_file(model / CONFIG_FILE, config_text(version.config, [number]))
        _say_what_ends(model, ends)


def remove(repository: Path, name: str, number: int | None = None) -> None:
    """Remove a version, or the whole model: it disappears by one rename, then its files are deleted.

    Its number is never reused, because a gateway takes the same name and number for the same version.

    Raises:
        RepositoryError: the model or version does not exist, the version is served, or it is another model's candidate.
    """
    model = find_model(repository, name)
    with writing(repository) as staging, explain_unwritable(model):
        _refuse_a_candidate(model, number)
        target = model if number is None else _removable(model, number)
        remember_newest_number(model)
        target.rename(staging / target.name)
        sync(target.parent)
        shutil.rmtree(staging / target.name)


def _refuse_a_candidate(model: Path, number: int | None) -> None:
    """A model whose candidate is gone would lose that share of its requests at Triton's next start."""
    for other in model_folders(model.parent):
        candidate = _candidate(model.parent / other)
        if other == model.name or candidate is None or candidate.model != model.name:
            continue
        if number is None or str(number) == candidate.version:
            end = models_command(candidate.mode, other, "--percent", 0, repository=model.parent)
            raise RepositoryError(f"{model.name} is the {candidate.mode} of {other}: {end} ends that")


def _removable(model: Path, number: int) -> Path:
    if number not in version_numbers(model):
        raise RepositoryError(f"{model} has no version {number}; it has: {listed(version_numbers(model))}")
    if number in read_loaded(model)[1]:
        if number not in read_served(model)[1]:
            end = models_command("canary", model.name, "--percent", 0, repository=model.parent)
            raise RepositoryError(f"version {number} of {model.name} is its candidate: {end} ends that")
        other = newest_sound(model, but=number)
        first = f"serve another first, with {rollback_command(other)}" if other else "no other version is sound"
        whole = models_command("remove", model.name, repository=model.parent)
        raise RepositoryError(f"version {number} of {model.name} is served: {first}; {whole} removes the whole model")
    return model / str(number)


def _keep_configurations(model: Path) -> None:
    """Give served versions without their own configuration the one that they run with, so a rollback can find it."""
    config, served = read_served(model)
    for number in served:
        if not (own := model / str(number) / CONFIG_FILE).exists():
            write_file(own, config_text(without_candidate(config), [number]))


def _candidate(model: Path) -> CandidateModel | None:
    with suppress(RepositoryError):
        return candidate_of(model, read_config(model / CONFIG_FILE))
    return None


def _say_what_ends(model: Path, candidate: CandidateModel | None) -> None:
    """A candidate ends with the served version that it was compared with."""
    if candidate is not None:
        logger.warning("%s: this ends the %s", model.name, candidate)


def _refuse_other_interface(model: Path, config: model_config_pb2.ModelConfig, label_names: tuple[str, ...]) -> None:
    """Clients must find the same inputs, outputs and class names in a new version."""
    present = _present(model)
    if list(present.input) != list(config.input) or list(present.output) != list(config.output):
        raise RepositoryError(f"{model} has other inputs or outputs than this export: choose another --name")
    _refuse_other_classes(model, label_names)


def _refuse_other_classes(model: Path, label_names: tuple[str, ...]) -> None:
    if read_labels(model / LABELS_FILE) != label_names:
        raise RepositoryError(f"{model} has other class names than this export: choose another --name")


def _present(model: Path) -> model_config_pb2.ModelConfig:
    """The configuration of a model that `publish` has written."""
    try:
        read_labels(model / LABELS_FILE)
        return read_config(model / CONFIG_FILE)
    except (RepositoryError, OSError, ValueError) as error:
        raise RepositoryError(f"{model} was not written by `deit export` ({error}): choose another --name") from error


@contextmanager
def explain_unwritable(model: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise RepositoryError(f"{model} was changed by another process meanwhile ({error}); try again") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise  # a file of the caller's, which a full disk does not explain
        raise RepositoryError(
            f"{model} cannot be written: {error.strerror}. Earlier versions are untouched; free space and try again"
        ) from error
