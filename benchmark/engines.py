"""Models of a repository in Triton, next to their engines alone and to what the machine can multiply.

Everything is measured in turns in one run, because on a shared machine two runs cannot be compared.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmark.machine_limit import DEIT_TINY_FC1, LARGE, machine_limit
from benchmark.perf_analyzer import measure
from deit.errors import BenchmarkError
from deit.model import ONNX_FILE, PROBABILITIES
from deit.repository import model_folder, read_config, served_version
from export.engines import Engine, Run
from export.speed import images_per_s
from serving.triton.config import provenance_of


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model. Rates are images/s, the median over the rounds.

    Attributes:
        alone: the engine in this process, with as many instances and threads as in Triton.
        served, worst, best: in Triton, by perf_analyzer; None when no round was stable.
        limit: images/s, if the products ran at the machine's rate for the precision and nothing else took time.
    """

    model: str
    precision: str
    engine: str
    batch_size: int
    alone: float
    served: float | None
    worst: float | None
    best: float | None
    limit: float


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model in the repository, ready to be run here."""

    name: str
    precision: str
    engine: Engine
    size: int
    operations: int
    instances: list[Run]


def compare_engines(
    repository: Path,
    names: list[str],
    *,
    url: str,
    perf_analyzer: Path,
    batch_sizes: list[int],
    concurrency: int,
    requests: int,
    rounds: int,
    output: Path,
    on_step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Measure the models, which the Triton at `url` serves from `repository`.

    Raises:
        BenchmarkError: a model is not one that an engine on processors runs, or perf_analyzer fails.
    """
    models = [open_model(repository, name) for name in names]
    precisions = {"fp16": "fp32"}  # processors compute fp16 graphs in float32
    wanted = tuple(dict.fromkeys(precisions.get(model.precision, model.precision) for model in models))
    # One product a core, as two instances of one thread have: 2 x 1 thread is the ceiling of a machine with two cores.
    limits: dict[str, float] = {}
    for rate in machine_limit(1, precisions=wanted, shapes=(LARGE, DEIT_TINY_FC1)):
        limits[rate.precision] = max(limits.get(rate.precision, 0.0), rate.gops_median)
    on_step()

    served: dict[tuple[str, int], list[float]] = {}
    alone: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds):
        for batch_size in batch_sizes:
            for model in models:
                cell = measure(
                    perf_analyzer,
                    url=url,
                    model=model.name,
                    batch_size=batch_size,
                    concurrency=concurrency,
                    requests=requests,
                    csv_file=output / f"{model.name}_b{batch_size}_round{turn}.csv",
                )
                if cell.images_per_s is not None:
                    served.setdefault((model.name, batch_size), []).append(cell.images_per_s)
                pixels = np.random.default_rng(0).integers(
                    0, 256, (batch_size, model.size, model.size, 3), dtype=np.uint8
                )
                alone.setdefault((model.name, batch_size), []).extend(images_per_s([model.instances], pixels))
                on_step()
    return [
        Row(
            model=model.name,
            precision=model.precision,
            engine=model.engine.title,
            batch_size=batch_size,
            alone=statistics.median(alone[model.name, batch_size]),
            served=statistics.median(rates) if (rates := served.get((model.name, batch_size))) else None,
            worst=min(rates) if rates else None,
            best=max(rates) if rates else None,
            limit=_limit(model, limits[precisions.get(model.precision, model.precision)]),
        )
        for batch_size in batch_sizes
        for model in models
    ]


def open_model(repository: Path, name: str) -> Served:
    """The served version of a model, loaded once for each of its instances."""
    folder = model_folder(repository, name)
    config = read_config(folder / "config.pbtxt")
    if config.backend not in ("onnxruntime", "openvino"):
        raise BenchmarkError(f"{folder} runs on {config.backend or config.platform}, which does not run on processors")
    version = served_version(folder)
    file = folder / str(version) / (config.default_model_filename or ONNX_FILE)
    provenance = provenance_of(config)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    instances = sum(group.count for group in config.instance_group)
    engine = Engine(
        backend=config.backend,
        bf16=parameters.get("HINT_BF16") == "YES",
        threads=int(parameters.get("INFERENCE_NUM_THREADS") or parameters.get("intra_op_thread_count") or 0),
        instances=instances,
    )
    return Served(
        name=name,
        precision=provenance.precision if provenance else "fp32",
        engine=engine,
        size=config.input[0].dims[0],
        operations=operations(file),
        instances=[engine.load(file, (PROBABILITIES,)) for _ in range(instances)],
    )


def operations(onnx_file: Path) -> int:
    """Additions and multiplications of the graph's products and convolutions for one image."""
    model = onnx.load(onnx_file)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    batch.Clear()
    batch.dim_value = 1
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for info in [*graph.value_info, *graph.input, *graph.output]
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return sum(_operations(graph, shapes))


def _operations(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> Iterator[int]:
    for node in graph.node:
        if node.op_type in ("MatMul", "MatMulInteger", "Gemm"):
            yield 2 * int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            yield 2 * int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))


def _limit(model: Served, gops_of_a_core: float) -> float:
    return gops_of_a_core * len(os.sched_getaffinity(0)) * 1e9 / model.operations
