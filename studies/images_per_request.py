"""The gateway's cost of an image by images in a request to the model and by gateways, with an engine as fast as a GPU.

The engine is simulated: a process that speaks Triton's gRPC, keeps the pace of a GPU and computes nothing, so only the
gateway can be the limit. Images are small, because decoding is not measured.
"""

import asyncio
import contextlib
import io
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import grpc
import httpx
import numpy as np
import typer
import uvloop
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server
from tritonclient.utils import serialize_byte_tensor
from typer import Option

from benchmark.environment import this_environment
from benchmark.load import closed_loop, requests_of
from benchmark.processes import GATEWAY, ServerProcesses, watched
from benchmark.server import CLASSIFY, running
from deit.errors import BenchmarkError
from deit.log import configure_logging
from deit.model import IMAGES, PREPROCESSING_PARAMETER, PROBABILITIES
from deit.options import command_of
from deit.ports import free_ports
from deit.preprocessing import Preprocessing
from serving.gateway.triton_client import TritonClient
from studies import run_study

MODEL = "simulated"
PREPROCESSING = Preprocessing(
    image_size=224, crop_pct=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
CLASSES = 1000
LARGEST_BATCH = 64
SHORTEST_S = 0.001
"""Time that a GPU takes for one image."""

WARM_UP_S = 2.0
CALLED_IMAGES = 4096


@dataclass(frozen=True, kw_only=True)
class JoiningConfig:
    """The loads to measure."""

    images_per_request: Annotated[list[int], Option(help="As in deit serve. Repeatable.")]
    gateways: Annotated[list[int] | None, Option(help="As in deit serve. Repeatable.  [default: 1]")] = None
    concurrency: Annotated[int, Option(min=1, help="Requests of one image in flight over HTTP.")] = 64
    engine_images_per_s: Annotated[int, Option(min=1, help="Images per second of the simulated engine.")] = 10_000
    decoders: Annotated[int, Option(min=1, help="As in deit serve.")] = 2
    picture_side: Annotated[int, Option(min=8, help="Side of the images that are sent, in pixels.")] = 64
    seconds: Annotated[float, Option(min=0.1, help="Measured time of each setting in a round.")] = 8.0
    rounds: Annotated[int, Option(min=1, help="How often each setting takes its turn.")] = 3


@dataclass(frozen=True, kw_only=True)
class Joined:
    """One window of load.

    Attributes:
        images_per_request: what Triton got, on average.
        gateway_ms: processor time of the gateways' processes for an image.
        gateway_cores: cores that these processes used.
        call_ms: processor time of the call to the model alone, when every request is full.
    """

    images_per_request: float
    images_per_s: float
    gateway_ms: float
    gateway_cores: float
    call_ms: float
    p50_ms: float
    p99_ms: float


class SimulatedEngine(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One model behind Triton's gRPC. Batches of up to LARGEST_BATCH images, one after the other, at a fixed pace."""

    def __init__(self, images_per_s: float) -> None:
        self._images_per_s = images_per_s
        self._queue: asyncio.Queue[tuple[int, asyncio.Event]] = asyncio.Queue()
        self._rows = np.full((LARGEST_BATCH, CLASSES), 1 / CLASSES, np.float32)

    async def compute(self) -> None:
        """Never returns."""
        while True:
            images, done = await self._queue.get()
            batch = [done]
            while images < LARGEST_BATCH and not self._queue.empty():
                more, done = self._queue.get_nowait()
                images += more
                batch.append(done)
            await asyncio.sleep(max(SHORTEST_S, images / self._images_per_s))
            for done in batch:
                done.set()

    async def ModelInfer(self, request: pb.ModelInferRequest, _: object) -> pb.ModelInferResponse:  # noqa: N802
        count = request.inputs[0].shape[0]
        done = asyncio.Event()
        await self._queue.put((count, done))
        await done.wait()
        response = pb.ModelInferResponse(model_name=MODEL, model_version="1")
        if request.outputs[0].parameters["classification"].int64_param:  # the labels are being learnt
            texts = [f"{1 / CLASSES}:{index}:class {index}".encode() for index in range(CLASSES)]
            content = serialize_byte_tensor(np.array(texts, dtype=object)).item()
            response.outputs.add(name=PROBABILITIES, datatype="BYTES", shape=(1, CLASSES))
        else:
            content = self._rows[:count].tobytes()
            response.outputs.add(name=PROBABILITIES, datatype="FP32", shape=(count, CLASSES))
        response.raw_output_contents.append(content)
        return response

    async def ServerReady(self, *_: object) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, *_: object) -> pb.ModelReadyResponse:  # noqa: N802
        return pb.ModelReadyResponse(ready=False)  # of decode_jpegs

    async def RepositoryIndex(self, *_: object) -> pb.RepositoryIndexResponse:  # noqa: N802
        response = pb.RepositoryIndexResponse()
        response.models.add(name=MODEL, version="1", state="READY")
        return response

    async def ModelMetadata(self, *_: object) -> pb.ModelMetadataResponse:  # noqa: N802
        response = pb.ModelMetadataResponse(name=MODEL, versions=["1"])
        side = PREPROCESSING.image_size
        response.inputs.add(name=IMAGES, datatype="UINT8", shape=(-1, side, side, 3))
        response.outputs.add(name=PROBABILITIES, datatype="FP32", shape=(-1, CLASSES))
        return response

    async def ModelConfig(self, *_: object) -> pb.ModelConfigResponse:  # noqa: N802
        response = pb.ModelConfigResponse()
        response.config.max_batch_size = LARGEST_BATCH
        response.config.instance_group.add(kind="KIND_GPU", count=1)
        response.config.parameters[PREPROCESSING_PARAMETER].string_value = PREPROCESSING.to_json()
        return response


async def serve_engine(port: int, images_per_s: float) -> None:
    """Serve until the process is killed."""
    engine = SimulatedEngine(images_per_s)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    add_GRPCInferenceServiceServicer_to_server(engine, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await engine.compute()


@contextlib.contextmanager
def engine(config: JoiningConfig) -> Iterator[int]:
    """Run a simulated engine as a process, and give its port."""
    (port,) = free_ports(1)
    start = f"asyncio.run(study.serve_engine({port}, {config.engine_images_per_s}))"
    code = f"import asyncio, studies.images_per_request as study; {start}"
    with running([sys.executable, "-c", code], name="the simulated engine"):
        yield port


@contextlib.contextmanager
def gateway(config: JoiningConfig, gateways: int, images_per_request: int) -> Iterator[tuple[str, int]]:
    """Run `deit serve` in front of a simulated engine, and give its address and the id of its first process."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with engine(config) as engine_port:
        command = [
            *(sys.executable, "-m", "deit", "serve", "--triton-url", f"127.0.0.1:{engine_port}", "--port", str(port)),
            *("--images-per-request", str(images_per_request), "--decoders", str(config.decoders)),
            *("--gateways", str(gateways), "--max-wait-s", "60", "--no-log-requests"),
        ]
        with running(command, name="deit serve") as process:
            process.wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
            yield url, process.pid


def measure(config: JoiningConfig, gateways: int, images_per_request: int) -> Joined:
    """One window of closed-loop load on a `deit serve` of its own.

    Raises:
        BenchmarkError: a process did not start, or some images got no answer.
    """
    call_ms = measure_calls(config, images_per_request)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(pixels).resize((config.picture_side, config.picture_side)).save(picture, "JPEG")
    with gateway(config, gateways, images_per_request) as (url, pid):
        requests = requests_of(url + CLASSIFY, [picture.getvalue()], as_form=False)
        processes = ServerProcesses.of(pid)

        def look() -> tuple[float, float, float]:
            return processes.use().cpu_s[GATEWAY], *joined_so_far(url)

        loop = closed_loop(
            url, requests, concurrency=config.concurrency, duration_s=config.seconds, warm_up_s=WARM_UP_S
        )
        load, before, after = watched(loop, look, warm_up_s=WARM_UP_S, seconds=config.seconds)
    if set(load.statuses) != {200}:
        raise BenchmarkError(f"not every image got an answer: {dict(load.statuses)}")
    used_s, sent, images = (later - earlier for earlier, later in zip(before, after, strict=True))
    return Joined(
        images_per_request=images / sent,
        images_per_s=load.rate_per_s,
        gateway_ms=1000 * used_s / images,
        gateway_cores=used_s / config.seconds,
        call_ms=call_ms,
        p50_ms=load.latency_ms(50),
        p99_ms=load.latency_ms(99),
    )


def measure_calls(config: JoiningConfig, images_per_request: int) -> float:
    """Processor time for an image in the gateway's Triton client, in ms, when every request is full."""

    async def call(port: int) -> float:
        client = TritonClient(f"127.0.0.1:{port}")
        await client.connected(lambda: None)
        pixels = np.zeros((PREPROCESSING.image_size, PREPROCESSING.image_size, 3), np.uint8)
        images = [pixels] * images_per_request
        calls = iter(range(CALLED_IMAGES // images_per_request))

        async def worker() -> None:
            for _ in calls:
                await client.ask(MODEL, images, version="1", timeout_s=60)

        before_s = time.process_time()
        await asyncio.gather(*(worker() for _ in range(max(1, config.concurrency // images_per_request))))
        used_s = time.process_time() - before_s
        await client.close()
        return 1000 * used_s / CALLED_IMAGES

    with engine(config) as port:
        return uvloop.run(call(port))


def joined_so_far(url: str) -> tuple[float, float]:
    """The number of requests that the gateway has sent to the model, and of the images in them."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("deit_model_request_images_"))
    sent, images = (
        float(found.get(f'deit_model_request_images_{what}{{model="{MODEL}"}}', 0)) for what in ("count", "sum")
    )
    return sent, images


def as_table(config: JoiningConfig, measured: dict[tuple[int, int], list[Joined]]) -> str:
    """Markdown: the median of the rounds, and the lowest and highest of the two figures that matter."""
    machine = this_environment().machine
    lines = [
        f"{machine}; {config.concurrency} requests in flight, an engine of {config.engine_images_per_s:,} a second; "
        f"{config.rounds} rounds of {config.seconds:g} s",
        "",
        "| gateways | at most | images a request | images/s | gateway, ms an image | of a core | p50 ms | p99 ms "
        "| full requests: call, ms an image |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (gateways, images_per_request), rounds in measured.items():
        rates, costs = [each.images_per_s for each in rounds], [each.gateway_ms for each in rounds]
        middle = {name: median(getattr(each, name) for each in rounds) for name in Joined.__dataclass_fields__}
        lines.append(
            f"| {gateways} | {images_per_request} | {middle['images_per_request']:.1f} "
            f"| {middle['images_per_s']:.0f} ({min(rates):.0f} to {max(rates):.0f}) "
            f"| {middle['gateway_ms']:.2f} ({min(costs):.2f} to {max(costs):.2f}) | {middle['gateway_cores']:.2f} "
            f"| {middle['p50_ms']:.0f} | {middle['p99_ms']:.0f} | {middle['call_ms']:.3f} |"
        )
    return "\n".join(lines)


app = typer.Typer()


@app.command()
@command_of(JoiningConfig)
def images_per_request(config: JoiningConfig) -> None:
    """Measure images a second and the gateway's processor time for an image.

    By images in one request to the model, and by gateways.
    """
    configure_logging("text")
    measured: defaultdict[tuple[int, int], list[Joined]] = defaultdict(list)
    for _ in range(config.rounds):
        for setting in itertools.product(config.gateways or [1], config.images_per_request):
            measured[setting].append(measure(config, *setting))
    typer.echo(as_table(config, measured))


if __name__ == "__main__":
    run_study(app)
