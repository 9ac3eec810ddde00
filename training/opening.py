"""Opens a trained model by its name: a checkpoint folder, a weights file, a timm model or one from the Hub.

Only weights are read, never code. A weights file may be a state dictionary (safetensors or PyTorch) or a file of DeiT's
main.py (`model`, `model_ema`), timm's train.py (`state_dict`, `state_dict_ema`) or Lightning (`state_dict`); averaged
weights are preferred, and the log says so.
"""

import hashlib
import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deit.checkpoint import WEIGHTS_FILE, read_checkpoint_config
from deit.errors import CheckpointError
from deit.options import MODEL_SOURCES
from deit.preprocessing import Preprocessing
from training.checkpoint import load_checkpoint, load_weights, read_pytorch, read_safetensors

logger = logging.getLogger(__name__)

HUB = "hf-hub:"

# Keys under which training programs keep weights; the first one found counts, averaged before trained.
AVERAGED, TRAINED = ("state_dict_ema", "model_ema"), ("state_dict", "model")

# Prefixes of wrappers around the model: DistributedDataParallel, Lightning, torch.compile
PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its metadata.

    Attributes:
        model: on the CPU, in evaluation mode.
        architecture: timm's name.
        label_names: of the classes in index order; empty if unknown.
        preprocessing: the evaluation transform that the model was trained for.
        weights_sha256: of the weights file, or of the state dictionary's tensors if timm downloaded them.
        teacher, metrics: what the checkpoint says about its training; None and {} if it says nothing.
    """

    model: nn.Module
    architecture: str
    label_names: tuple[str, ...] = ()
    preprocessing: Preprocessing
    weights_sha256: str
    teacher: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def open_model(name: str, option: str, *, architecture: str | None = None, downloads: bool = True) -> TrainedModel:
    """The model of that name.

    Args:
        name: any of `MODEL_SOURCES`. A file or folder of that name takes precedence over timm's names.
        option: the option that gave the name, for messages.
        architecture: timm's name of the architecture, for a weights file that does not give it.
        downloads: fetch the weights of a timm model; otherwise they are random, which suffices to measure time.

    Raises:
        CheckpointError: it is missing, damaged, unsafe to open or of another architecture, or does not read RGB
            squares.
    """
    path = Path(name)
    if path.is_file():
        return _from_file(path, option, architecture)
    if not path.is_dir():
        _refuse_unknown(name, option)
    if architecture is not None:
        raise CheckpointError(f"{option} {name} names its architecture itself: leave --architecture out")
    return _from_folder(path) if path.is_dir() else _from_timm(name, option, downloads=downloads)


def read_weights(name: str, option: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dictionary of the model of that name, and the names of its classes if known.

    Raises:
        CheckpointError: as `open_model`.
    """
    path = Path(name)
    if path.is_file():
        return state_of(_read_file(path), path), ()
    if path.is_dir():
        return read_safetensors(path / WEIGHTS_FILE), read_checkpoint_config(path).label_names or ()
    _refuse_unknown(name, option)
    opened = _from_timm(name, option, downloads=True)
    return dict(opened.model.state_dict()), opened.label_names


def weights_identity(name: str) -> str:
    """An identity that stays the same if the weights are moved: the SHA-256 of their file, or the name of a model that
    timm downloads.

    Raises:
        CheckpointError: a folder of that name has no weights.
    """
    path = Path(name)
    if path.is_dir():
        path = path / WEIGHTS_FILE
        if not path.is_file():
            raise CheckpointError(f"{name} has no {WEIGHTS_FILE}: give the folder that `deit train` wrote")
    return _file_sha256(path) if path.is_file() else name


def timm_preprocessing(model: nn.Module) -> Preprocessing:
    """The images that a timm model expects, as timm describes them.

    Raises:
        CheckpointError: they are not RGB squares, or are cropped in a way that is not supported.
    """
    try:
        return Preprocessing.from_timm(timm.data.resolve_model_data_config(model))
    except ValueError as error:
        architecture = model.pretrained_cfg["architecture"]  # type: ignore[index]
        raise CheckpointError(f"{architecture} reads images that cannot be served: {error}") from error


