"""The predictions of every run of a comparison, and of every teacher, on the test images."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from timm.models.deit import VisionTransformerDistilled

from deit.checkpoint import read_checkpoint_config
from deit.errors import DataError
from studies.comparison import Runs
from studies.cosines import TokenCosines, token_cosines
from training.data import evaluation_batches
from training.evaluate import readouts
from training.images import open_images
from training.model import Normalize, load_teacher
from training.opening import open_model
from training.provenance import fingerprint

logger = logging.getLogger(__name__)

BATCH_SIZE = 256
Decisions = npt.NDArray[np.int64]
"""The class chosen for each image, (images,)."""


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What all deciders say of the test images.

    Attributes:
        labels: the truth.
        teachers: by teacher.
        students: by arm, seed and read-out.
        cosines: by arm and seed, of models with two tokens.
    """

    labels: Decisions
    teachers: dict[str, Decisions]
    students: dict[str, dict[int, dict[str, Decisions]]]
    cosines: dict[str, dict[int, TokenCosines]]

    @property
    def seeds(self) -> int:
        return len(next(iter(self.students.values())))

    def sides(self) -> dict[str, list[Decisions]]:
        """The decisions of each seed, by arm:read-out."""
        return {
            f"{arm}:{readout}": [of_seed[readout] for of_seed in by_seed.values()]
            for arm, by_seed in self.students.items()
            for readout in next(iter(by_seed.values()))
        }


@torch.inference_mode()
def decide(runs: Runs, data: Path, *, workers: int, device: torch.device) -> Decided:
    """Read the test images once and ask every student and every teacher, in float32."""
    images = open_images(data, "test")
    every = [(arm, seed, run) for arm, by_seed in runs.items() for seed, run in by_seed.items()]
    tested = every[0][2].provenance["data"]["test"]["fingerprint"]
    if fingerprint(images) != tested:
        raise DataError(f"{data} does not hold the images that {every[0][2].folder} was tested on")
    preprocessing = read_checkpoint_config(every[0][2].checkpoint).preprocessing
    normalize = Normalize(preprocessing).to(device)
    students = {(arm, seed): open_model(str(run.checkpoint), arm).model.to(device) for arm, seed, run in every}
    teachers = {
        spec: load_teacher(spec, label_names=images.label_names, student=preprocessing, image_size=size).to(device)
        for spec, size in {
            run.settings["teacher"]: run.settings["teacher_image_size"]
            for _, _, run in every
            if run.settings["teacher"] is not None
        }.items()
    }
    batches = evaluation_batches(images, preprocessing, batch_size=BATCH_SIZE, workers=workers)
    labels: list[torch.Tensor] = []
    of_teachers: dict[str, list[torch.Tensor]] = {spec: [] for spec in teachers}
    of_students: dict[tuple[str, int], dict[str, list[torch.Tensor]]] = {key: {} for key in students}
    for pixels, truth, _ in batches:
        readable = truth >= 0
        labels.append(truth[readable])
        normalized = normalize(pixels[readable].to(device))
        for spec, teacher in teachers.items():
            of_teachers[spec].append(teacher(normalized).argmax(dim=-1).cpu())
        for key, student in students.items():
            for readout, scores in readouts(student, normalized).items():
                of_students[key].setdefault(readout, []).append(scores.argmax(dim=-1).cpu())
    cosines: dict[str, dict[int, TokenCosines]] = {}
    for (arm, seed), student in students.items():
        if isinstance(student, VisionTransformerDistilled):
            logger.info("cosines of %s, seed %d", arm, seed)
            cosines.setdefault(arm, {})[seed] = token_cosines(student, batches, normalize, device)
    return Decided(
        labels=torch.cat(labels).numpy(),
        teachers={spec: torch.cat(parts).numpy() for spec, parts in of_teachers.items()},
        students={
            arm: {
                seed: {readout: torch.cat(parts).numpy() for readout, parts in of_students[arm, seed].items()}
                for seed in by_seed
            }
            for arm, by_seed in runs.items()
        },
        cosines=cosines,
    )
