"""JPEGs that Triton decodes, where it has the model for that (deit/jpeg_step.py): their bytes travel as they are.

What that model leaves, and all that is not surely a plain JPEG, goes the usual way: decoder.py decodes or refuses it.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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
from deit.preprocessing import Preprocessing
from serving.gateway.models import ServedModel
from serving.gateway.uploads import Upload

MOST_BYTES = 32 * 2**20
"""Of the files in one request; a gRPC message may have twice as many (connection.py)."""


@dataclass(frozen=True, eq=False)
class Jpeg:
    """A file for Triton, and what it is made into.

    Attributes:
        largest_batch: images that the model takes at once.
    """

    content: bytes
    preprocessing: Preprocessing
    largest_batch: int


ModelImage = npt.NDArray[np.uint8] | Jpeg
"""What is sent to Triton: pixels (H, W, 3), or a file."""


def bytes_of_files(images: Iterable[ModelImage]) -> int:
    return sum(len(each.content) for each in images if isinstance(each, Jpeg))


class LeftToGateway(Exception):
    """Triton did not decode the file; it may be damaged, or of a rare kind, or the decoder there was lost."""


def jpeg_of(upload: Upload, model: ServedModel, max_pixels: int) -> Jpeg | None:
    """The upload for Triton to decode; None if it is not to be, as far as its header says.

    Args:
        max_pixels: more than that only the gateway's decoders take, at a fraction of their size.
    """
    if not model.decodes_jpegs or len(upload.content) > MOST_BYTES:
        return None
    header = upload.header
    if header.format != "JPEG" or header.first_scan is None or not 0 < (header.pixels or 0) <= max_pixels:
        return None
    return Jpeg(upload.content, model.preprocessing, model.largest_batch)


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
