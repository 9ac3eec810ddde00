"""gRPC load on Triton from several processes, cheap enough not to be the limit: requests are serialised once.

perf_analyzer does the same where it is installed; this needs only grpcio and tritonclient's protobuf.
"""

import asyncio
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import numpy as np
import numpy.typing as npt

from deit.model import IMAGES, PROBABILITIES

METHOD = "/inference.GRPCInferenceService/ModelInfer"
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
WARM_UP_S = 1.0
TIMEOUT_S = 30.0

# Half precision rounds sums by the kernel that a batch size takes; another image's answer is off by far more.
ANSWERS_DIFFER_BY = 5e-2


@dataclass(frozen=True, kw_only=True)
class GrpcLoad:
    """What came back within the window.

    Attributes:
        images_per_s: of answers without an error.
        latencies_s: of the requests, sorted.
        failures: errors and wrong answers, in words.
    """

    images_per_s: float
    latencies_s: tuple[float, ...]
    failures: tuple[str, ...]

    def latency_ms(self, percentile: float) -> float:
        """NaN-free: 0 when nothing was answered, which `failures` explains."""
        if not self.latencies_s:
            return 0.0
        return 1000 * self.latencies_s[min(len(self.latencies_s) - 1, int(len(self.latencies_s) * percentile / 100))]


def closed_loop(
    url: str, model: str, images: npt.NDArray[np.uint8], *, clients: int, in_flight: int, seconds: float
) -> GrpcLoad:
    """Keep `in_flight` requests of the same `images` (N, H, W, 3) in flight from `clients` processes."""
    request = serialised(model, images)
    per_client = [in_flight // clients + (place < in_flight % clients) for place in range(clients)]
    busy = [count for count in per_client if count]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(busy), context, initializer=_begin, initargs=(context.Barrier(len(busy)),)) as pool:
        futures = [pool.submit(one_client, url, request, count, seconds) for count in busy]
        results = [future.result() for future in as_completed(futures)]  # of failures the first, which is the cause
    latencies = sorted(latency for latencies, _ in results for latency in latencies)
    return GrpcLoad(
        images_per_s=len(latencies) * len(images) / seconds,
        latencies_s=tuple(latencies),
        failures=tuple(failure for _, failures in results for failure in failures),
    )


def serialised(model: str, images: npt.NDArray[np.uint8]) -> bytes:
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    request = ModelInferRequest(model_name=model)
    request.inputs.add(name=IMAGES, datatype="UINT8", shape=images.shape)
    request.outputs.add(name=PROBABILITIES)
    request.raw_input_contents.append(images.tobytes())
    serialised: bytes = request.SerializeToString()
    return serialised


_all_are_ready: Barrier


def _begin(all_are_ready: Barrier) -> None:
    global _all_are_ready
    _all_are_ready = all_are_ready


def one_client(url: str, request: bytes, in_flight: int, seconds: float) -> tuple[list[float], list[str]]:
    """In a separate process: latencies of the answers within the window, and failures."""
    return asyncio.run(_client(url, request, in_flight, seconds))


async def _client(url: str, request: bytes, in_flight: int, seconds: float) -> tuple[list[float], list[str]]:
    import grpc
    from tritonclient.grpc.service_pb2 import ModelInferResponse

    latencies: list[float] = []
    failures: list[str] = []
    async with grpc.aio.insecure_channel(url, options=OPTIONS) as channel:
        infer = channel.unary_unary(METHOD)  # bytes to bytes
        first = await infer(request, timeout=TIMEOUT_S)

        def answer_of(content: bytes) -> npt.NDArray[np.float32]:
            return np.frombuffer(ModelInferResponse.FromString(content).raw_output_contents[0], np.float32)

        expected = answer_of(first)
        await asyncio.to_thread(_all_are_ready.wait, TIMEOUT_S)  # however long a process takes to import grpc
        start = time.monotonic()
        end = start + WARM_UP_S + seconds

        async def worker() -> None:
            while time.monotonic() < end and len(failures) < 10:
                began = time.monotonic()
                try:
                    content = await infer(request, timeout=TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    failures.append(f"{error.code().name}: {error.details()}")
                    continue
                done = time.monotonic()
                if start + WARM_UP_S <= done < end:
                    latencies.append(done - began)
                    if len(latencies) % 32 == 1 and np.abs(answer_of(content) - expected).max() > ANSWERS_DIFFER_BY:
                        failures.append("an answer differs from the first one of the same images")

        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return latencies, failures
