"""Checkpoint folders and the resume state of a run: written atomically, read without executing code.

Weights are safetensors. PyTorch files are always read with `weights_only=True`, because a pickle can run code.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from deit.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_checkpoint_config
from deit.durable import replaced_folder, replacement
from deit.errors import CheckpointError
from deit.preprocessing import Preprocessing


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    *,
    label_names: tuple[str, ...],
    preprocessing: Preprocessing,
    deit: dict[str, Any],
) -> None:
    """Replace the checkpoint folder by one that timm opens as `local-dir`; `deit` is kept under that key of
    config.json.
    """
    # safetensors stores contiguous tensors alone, and --channels-last makes others
    contiguous = deepcopy(model).to(memory_format=torch.contiguous_format)
    size = preprocessing.image_size
    with _explained_when_unwritable(folder), replaced_folder(folder) as temporary:
        save_for_hf(
            contiguous,
            str(temporary),
            safe_serialization=True,
            model_config={"label_names": list(label_names), "deit": deit},
            data_config={
                "input_size": (3, size, size),
                "crop_pct": preprocessing.crop_pct,
                "crop_mode": preprocessing.crop_mode,
                "interpolation": preprocessing.interpolation,
                "mean": preprocessing.mean,
                "std": preprocessing.std,
            },
        )


def load_checkpoint(folder: Path) -> nn.Module:
    """The model of a checkpoint folder, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the folder is damaged, or its weights are not those of the architecture it names.
    """
    config = read_checkpoint_config(folder)
    if not timm.is_model(config.architecture):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} names the architecture {config.architecture!r}, which timm {timm.__version__} "
            "does not have"
        )
    try:
        model: nn.Module = timm.create_model(
            config.architecture, **{**config.model_args, "num_classes": config.num_classes}
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"timm {timm.__version__} cannot make the {config.architecture} that "
            f"{folder / CONFIG_FILE} describes: {error}"
        ) from error
    load_weights(model, read_safetensors(folder / WEIGHTS_FILE), source=folder / WEIGHTS_FILE)
    return model.eval()


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], *, source: Path) -> None:
    """Load every weight or none; the error names what differs, the first of each kind."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    reshaped = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    findings = [
        f"{names[0]} (and {len(names) - 1} more) {finding}"
        for names, finding in ((missing, "is missing"), (unknown, "is not in the model"))
        if names
    ]
    findings += [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(expected[name].shape)}" for name in reshaped[:1]
    ]
    if findings:
        raise CheckpointError(
            f"{source} holds the weights of another architecture than {type(model).__name__}: {'; '.join(findings)}. "
            "Name the architecture the weights were trained with."
        )
    model.load_state_dict(state)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Restore it or train again.") from error


def read_pytorch(path: Path) -> dict[str, Any]:
    """The content of a PyTorch file that holds tensors and plain data.

    Raises:
        CheckpointError: it is not a PyTorch file, is damaged, or holds pickled code.
    """
    try:
        # DeiT's main.py and timm's train.py save the run's arguments with the weights
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter(
                "ignore", UserWarning
            )  # torch warns of the pickle protocol of files that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        more = f" ({refused[1]})" if refused else ""
        raise CheckpointError(
            f"{path} holds more than tensors{more}, and opening it could run code, so it is refused. Save only its "
            "state_dict, preferably as safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is not a PyTorch file, or is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def write_pytorch(path: Path, content: dict[str, Any]) -> None:
    with _explained_when_unwritable(path), replacement(path) as temporary:
        torch.save(content, temporary)


@contextmanager
def _explained_when_unwritable(path: Path) -> Iterator[None]:
    """Turns a full or broken disk into one sentence. torch and safetensors report it in three kinds of errors."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}. The earlier files are untouched; free space and continue with --resume"
        ) from error
