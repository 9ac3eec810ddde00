"""The model to export, with a name for each of its classes."""

from dataclasses import replace
from pathlib import Path

from timm.data import ImageNetInfo

from deit.errors import RepositoryError
from deit.labels import read_labels
from export.config import ExportConfig
from training.opening import TrainedModel, open_model


def load_source(config: ExportConfig) -> TrainedModel:
    """The model that `config` names; its label names are complete.

    Raises:
        CheckpointError: it cannot be opened.
        RepositoryError: it has no class names and none were given, or another number than classes.
    """
    trained = open_model(config.checkpoint, "--checkpoint", architecture=config.architecture)
    preprocessing = trained.preprocessing
    if config.crop_pct is not None:
        preprocessing = replace(preprocessing, crop_pct=config.crop_pct)
    names = _label_names(config.labels, trained.label_names, trained.model.num_classes)  # type: ignore[arg-type]
    return replace(trained, label_names=names, preprocessing=preprocessing)


def _label_names(given: str | None, known: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The class names: those given on the command line, else the checkpoint's."""
    if given == "imagenet-1k":
        imagenet = ImageNetInfo()
        names = tuple(imagenet.index_to_description(index) for index in range(imagenet.num_classes()))
    elif given is not None:
        try:
            names = read_labels(Path(given))
        except (OSError, ValueError) as error:
            raise RepositoryError(f"--labels {given}: {error}") from error
    elif known:
        names = known
    else:
        raise RepositoryError(
            "the checkpoint does not name its classes: add --labels FILE with one name per line, or --labels "
            "imagenet-1k"
        )
    if len(names) != num_classes:
        raise RepositoryError(f"there are {len(names)} class names, but the model has {num_classes} classes")
    return names
