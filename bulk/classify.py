"""A job: its images, its model, the parts that are done and those that are left.

The file of a part is written atomically, under a name that depends only on the images, so every image is in the output
exactly once, whichever processes die. A stopped job continues with the parts that have no file yet.
"""

import logging
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bulk.config import BATCH_ON_CPU, BATCH_ON_GPU, BulkConfig
from bulk.model import Session, read_model
from bulk.results import Job, begin
from bulk.sources import Part, digest_of, find_parts
from bulk.steps import Done, Work
from deit.allowance import usable_cores

logger = logging.getLogger(__name__)


def classify_dataset(config: BulkConfig) -> int:
    """Classify every image that has no result yet, and return how many images have one now.

    Raises:
        DataError, RepositoryError: the images, the model or the output folder cannot be used.
    """
    model = read_model(config.model_repository, config.model, config.version)
    if config.gpus and config.ray_address is None:
        Session(model.graph, threads=1, on_gpu=True)  # fails here; Ray would wait for a GPU forever
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
    logger.info("%d images in %d parts, %d parts are done", total, len(parts), len(done))
    logger.info("classifying with version %s of the model %s", model.version, model.name)
    work = Work(
        images=config.images,
        output=config.output,
        model=model,
        top_k=job.top_k,
        batch_size=config.batch_size or (BATCH_ON_GPU if config.gpus else BATCH_ON_CPU),
        max_image_pixels=config.max_image_pixels,
    )
    if left := [part for part in parts if part.number not in done]:
        _show(_run(config, work, left), parts=len(parts), done=len(done))
    return total


def _run(config: BulkConfig, work: Work, parts: list[Part]) -> Iterator[Done]:
    if config.ray_address is None and not config.gpus:
        from bulk.here import classify_here

        return classify_here(work, parts, config.processes or usable_cores())
    from bulk.cluster import classify_on_cluster  # imports Ray, which takes a second

    return classify_on_cluster(work, parts, address=config.ray_address, processes=config.processes, gpus=config.gpus)


def _show(results: Iterator[Done], *, parts: int, done: int) -> None:
    """Consume the results, with a progress bar on a terminal."""
    columns = (
        *(TextColumn("parts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[images]} images, {task.fields[problems]} with a problem"),
    )
    console = Console(stderr=True)
    images = problems = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=parts, completed=done, images=0, problems=0)
        for result in results:
            images, problems = images + result.images, problems + result.problems
            progress.update(task, advance=1, images=images, problems=problems)
    if problems:
        logger.warning("%d of %d images could not be classified", problems, images)
