"""The pipeline on Ray Data: parts -> decoding actors (CPU) -> model actors (CPU or GPU), which write the answers.

Ray starts an actor that dies again and gives it the part it had. The part's file is then written anew, under the same
name with the same content, so every image is in the output exactly once. A job that was stopped goes on with the parts
that have no file yet.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bulk.config import BulkConfig
from bulk.model import Session, StoredModel, read_model
from bulk.results import Job, begin, write_part
from bulk.sources import Part, digest_of, find_parts, read_images
from deit.errors import PictureError
from deit.model_input import model_input
from deit.pictures import PictureLimits, configure_pillow
from deit.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


def classify_dataset(config: BulkConfig) -> int:
    """Classify every image without an answer, and return how many have one now.

    Raises:
        DataError, RepositoryError: the images, the model or the output folder cannot be used.
    """
    model = read_model(config.model_repository, config.model, config.version)
    if config.gpus and config.ray_address is None:
        Session(model.graph, threads=1, on_gpu=True)  # refuses here; Ray would wait for a GPU for ever
    parts = find_parts(config.images, part_images=config.part_images)
    job = Job(
        images=config.images,
        images_sha256=digest_of(parts),
        parts=len(parts),
        model=model.name,
        version=model.version,
        model_sha256=model.digest,
        preprocessing=model.preprocessing.to_json(),
        top_k=min(config.top_k, len(model.labels)),
    )
    done = begin(config.output, job)
    total = sum(len(part.names()) for part in parts)
    left = [part for part in parts if part.number not in done]
    logger.info("%d images in %d parts, of which %d are done", total, len(parts), len(done))
    logger.info("classifying with version %s of the model %s", model.version, model.name)
    if left:
        _run(config, model, job, left)
    return total


def _run(config: BulkConfig, model: StoredModel, job: Job, parts: list[Part]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address=config.ray_address, include_dashboard=False, logging_level=logging.WARNING, ignore_reinit_error=True
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    columns = (
        *(TextColumn("parts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[images]} images, {task.fields[problems]} with a problem"),
    )
    try:
        dataset = (
            ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
            .map_batches(
                Decode,
                fn_constructor_args=(config.images, model.preprocessing, config.max_image_pixels),
                batch_size=1,
                concurrency=config.decoders,
                num_cpus=1,
            )
            .map_batches(
                ClassifyBatch,
                fn_constructor_args=(
                    config.output,
                    ray.put(model),
                    job.top_k,
                    config.batch_size,
                    config.model_threads,
                    config.gpus > 0,
                ),
                batch_size=1,
                concurrency=config.models,
                num_cpus=config.model_threads,
                num_gpus=config.gpus,
            )
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(parts), images=0, problems=0)
            images = problems = 0
            for row in dataset.iter_rows():
                images, problems = images + int(row["images"]), problems + int(row["problems"])
                progress.update(task, advance=1, images=images, problems=problems)
    finally:
        ray.shutdown()


class Decode:
    """From a part to the pixels that the model reads; by the gateway's own rules, refusals included."""

    def __init__(self, location: str, preprocessing: Preprocessing, max_pixels: int) -> None:
        configure_pillow()
        self._location = location
        self._preprocessing = preprocessing
        self._limits = PictureLimits(max_pixels=max_pixels)

    def __call__(self, batch: Batch) -> Batch:
        (part,) = batch["part"]
        size = self._preprocessing.image_size
        pixels = np.zeros((len(part.names()), size, size, 3), np.uint8)
        problems: list[str | None] = []
        for place, content in enumerate(read_images(self._location, part)):
            try:
                pixels[place] = model_input(content or b"", self._preprocessing, self._limits)
                problems.append(None)
            except PictureError as error:
                problems.append(f"{error.refusal}: {error}")
        # as bytes, because Ray would store an array of another length separately
        return {"part": [part], "pixels": [pixels.tobytes()], "problems": [problems]}


class ClassifyBatch:
    """From pixels to the part's file of answers."""

    def __init__(self, output: str, model: Any, top_k: int, batch_size: int, threads: int, on_gpu: bool) -> None:
        self._output = output
        self._model: StoredModel = ray.get(model) if isinstance(model, ray.ObjectRef) else model
        self._session = Session(self._model.graph, threads=threads, on_gpu=on_gpu)
        self._top_k = top_k
        self._batch_size = batch_size

    def __call__(self, batch: Batch) -> Batch:
        (part,), (content,), (problems,) = batch["part"], batch["pixels"], batch["problems"]
        size = self._model.preprocessing.image_size
        pixels = np.frombuffer(content, np.uint8).reshape(-1, size, size, 3)
        rows = list(self._rows(part.names(), pixels, list(problems)))
        write_part(self._output, part.number, rows)
        refused = sum(problem is not None for problem in problems)
        return {"part": [part.number], "images": [len(rows)], "problems": [refused]}

    def _rows(
        self, names: list[str], pixels: npt.NDArray[np.uint8], problems: list[str | None]
    ) -> Iterator[dict[str, object]]:
        origin = {"model": self._model.name, "version": self._model.version, "model_sha256": self._model.digest}
        starts = range(0, len(names), self._batch_size)
        probabilities = np.concatenate(
            [self._session.probabilities(pixels[start : start + self._batch_size]) for start in starts]
        )
        for name, row, problem in zip(names, probabilities, problems, strict=True):
            if problem is not None:
                yield {"image": name, "problem": problem, **origin}
                continue
            best = np.argsort(-row, kind="stable")[: self._top_k]
            yield {
                "image": name,
                "index": int(best[0]),
                "label": self._model.labels[best[0]],
                "probability": float(row[best[0]]),
                "indices": best.tolist(),
                "probabilities": row[best].tolist(),
                **origin,
            }
