"""Where a model comes from: a checkpoint folder, a weights file of DeiT's own code, or timm."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo
from torch import nn

from deit.checkpoint import WEIGHTS_FILE, read_checkpoint_config
from deit.errors import CheckpointError, RepositoryError
from deit.labels import read_labels
from deit.preprocessing import Preprocessing
from export.config import ExportConfig
from training.checkpoint import load_checkpoint, load_weights, read_pytorch, read_safetensors
from training.model import timm_preprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model and what is known of it.

    Attributes:
        model: on the CPU, in evaluation mode.
        weights_sha256: of the weights file, or of the state dictionary's tensors when timm downloaded them.
        teacher, metrics: what the checkpoint says of its training; None and {} when it says nothing.
    """

    model: nn.Module
    architecture: str
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
    weights_sha256: str
    teacher: str | None = None
    metrics: dict[str, float]


def load_source(config: ExportConfig) -> Source:
    """The model that `config` names.

    Raises:
        CheckpointError: it is missing, damaged, unsafe, or of another architecture than named.
        RepositoryError: it has no class names and none were given, or another number than classes.
    """
    if config.timm is not None:
        source = _from_timm(config.timm, config.labels)
    elif config.checkpoint is not None and config.checkpoint.is_dir():
        if config.architecture is not None:
            raise CheckpointError(f"{config.checkpoint} names its architecture itself: leave --architecture out")
        source = _from_folder(config.checkpoint, config.labels)
    else:
        assert config.checkpoint is not None  # ExportConfig checks it
        source = _from_file(config.checkpoint, config.architecture, config.labels)
    if config.crop_pct is not None:
        source = replace(source, preprocessing=replace(source.preprocessing, crop_pct=config.crop_pct))
    return source


def _from_folder(folder: Path, labels: str | None) -> Source:
    description = read_checkpoint_config(folder)
    return Source(
        model=load_checkpoint(folder),
        architecture=description.architecture,
        label_names=_label_names(labels, description.label_names, description.num_classes),
        preprocessing=description.preprocessing,
        weights_sha256=_file_sha256(folder / WEIGHTS_FILE),
        teacher=description.deit.get("teacher"),
        metrics=dict(description.deit.get("metrics", {})),
    )


def _from_file(path: Path, architecture: str | None, labels: str | None) -> Source:
    """A weights file alone: safetensors, a state dictionary, or DeiT's own {"model": state dictionary}.

    https://github.com/facebookresearch/deit/blob/main/README_deit.md lists the released files.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist. --checkpoint takes a checkpoint folder or a weights file.")
    if architecture is None:
        raise CheckpointError(f"{path} does not say what it is: add --architecture, such as deit_tiny_patch16_224")
    if not timm.is_model(architecture):
        raise CheckpointError(f"timm {timm.__version__} has no model {architecture!r}")
    state: dict[str, Any] = read_safetensors(path) if path.suffix == ".safetensors" else read_pytorch(path)
    if isinstance(state.get("model"), dict):
        state = state["model"]
    head = state.get("head.weight")
    if head is None:
        raise CheckpointError(f"{path} has no head.weight: it is not a classifier in DeiT's layout")
    model = timm.create_model(architecture, num_classes=head.shape[0])
    load_weights(model, state, source=path)
    return Source(
        model=model.eval(),
        architecture=architecture,
        label_names=_label_names(labels, None, head.shape[0]),
        preprocessing=timm_preprocessing(model),
        weights_sha256=_file_sha256(path),
        metrics={},
    )


def _from_timm(name: str, labels: str | None) -> Source:
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"timm {timm.__version__} cannot give {name} with weights: {error}") from error
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    return Source(
        model=model.eval(),
        architecture=name,
        label_names=_label_names(labels, None, model.num_classes),
        preprocessing=timm_preprocessing(model),
        weights_sha256=digest.hexdigest(),
        metrics={},
    )


def _label_names(given: str | None, known: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...]:
    """The class names: those given on the command line, else the checkpoint's."""
    if given == "imagenet-1k":
        imagenet = ImageNetInfo()
        names = tuple(imagenet.index_to_description(index) for index in range(imagenet.num_classes()))
    elif given is not None:
        try:
            names = read_labels(Path(given))
        except (OSError, ValueError) as error:
            raise RepositoryError(f"--labels {given}: {error}") from error
    elif known is not None:
        names = known
    else:
        raise RepositoryError(
            "the checkpoint names no classes: add --labels FILE with one name a line, or --labels imagenet-1k"
        )
    if len(names) != num_classes:
        raise RepositoryError(f"there are {len(names)} class names, but the model decides among {num_classes} classes")
    return names


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
