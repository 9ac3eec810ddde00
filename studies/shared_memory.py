"""What it costs to pass pixels to Triton: in the requests, or in shared memory (`deit serve --shared-memory`).

A real embedded Triton runs a model that looks at one pixel of each image, so nearly all of the time is for transport.
Both ways take turns. Processor time is given, because other work on the machine comes and goes.
"""

import asyncio
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import onnx
import psutil
import typer
import uvloop
from onnx import TensorProto, helper, numpy_helper
from typer import Option

from benchmark.environment import this_environment
from benchmark.server import free_port
from deit.errors import BenchmarkError
from deit.log import configure_logging
from deit.model import IMAGES, PROBABILITIES
from deit.options import command_of
from serving.embedded.triton import embedded_triton
from serving.gateway.connection import wait_until_ready
from serving.gateway.triton_client import TritonClient
from serving.settings import TritonPorts, TritonSettings
from studies import run_study

MODEL = "glance"
SIDE, CLASSES, LARGEST_BATCH = 224, 1000, 64
WARM_UP_CALLS = 200

WAYS = ("in the request", "shared memory")

CONFIG = f"""name: "{MODEL}"
backend: "onnxruntime"
max_batch_size: {LARGEST_BATCH}
input {{ name: "{IMAGES}" data_type: TYPE_UINT8 dims: [ {SIDE}, {SIDE}, 3 ] }}
output {{ name: "{PROBABILITIES}" data_type: TYPE_FP32 dims: [ {CLASSES} ] }}
dynamic_batching {{ }}
instance_group {{ kind: KIND_CPU count: 1 }}
"""


@dataclass(frozen=True, kw_only=True)
class SharedMemoryConfig:
    """The requests to measure."""

    images_per_request: Annotated[list[int], Option(min=1, max=LARGEST_BATCH, help="Repeatable.")]
    in_flight: Annotated[int, Option(min=1, help="Images in flight, or one request if it has more.")] = 64
    images: Annotated[int, Option(min=64, help="Images of each setting in a round.")] = 4096
    rounds: Annotated[int, Option(min=1, help="How often each setting takes its turn.")] = 5


@dataclass(frozen=True)
class Cost:
    """Processor time for an image in ms: of the client in the gateway, and of Triton without the model's process."""

    client: float
    triton: float


def write_model(folder: Path) -> None:
    constants = {"starts": [0, 0, 0], "ends": [1, 1, 3], "axes": [1, 2, 3]}
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    weights.append(numpy_helper.from_array(np.zeros((3, CLASSES), np.float32), "weights"))
    nodes = [
        helper.make_node("Slice", [IMAGES, *constants], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["features"]),
        helper.make_node("MatMul", ["features", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [PROBABILITIES]),
    ]
    inputs = [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", SIDE, SIDE, 3])]
    outputs = [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["N", CLASSES])]
    graph = helper.make_graph(nodes, MODEL, inputs, outputs, weights)
    (folder / "1").mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "1/model.onnx"
    )
    (folder / "config.pbtxt").write_text(CONFIG)


@contextmanager
def triton() -> Iterator[tuple[str, str, psutil.Process]]:
    """Run a Triton; gives its address, its key for shared memory, and its process."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / MODEL)
        ports = TritonPorts(grpc=free_port(), metrics=free_port())
        settings = TritonSettings(model_repository=Path(folder), ports=ports)
        with embedded_triton(settings, most_restarts=0, shared_memory=True) as embedded:
            url = f"127.0.0.1:{ports.grpc}"
            wait_until_ready([url], timeout_s=120, raise_if_in_vain=embedded.process.raise_if_ended)
            assert embedded.shared_memory_key is not None
            yield url, embedded.shared_memory_key, psutil.Process(embedded.process.pid)


def processor_s(process: psutil.Process) -> float:
    """Of the threads that live (proc_pid_schedstat); finer than the ticks of proc_pid_stat."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


async def measure(client: TritonClient, config: SharedMemoryConfig, size: int, process: psutil.Process) -> Cost:
    """One turn of requests of `size` images."""
    numbers = np.random.default_rng(0)
    images = list(numbers.integers(0, 256, (2 * LARGEST_BATCH, SIDE, SIDE, 3), np.uint8))  # more than the caches hold
    turns = itertools.islice(itertools.cycle(range(0, len(images), size)), config.images // size)

    async def ask() -> None:
        for start in turns:
            await client.ask(MODEL, (images * 2)[start : start + size], version="1", timeout_s=60)

    before_s = time.process_time(), processor_s(process)
    await asyncio.gather(*(ask() for _ in range(max(1, config.in_flight // size))))
    after_s = time.process_time(), processor_s(process)
    count = config.images // size * size
    return Cost(*(1000 * (after - before) / count for before, after in zip(before_s, after_s, strict=True)))


async def measure_all(
    config: SharedMemoryConfig, url: str, key: str, process: psutil.Process
) -> dict[tuple[int, str], list[Cost]]:
    measured: defaultdict[tuple[int, str], list[Cost]] = defaultdict(list)
    clients = dict(zip(WAYS, (TritonClient(url), TritonClient(url, shared_memory_key=key)), strict=True))
    for client in clients.values():
        for _ in range(WARM_UP_CALLS):
            await client.ask(MODEL, [np.zeros((SIDE, SIDE, 3), np.uint8)], version="1", timeout_s=60)
    if "/dev/shm/deit-pixels-" not in Path(f"/proc/{process.pid}/maps").read_text():
        raise BenchmarkError("Triton did not take the shared memory; the log says why")
    for _ in range(config.rounds):
        for size in config.images_per_request:
            for way, client in clients.items():
                measured[size, way].append(await measure(client, config, size, process))
    for client in clients.values():
        await client.close()
    return measured


def as_table(config: SharedMemoryConfig, measured: dict[tuple[int, str], list[Cost]]) -> str:
    """Markdown: the median of the rounds, with the lowest and the highest."""
    lines = [
        f"{this_environment().machine}; {config.rounds} rounds of {config.images} images of {SIDE} x {SIDE}; processor "
        "time in ms an image",
        "",
        "| images a request | pixels | gateway's call | Triton |",
        "|--:|---|--:|--:|",
    ]
    for (size, way), costs in measured.items():
        values = [[getattr(cost, name) for cost in costs] for name in Cost.__dataclass_fields__]
        cells = [f"{median(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in values]
        lines.append(f"| {size} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


app = typer.Typer()


@app.command()
@command_of(SharedMemoryConfig)
def shared_memory(config: SharedMemoryConfig) -> None:
    """Measure the processor time for an image on both sides of gRPC, with and without shared memory."""
    configure_logging("text")
    with triton() as (url, key, process):
        measured = uvloop.run(measure_all(config, url, key, process))
    typer.echo(as_table(config, measured))


if __name__ == "__main__":
    run_study(app)
