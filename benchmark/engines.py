"""Models of a repository in Triton, next to their engines alone and to what the machine can multiply.

Everything is measured in turns in one run, because on a shared machine two runs cannot be compared.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnx
from rich.progress import track

from benchmark.engines_command import EnginesConfig
from benchmark.machine_limit import fastest, machine_limit
from benchmark.options import console
from benchmark.perf_analyzer import NEVER_STABLE, measure
from benchmark.results import Environment, Figure, Record
from benchmark.server import our_server
from deit.errors import BenchmarkError
from deit.model import PROBABILITIES
from deit.repository.models import find_model, read_version
from export.engines import Engine, Run
from export.speed import images_per_s


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in the repository, ready to be run here."""

    name: str
    precision: str
    engine: Engine
    size: int
    operations: int
    instances: list[Run]


def measure_engines(config: EnginesConfig, environment: Environment, *, command: str) -> list[Record]:
    """A record for each model and batch size.

    Raises:
        BenchmarkError: a model is not one that an engine on processors runs, or perf_analyzer fails.
    """
    models = [open_model(config.model_repository, name) for name in config.model]
    # One product a core, as two instances of one thread have: 2 x 1 thread is the ceiling of a machine with two cores.
    limits = fastest(machine_limit(1, precisions=tuple(dict.fromkeys(map(precision_of_products, models)))))

    served: dict[tuple[str, int], list[float]] = {}
    alone: dict[tuple[str, int], list[float]] = {}
    with our_server(config.model_repository, default_model=models[0].name) as server:
        for turn, batch_size, model in track(
            list(product(range(config.rounds), config.batch_size, models)),
            description="measuring",
            console=console,
            transient=True,
        ):
            cell = measure(
                config.perf_analyzer,
                url=server.triton_url,
                model=model.name,
                batch_size=batch_size,
                concurrency=config.concurrency,
                requests=config.requests,
                csv_file=config.csv / f"{model.name}_b{batch_size}_r{turn}.csv",
            )
            if cell.images_per_s is not None:
                served.setdefault((model.name, batch_size), []).append(cell.images_per_s)
            pixels = np.random.default_rng(0).integers(0, 256, (batch_size, model.size, model.size, 3), dtype=np.uint8)
            alone.setdefault((model.name, batch_size), []).extend(images_per_s([model.instances], pixels))

    def figures(model: Loaded, batch_size: int) -> dict[str, Figure]:
        if (model.name, batch_size) not in served:
            return {}
        rate = Figure.of(served[model.name, batch_size], "images/s")
        engine = Figure.of(alone[model.name, batch_size], "images/s")
        limit = limits[precision_of_products(model)].gops_median * len(os.sched_getaffinity(0)) * 1e9 / model.operations
        return {
            "images_per_s": rate,
            "alone_images_per_s": engine,
            "alone_share": Figure(value=rate.value / engine.value, unit="share"),
            "limit_images_per_s": Figure(value=limit, unit="images/s"),
            "limit_share": Figure(value=rate.value / limit, unit="share"),
        }

    return [
        Record(
            kind="engine",
            model=model.name,
            precision=model.precision,
            command=command,
            environment=environment,
            conditions={
                "engine": model.engine.title,
                "batch_size": batch_size,
                "concurrency": config.concurrency,
            },
            figures=(found := figures(model, batch_size)),
            failure=None if found else NEVER_STABLE,
        )
        for batch_size in config.batch_size
        for model in models
    ]


def precision_of_products(model: Loaded) -> str:
    """Processors compute fp16 graphs in float32."""
    return "fp32" if model.precision == "fp16" else model.precision


def open_model(repository: Path, name: str) -> Loaded:
    """The served version of a model, loaded once for each of its instances."""
    version = read_version(find_model(repository, name))
    config = version.config
    if version.engine not in ("onnxruntime", "openvino"):
        raise BenchmarkError(f"{version.model} runs on {version.engine}, which does not run on processors")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    instances = sum(group.count for group in config.instance_group)
    engine = Engine(
        backend=config.backend,
        bf16=parameters.get("HINT_BF16") == "YES",
        threads=int(parameters.get("INFERENCE_NUM_THREADS") or parameters.get("intra_op_thread_count") or 0),
        instances=instances,
    )
    return Loaded(
        name=name,
        precision=version.precision if version.provenance else "fp32",
        engine=engine,
        size=config.input[0].dims[0],
        operations=operations(version.file),
        instances=[engine.load(version.file, (PROBABILITIES,)) for _ in range(instances)],
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
