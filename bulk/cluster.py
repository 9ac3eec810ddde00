"""The parts on a Ray cluster.

On CPUs each actor decodes a part and runs the model on it; with GPUs, decoding actors feed those that run the
model, with Ray's back-pressure between them. If an actor dies, Ray restarts it and gives it the same part.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import ray.data

from bulk.model import Session
from bulk.sources import Part
from bulk.steps import Decoded, Done, Work, classify, decode
from deit.pictures import configure_pillow

Batch = dict[str, Any]


def classify_on_cluster(
    work: Work, parts: list[Part], *, address: str | None, processes: int | None, gpus: float
) -> Iterator[Done]:
    """Yields the result of each part.

    Args:
        address: of a running cluster; None starts Ray on this machine.
        processes: number of decoding processes, one CPU each; None for one on each CPU of the cluster.
        gpus: GPUs of each process that runs the model; 0 for none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; avoids its warning
    # Failures come as exceptions; the warnings are about Ray's internals.
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init(
        address=address,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        ignore_reinit_error=True,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        there = ray.cluster_resources()
        models = max(1, int(there.get("GPU", 0) / gpus)) if gpus else 0
        cpus = processes or max(1, int(there["CPU"]) - models)
        given = (ray.put(work),)

        def stage(data: Any, step: type, workers: int, **resources: float) -> Any:
            """`step` in as many processes as there is work for, a part at a time."""
            return data.map_batches(
                step,
                fn_constructor_args=given,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
                num_cpus=1,
                **resources,
            )

        dataset = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        if gpus:
            answered = stage(stage(dataset, Decode, cpus), Classify, models, num_gpus=gpus)
        else:
            answered = stage(dataset, DecodeAndClassify, cpus)
        for row in answered.iter_rows():
            yield Done(int(row["images"]), int(row["problems"]))
    finally:
        ray.shutdown()


class Decode:
    """From a part to pixels, on a CPU."""

    def __init__(self, work: Any) -> None:
        configure_pillow()
        self._work: Work = ray.get(work)

    def __call__(self, batch: Batch) -> Batch:
        decoded = decode(self._work, *batch["part"])
        # as bytes, because Ray would store an array of another length separately
        return {"part": batch["part"], "pixels": [decoded.pixels.tobytes()], "problems": [decoded.problems]}


class Classify:
    """From pixels to the file of a part, on a GPU."""

    def __init__(self, work: Any) -> None:
        self._work: Work = ray.get(work)
        self._session = Session(self._work.model.graph, threads=1, on_gpu=True)

    def __call__(self, batch: Batch) -> Batch:
        size = self._work.model.preprocessing.image_size
        pixels = np.frombuffer(batch["pixels"][0], np.uint8).reshape(-1, size, size, 3)
        decoded = Decoded(batch["part"][0], pixels, list(batch["problems"][0]))
        return _row(classify(self._work, self._session, decoded))


class DecodeAndClassify:
    """From a part to its file, on a CPU."""

    def __init__(self, work: Any) -> None:
        configure_pillow()
        self._work: Work = ray.get(work)
        self._session = Session(self._work.model.graph, threads=1)

    def __call__(self, batch: Batch) -> Batch:
        return _row(classify(self._work, self._session, decode(self._work, *batch["part"])))


def _row(done: Done) -> Batch:
    return {"images": [done.images], "problems": [done.problems]}
