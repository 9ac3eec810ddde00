"""gRPC requests to Triton, with pixels or files, in as few copies as possible."""

import functools
from collections.abc import Sequence

import numpy as np
from tritonclient.grpc.service_pb2 import ModelInferRequest

from deit.jpeg_step import (
    DECODED,
    JPEGS,
    LARGEST_BATCH_PARAMETER,
    MODEL_PARAMETER,
    PREPROCESSING_PARAMETER,
    STEP,
    VERSION_PARAMETER,
)
from deit.model import IMAGES
from deit.preprocessing import Preprocessing
from serving.gateway.jpegs import Jpeg, ModelImage

RAW_INPUT_CONTENTS = bytes([ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2])
"""First byte of the field in a message: its number, and that a length follows."""


def request_for(model: str, version: str, images: Sequence[ModelImage], outputs: tuple[str, ...]) -> ModelInferRequest:
    """The request without its images."""
    first, count = images[0], len(images)
    request = ModelInferRequest()
    request.CopyFrom(
        request_for_jpegs(model, version, count, first.preprocessing, first.largest_batch, outputs)
        if isinstance(first, Jpeg)
        else request_for_pixels(model, version, (count, *first.shape), outputs)
    )
    return request


@functools.lru_cache
def request_for_jpegs(
    model: str, version: str, count: int, preprocessing: Preprocessing, largest_batch: int, outputs: tuple[str, ...]
) -> ModelInferRequest:
    """What the requests for as many files have in common; to be copied, not changed."""
    request = ModelInferRequest(model_name=STEP)
    request.inputs.add(name=JPEGS, datatype="BYTES", shape=[count, 1])
    for name in (DECODED, *outputs):
        request.outputs.add(name=name)
    request.parameters[MODEL_PARAMETER].string_param = model
    request.parameters[VERSION_PARAMETER].string_param = version
    request.parameters[PREPROCESSING_PARAMETER].string_param = preprocessing.to_json()
    request.parameters[LARGEST_BATCH_PARAMETER].int64_param = largest_batch
    return request


@functools.lru_cache
def request_for_pixels(model: str, version: str, shape: tuple[int, ...], outputs: tuple[str, ...]) -> ModelInferRequest:
    """What the requests for images of this shape, (N, H, W, 3), have in common; to be copied, not changed."""
    request = ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=IMAGES, datatype="UINT8", shape=shape)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def with_images(request: ModelInferRequest, images: Sequence[ModelImage]) -> bytes:
    """The message of a request whose one input tensor is these images.

    A field of bytes is its number, its length as a varint, and the bytes; fields may be appended to a message
    (https://protobuf.dev/programming-guides/encoding/).
    """
    parts = [part for image in images for part in parts_of(image)]
    length, rest = bytearray(), sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
    while rest > 127:
        length.append(128 | rest & 127)
        rest >>= 7
    length.append(rest)
    return b"".join([request.SerializeToString(), RAW_INPUT_CONTENTS, length, *parts])


def parts_of(image: ModelImage) -> Sequence[bytes | memoryview]:
    """An image in a tensor: raw pixels, or a file after its length (4 bytes, little-endian)."""
    if isinstance(image, Jpeg):
        return len(image.content).to_bytes(4, "little"), image.content
    return (np.ascontiguousarray(image).data,)
