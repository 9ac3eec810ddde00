"""The checkpoint folder: `model.safetensors` next to `config.json`, in timm's `local-dir` layout.

`timm.create_model("local-dir:runs/x/checkpoint", pretrained=True)` opens it without this project. timm reads the
architecture, its arguments, the label names and the preprocessing; our additions are under the key "deit".
Reading it does not need torch; `training.checkpoint` writes it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deit.errors import CheckpointError
from deit.preprocessing import Preprocessing

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What `config.json` says about the weights next to it.

    Attributes:
        architecture: timm's model name, without a tag.
        model_args: arguments of timm's `create_model` beyond the name, such as {"patch_size": 4}.
        num_classes: size of each head.
        label_names: class names in index order, or None when the checkpoint names none.
        preprocessing: the evaluation transform the model was trained for.
        deit: our notes: recipe, teacher, distillation, metrics.
    """

    architecture: str
    model_args: dict[str, Any]
    num_classes: int
    label_names: tuple[str, ...] | None
    preprocessing: Preprocessing
    deit: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.label_names is not None and len(self.label_names) != self.num_classes:
            raise ValueError(f"{len(self.label_names)} label names for {self.num_classes} classes")


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    """Read `config.json` of a checkpoint folder, made by us or by timm.

    Raises:
        CheckpointError: the folder, a file or a field is missing or not as timm writes it.
    """
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. A checkpoint is the folder that `deit train` writes.")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder} has no {file}. A checkpoint folder holds {CONFIG_FILE} and {WEIGHTS_FILE}; "
                "`deit train` writes both to runs/<name>/checkpoint."
            )
    try:
        config = json.loads(path.read_text())
        pretrained = config["pretrained_cfg"]
        labels = config.get("label_names")
        return CheckpointConfig(
            architecture=str(config["architecture"]),
            model_args=dict(config.get("model_args", {})),
            num_classes=int(config["num_classes"]),
            label_names=tuple(map(str, labels)) if labels else None,
            preprocessing=Preprocessing.from_timm(pretrained),
            deit=dict(config.get("deit", {})),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path} does not describe a checkpoint: {error!r}. Train or save it again.") from error
