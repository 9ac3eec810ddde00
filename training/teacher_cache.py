"""Caches the teacher's outputs by draw, so that runs which show it the same images compute them only once.

The run's seed and the position of a draw decide an image's augmentation (training.seeds), and so the output. A folder
holds a key, which lists what the outputs depend on, and a file per epoch, written atomically.
"""

import io
import json
import logging
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import PIL.Image
import timm
import torch
import torchvision
from torch import Tensor

from deit.checkpoint import read_checkpoint_config
from deit.durable import write_file
from deit.errors import DataError, TrainingError
from deit.fast_resize import can_resize
from training.config import TrainConfig
from training.images import LabelledImages
from training.opening import weights_identity
from training.processes import Processes
from training.provenance import fingerprint
from training.sampler import Shares

logger = logging.getLogger(__name__)

KEY_FILE = "key.json"

AUGMENTATION = (
    *("image_size", "min_crop_area", "auto_augment", "random_erasing", "mixup_alpha", "cutmix_alpha"),
    *("mixing_probability", "repeated_augmentation", "balanced_sampling", "pixel_bank"),
)
"""The settings that decide how the teacher sees an image."""

MOST_CLASSES = 2**15
"""Because a class is kept as a 16-bit number."""


@dataclass(frozen=True)
class Form:
    """How an output is stored, as 16-bit numbers.

    Attributes:
        classes: number of classes of the teacher.
        best: None keeps the decision, in 2 bytes; a number keeps that many of the largest logits and the mass of all
            others, in 4 x best + 2 bytes.
        temperature: of the softmax whose mass is kept.
    """

    classes: int
    best: int | None
    temperature: float

    @property
    def width(self) -> int:
        """How many numbers an answer takes."""
        return 1 if self.best is None else 2 * self.best + 1

    def encode(self, logits: Tensor) -> Tensor:
        """int16 (N, width) of logits (N, classes)."""
        if self.best is None:
            return logits.argmax(dim=-1, keepdim=True).to(torch.int16)
        # subtracting the largest logit does not change a softmax, and 16 bits are more exact for small numbers
        logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)
        best = logits.topk(self.best, dim=-1)
        others = (logits / self.temperature).scatter(1, best.indices, -torch.inf)
        numbers = torch.cat([best.values, others.logsumexp(dim=-1, keepdim=True)], dim=1)
        halves = numbers.clamp_min(torch.finfo(torch.float16).min).half()
        return torch.cat([best.indices.to(torch.int16), halves.view(torch.int16)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Classes (N,), or logits (N, classes) in which the others share their mass equally."""
        if self.best is None:
            return codes[:, 0].long()
        numbers = codes[:, self.best :].contiguous().view(torch.float16).float()
        share = numbers[:, -1:] - math.log(max(self.classes - self.best, 1))
        logits = (share * self.temperature).expand(-1, self.classes)
        return logits.scatter(1, codes[:, : self.best].long(), numbers[:, :-1])

    def error(self, logits: Tensor, decoded: Tensor) -> Tensor:
        """Total variation of the softmaxes before and after, summed over the images: the mass that moved."""
        if self.best is None:
            return torch.zeros((), device=logits.device)
        before, after = ((each.float() / self.temperature).softmax(dim=-1) for each in (logits, decoded))
        return (before - after).abs().sum() / 2


class TeacherCache:
    """The teacher's outputs by epoch: read if they are stored, otherwise stored as the teacher computes them."""

    def __init__(
        self,
        folder: Path,
        key: dict[str, Any],
        form: Form,
        *,
        steps: int,
        shares: Shares,
        processes: Processes,
        device: torch.device,
    ) -> None:
        """Raises TrainingError if the folder's answers are for other images or from another teacher."""
        self._folder, self._form, self._shares, self._processes, self._device = folder, form, shares, processes, device
        self._draws = steps * shares.batch_size
        self.key = json.loads(json.dumps(key))
        self._refuse_another()
        self._epoch = 0
        self._is_read = self._is_whole = False
        self._codes = torch.zeros(0)
        self._moved = torch.zeros(2)  # the mass that moved, and the number of answers

    def lacks(self, epochs: range) -> bool:
        """Whether the answers of any of these epochs are missing."""
        return not all(self._file(epoch).is_file() for epoch in epochs)

    def begin(self, epoch: int, first_step: int, codes: Tensor | None) -> None:
        """Go to an epoch; one that was stopped continues with the `codes` that `collected` returned then.

        Raises:
            DataError: the file of the epoch is damaged.
        """
        self._epoch = epoch
        there = torch.tensor(float(self._file(epoch).is_file()), device=self._device)
        self._is_read = self._processes.sum(there).item() == self._processes.count  # files may come, but never go
        self._moved = torch.zeros(2, device=self._device)
        if self._is_read:
            self._codes = self._read().to(self._device)
            return
        if self._processes.is_first and not (self._folder / KEY_FILE).is_file():
            write_file(self._folder / KEY_FILE, json.dumps(self.key, indent=2) + "\n")
        self._refuse_another()
        self._is_whole = first_step == 0 or codes is not None
        self._codes = torch.zeros(self._draws, self._form.width, dtype=torch.int16, device=self._device)
        if codes is not None and self._processes.is_first:
            self._codes.copy_(codes)

    def recall(self, step: int, turn: int) -> Tensor | None:
        """The answers to a device batch: classes (n,) or logits (n, classes). None if the teacher must compute them."""
        return self._form.decode(self._codes[self._places(step, turn)]) if self._is_read else None

    def keep(self, step: int, turn: int, logits: Tensor) -> Tensor:
        """Keep the teacher's logits (n, classes), and return them as `recall` will."""
        codes = self._form.encode(logits)
        self._codes[self._places(step, turn)] = codes
        decoded = self._form.decode(codes)
        self._moved[0] += self._form.error(logits, decoded)
        self._moved[1] += len(logits)
        return decoded

    def collected(self) -> Tensor | None:
        """What all processes have kept of the epoch so far, on the CPU; None if it is read, or lacks its beginning."""
        if self._is_read or not self._is_whole:
            return None
        # each draw belongs to one process, and the others have zeros there; NCCL cannot add 16-bit numbers
        return self._processes.sum(self._codes.int()).to(torch.int16).cpu()

    def finish(self) -> None:
        """Write the epoch's file, if its answers were not read from it."""
        codes = self.collected()
        moved, answers = self._processes.sum(self._moved).tolist()
        if codes is None or not self._processes.is_first:
            return
        buffer = io.BytesIO()
        error = moved / max(answers, 1)
        np.savez(buffer, codes=codes.numpy(), error=np.float64(error))
        write_file(self._file(self._epoch), buffer.getvalue())
        logger.info(
            "stored the teacher's outputs for epoch %d: %.1f MB, %d bytes per draw, which move %.2g of the mass",
            *(self._epoch + 1, codes.numel() * 2 / 1e6, self._form.width * 2, error),
        )

    def _refuse_another(self) -> None:
        """Raises TrainingError when the folder has another key, naming what differs first, or answers without one."""
        file = self._folder / KEY_FILE
        if not file.is_file():
            if epochs := sorted(self._folder.glob("epoch-*.npz")):
                raise TrainingError(
                    f"--teacher-cache {self._folder} has {epochs[0].name} without the {KEY_FILE} that says what it "
                    "answers to: copy that file too, or give another folder"
                )
            return
        try:
            there = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} is damaged ({error}): remove the folder, and the teacher will run again"
            ) from error
        for name, here in self.key.items():
            if there.get(name) != here:
                raise TrainingError(
                    f"--teacher-cache {self._folder} keeps answers for {name} {there.get(name)}, this run has {here}: "
                    "repeat the settings that the cache was written with, or give another folder"
                )

    def _places(self, step: int, turn: int) -> slice:
        start = step * self._shares.batch_size
        return slice(start + self._shares.part(turn), start + self._shares.batch_size, self._shares.parts)

    def _file(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch + 1:04}.npz"

    def _read(self) -> Tensor:
        file = self._file(self._epoch)
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
                codes = torch.from_numpy(content["codes"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} is damaged ({error}): remove it, and the teacher will run again") from error
        if codes.shape != (self._draws, self._form.width) or codes.dtype != torch.int16:
            raise DataError(
                f"{file} has {tuple(codes.shape)} numbers, not {(self._draws, self._form.width)}: remove it"
            )
        return codes


def open_cache(
    config: TrainConfig,
    images: LabelledImages,
    *,
    shares: Shares,
    processes: Processes,
    device: torch.device,
    precision: torch.dtype,
) -> TeacherCache | None:
    """The cache that the run asks for.

    Raises:
        TrainingError: the folder's answers are for other images or from another teacher.
    """
    if config.teacher_cache is None:
        return None
    assert config.teacher is not None  # TrainConfig asks for one
    classes = len(images.label_names)
    if classes > MOST_CLASSES:
        raise TrainingError(f"--teacher-cache keeps up to {MOST_CLASSES} classes, the data has {classes}: leave it out")
    temperature = {"soft": config.temperature, "nkd": config.nkd_temperature}.get(config.distillation, 1.0)
    best = None if config.distillation == "hard" else min(config.teacher_cache_logits, classes)
    settings = config.settings
    key = {
        "data": fingerprint(images),
        "seed": config.seed,
        **{name: settings[name] for name in AUGMENTATION},
        "batch_size": config.batch_size,
        "device batches of a step": shares.parts,
        "teacher": weights_identity(config.teacher),
        "teacher_image_size": config.teacher_image_size,
        **_described_by(config.teacher, images.label_names),
        "channels_last": config.channels_last,
        "compile": config.compile,
        "resize with vector instructions": can_resize(PIL.Image.Resampling.BICUBIC),
        "precision": str(precision).removeprefix("torch."),
        "device": device.type,
        "teacher_cache_logits": best,
        "temperature": None if best is None else temperature,
        "versions": {each.__name__: each.__version__ for each in (torch, torchvision, timm, np, PIL)},
    }
    return TeacherCache(
        config.teacher_cache,
        key,
        Form(classes, best, temperature),
        steps=len(images) // config.batch_size,
        shares=shares,
        processes=processes,
        device=device,
    )


def _described_by(teacher: str, label_names: tuple[str, ...]) -> dict[str, Any]:
    """The input and, if they differ from the data's, the classes of a teacher in a folder; None for a teacher that is
    fully described by its weights or name.
    """
    if not Path(teacher).is_dir():
        return {"teacher's images": None, "teacher's classes": None}
    description = read_checkpoint_config(Path(teacher))
    images = {name: getattr(description.preprocessing, name) for name in ("image_size", "mean", "std")}
    names = description.label_names
    return {"teacher's images": images, "teacher's classes": None if names in (None, label_names) else names}
