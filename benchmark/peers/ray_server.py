"""Ray Serve: replicas that decode in a thread and compute in batches."""

import asyncio
import signal
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmark.peers.classifier import PeerClassifier, peer_settings

SETTINGS = peer_settings()


@serve.deployment(num_replicas=SETTINGS.workers, max_ongoing_requests=32, ray_actor_options={"num_cpus": 1})
class RayDeployment:
    def __init__(self) -> None:
        self.classifier = PeerClassifier(SETTINGS)

    @serve.batch(max_batch_size=SETTINGS.max_batch_size, batch_wait_timeout_s=SETTINGS.batch_delay_s)
    async def compute(self, batch: list[Any]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.classifier.answers, batch)

    async def __call__(self, request: Request) -> Any:
        content = await request.body()
        return await self.compute(await asyncio.to_thread(self.classifier.pixels, content))


if __name__ == "__main__":
    ray.init(num_cpus=SETTINGS.workers + 1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": SETTINGS.port})
    serve.run(RayDeployment.bind(), route_prefix="/classify")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    ray.shutdown()
