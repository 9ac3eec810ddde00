"""From one repository to another, such as from staging to production."""

import shutil
from pathlib import Path

from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, read_labels
from deit.model import CONFIG_FILE, MODEL_NAME
from deit.repository.doctor import examine_model
from deit.repository.publishing import publish, read_config, served_version, versions


def promote(model: Path, repository: Path, name: str, version: int | None) -> int:
    """Copy a version of the model in the folder `model` as the next version of `name`; returns its number.

    Args:
        version: the served one when None.

    Raises:
        RepositoryError: the model is not sound, or is another than the one of that name.
    """
    if not MODEL_NAME.fullmatch(name):
        raise RepositoryError(f"--name {name!r}: must match {MODEL_NAME.pattern}")
    if findings := examine_model(model):
        raise RepositoryError(f"{model} is not published: {findings[0]}")
    version = version or served_version(model)
    if version not in versions(model):
        raise RepositoryError(f"{model} has no version {version}")
    source = model / str(version)
    own = source / CONFIG_FILE
    return publish(
        repository,
        name,
        config=read_config(own if own.is_file() else model / CONFIG_FILE),
        label_names=read_labels(model / LABELS_FILE),
        fill=lambda folder: _copy_files(source, folder),
    )


def _copy_files(source: Path, folder: Path) -> None:
    """Bytes alone: a link would lead out of the repository that it is copied to."""
    for file in source.iterdir():
        if file.is_file() and file.name != CONFIG_FILE:
            shutil.copyfile(file, folder / file.name)
