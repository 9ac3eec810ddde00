"""Runs one model in four ways: in PyTorch, as an ONNX graph, in Triton, and over HTTP."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from benchmark.load import each_answered, requests_of
from benchmark.server import CLASSIFY
from deit.errors import BenchmarkError
from deit.model import IMAGES, PROBABILITIES
from export.joint import JointClassifier

BATCH_SIZE = 32
CONCURRENCY = 8

Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
"""(N, classes)"""


def ask_pytorch(classifier: JointClassifier, pixels: Pixels) -> Probabilities:
    """The trained model's probabilities, with the read-out of the graph."""
    with torch.inference_mode():
        batches = [classifier(torch.from_numpy(batch))[0].numpy() for batch in _batches(pixels)]
    return np.concatenate(batches)


def onnx_session(onnx_file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])


def ask_onnx(session: onnxruntime.InferenceSession, pixels: Pixels) -> Probabilities:
    return np.concatenate([session.run([PROBABILITIES], {IMAGES: batch})[0] for batch in _batches(pixels)])


def ask_triton(url: str, model: str, pixels: Pixels) -> Probabilities:
    """Over gRPC, with preprocessed pixels. Raises BenchmarkError with Triton's message."""
    client = InferenceServerClient(url)
    found = []
    for batch in _batches(pixels):
        tensor = InferInput(IMAGES, list(batch.shape), "UINT8")
        tensor.set_data_from_numpy(batch)
        try:
            answer = client.infer(model, [tensor], outputs=[InferRequestedOutput(PROBABILITIES)], client_timeout=120)
        except InferenceServerException as error:
            raise BenchmarkError(f"{model} in Triton at {url}: {error.message()}") from error
        found.append(answer.as_numpy(PROBABILITIES))
    return np.concatenate(found)


def ask_http(base_url: str, model: str, num_classes: int, images: Sequence[bytes]) -> Probabilities:
    """By upload, as users send images. Raises BenchmarkError that names a refused image and the reason."""
    url = f"{base_url}{CLASSIFY}?model={model}&top_k={num_classes}"
    answers = asyncio.run(each_answered(url, requests_of(url, images), concurrency=CONCURRENCY))
    found = np.zeros((len(images), num_classes), np.float32)
    for answer in answers:
        if not answer.is_ok:
            raise BenchmarkError(
                f"image {answer.image} was answered with {answer.status or answer.error}: {answer.body[:300]!r}"
            )
        for each in json.loads(answer.body)["predictions"]:
            found[answer.image, each["index"]] = each["probability"]
    return found


def _batches(pixels: Pixels) -> list[Pixels]:
    return [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]