def state_of(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dictionary in a training program's file, without the prefixes of wrappers.

    Raises:
        CheckpointError: the file has none.
    """
    found = next((key for key in (*AVERAGED, *TRAINED) if isinstance(content.get(key), dict)), None)
    state = content if found is None else content[found]
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        keys = ", ".join(list(map(str, content))[:5])
        raise CheckpointError(
            f"{path} does not hold a state dictionary, neither itself nor under one of the keys "
            f"{', '.join((*TRAINED, *AVERAGED))}; it has {keys or 'nothing'}. Save the model's state_dict alone."
        )
    if found in AVERAGED:
        logger.info("%s: using the averaged weights, %s", path, found)
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _from_folder(folder: Path) -> TrainedModel:
    description = read_checkpoint_config(folder)
    return TrainedModel(
        model=load_checkpoint(folder),
        architecture=description.architecture,
        label_names=description.label_names or (),
        preprocessing=description.preprocessing,
        weights_sha256=_file_sha256(folder / WEIGHTS_FILE),
        teacher=description.deit.get("teacher"),
        metrics=dict(description.deit.get("metrics", {})),
    )


def _from_file(path: Path, option: str, architecture: str | None) -> TrainedModel:
    content = _read_file(path)
    architecture = architecture or _named_architecture(content)
    if architecture is None:
        raise CheckpointError(
            f"{option} {path} does not say what it is: add --architecture, such as deit_tiny_patch16_224, or where "
            "the command lacks that option, make a checkpoint folder of it with timm's save_for_hf"
        )
    if not timm.is_model(architecture):
        raise CheckpointError(f"timm {timm.__version__} has no model {architecture!r}")
    state = state_of(content, path)
    defaults = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    heads = defaults.classifier or "head"
    head = f"{heads if isinstance(heads, str) else heads[0]}.weight"
    if head not in state:
        raise CheckpointError(f"{path} has no {head}: it is not a classifier in the layout of timm's {architecture}")
    model = timm.create_model(architecture, num_classes=len(state[head]))
    preprocessing = timm_preprocessing(model)
    image_size = _trained_size(model, state)
    if image_size is not None:
        model.set_input_size(img_size=image_size)
        preprocessing = replace(preprocessing, image_size=image_size)
    load_weights(model, state, source=path)
    return TrainedModel(
        model=model.eval(),
        architecture=architecture,
        preprocessing=preprocessing,
        weights_sha256=_file_sha256(path),
    )


def _refuse_unknown(name: str, option: str) -> None:
    """Raises CheckpointError if the name is not in timm's list and does not have the Hub's prefix."""
    if not name.startswith(HUB) and not (set(name).isdisjoint("/\\:") and timm.is_model(name)):
        raise CheckpointError(
            f"{option} {name}: there is no such file or folder, and timm {timm.__version__} has no model of this name. "
            f"Give {MODEL_SOURCES}."
        )


def _from_timm(name: str, option: str, *, downloads: bool) -> TrainedModel:
    """A model from timm's list, or one from the Hub in timm's format."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=downloads).eval()
    except KeyError as error:
        raise CheckpointError(
            f"{option} {name}: its config.json has no {error}, so timm did not write it. Models in the format of "
            "transformers are not read; take the one that timm publishes."
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, SafetensorError) as error:
        raise CheckpointError(
            f"{option} {name}: timm {timm.__version__} could not load its weights: {_first_line(error)}. "
            "They come from the Hugging Face Hub: check the name and the connection, or give a folder or a file."
        ) from error
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return TrainedModel(
        model=model,
        architecture=str(config["architecture"]) if name.startswith(HUB) else name,
        label_names=tuple(map(str, config.get("label_names") or ())),
        preprocessing=timm_preprocessing(model),
        weights_sha256=_state_sha256(model.state_dict()),
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")


def _read_file(path: Path) -> dict[str, Any]:
    return dict(read_safetensors(path)) if path.suffix == ".safetensors" else read_pytorch(path)


def _named_architecture(content: dict[str, Any]) -> str | None:
    """The architecture that timm's train.py and DeiT's main.py save with the weights, None in other files."""
    named = (content.get("arch"), getattr(content.get("args"), "model", None))
    return next((name for name in named if isinstance(name, str) and timm.is_model(name)), None)


def _trained_size(model: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The side of the images by the number of positions; None if the architecture has as many, or has none."""
    if not isinstance(model, VisionTransformer) or model.pos_embed is None or "pos_embed" not in state:
        return None
    positions = state["pos_embed"].shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    side = math.isqrt(max(positions, 0))
    if side * side != positions or side in (0, model.patch_embed.grid_size[0]):
        return None  # it matches, or is another architecture, and then load_weights says what differs
    return side * int(model.patch_embed.patch_size[0])


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_sha256(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
