"""Plain FastAPI and ONNX Runtime, as a good engineer writes it in an hour: a thread pool computes image by image."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from benchmark.peers.classifier import PeerClassifier, peer_settings


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings = peer_settings()
    app.state.classifier = PeerClassifier(settings)
    with ThreadPoolExecutor(settings.workers) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request) -> Any:
    content = await request.body()
    classifier: PeerClassifier = request.app.state.classifier

    def compute() -> dict[str, Any]:
        return classifier.answers([classifier.pixels(content)])[0]

    return await asyncio.get_running_loop().run_in_executor(request.app.state.pool, compute)


if __name__ == "__main__":
    uvicorn.run(app, port=peer_settings().port, log_level="warning", access_log=False)
