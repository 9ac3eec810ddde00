"""What decoding in processes costs and gives, against threads: no server, no network, no model.

The same images in a closed loop, and beside them the lag of the event loop: how late a timer fires while others decode.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from deit.pictures import PictureLimits, configure_pillow, read_picture
from deit.preprocessing import Preprocessing, resize_and_crop
from serving.gateway.decoder import Decoder
from serving.settings import Decoding, DecodingMode, Limits

IMAGENET = Preprocessing(
    image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
TICK_S = 0.005


@dataclass(frozen=True, kw_only=True)
class DecodingRun:
    """Attributes:
    images_per_s: decoded, resized and cropped.
    p50_ms, p99_ms: of one image, with the time that it waited for a decoder.
    lag_p99_ms: how late the event loop came to a timer.
    """

    images_per_s: float
    p50_ms: float
    p99_ms: float
    lag_p99_ms: float


async def in_processes(images: Sequence[bytes], *, processes: int, mode: DecodingMode, **load: float) -> DecodingRun:
    decoder = Decoder(Decoding(processes=processes, mode=mode), Limits(), lambda: None)
    try:
        await decoder.start()
        return await _measure(lambda content: decoder.model_input(content, IMAGENET), images, **load)
    finally:
        decoder.close()


async def in_threads(images: Sequence[bytes], *, threads: int, **load: float) -> DecodingRun:
    configure_pillow()
    limits = PictureLimits(max_pixels=Limits().max_image_pixels)
    loop = asyncio.get_running_loop()

    def work(content: bytes) -> object:
        return resize_and_crop(read_picture(content, limits).image, IMAGENET)

    with ThreadPoolExecutor(threads) as pool:
        return await _measure(lambda content: loop.run_in_executor(pool, work, content), images, **load)


async def _measure(
    work: Callable[[bytes], Awaitable[object]], images: Sequence[bytes], *, concurrency: float, duration_s: float
) -> DecodingRun:
    latencies_s: list[float] = []
    lags_s: list[float] = []
    turn = 0
    await work(images[0])
    end_s = time.perf_counter() + duration_s

    async def ask() -> None:
        nonlocal turn
        while (started_s := time.perf_counter()) < end_s:
            content, turn = images[turn % len(images)], turn + 1
            await work(content)
            latencies_s.append(time.perf_counter() - started_s)

    async def watch() -> None:
        while (asleep_s := time.perf_counter()) < end_s:
            await asyncio.sleep(TICK_S)
            lags_s.append(time.perf_counter() - asleep_s - TICK_S)

    await asyncio.gather(watch(), *(ask() for _ in range(int(concurrency))))
    milliseconds = 1000 * np.array(latencies_s)
    return DecodingRun(
        images_per_s=len(latencies_s) / duration_s,
        p50_ms=float(np.quantile(milliseconds, 0.5)),
        p99_ms=float(np.quantile(milliseconds, 0.99)),
        lag_p99_ms=1000 * float(np.quantile(lags_s, 0.99)),
    )
