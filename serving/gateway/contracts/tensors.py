"""Requests and responses of the Open Inference Protocol: JSON, with values in it or after it (binary extension)."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, FailFast, Field

from deit.model import IMAGES
from serving.gateway.classification import best
from serving.gateway.contracts.answering import check_count
from serving.gateway.contracts.json_body import parsed, picture
from serving.gateway.errors import InvalidParameter, MalformedRequest
from serving.gateway.triton_client import Probabilities
from serving.gateway.uploads import ReadyPixels, Upload

# A client may write null for a member that it leaves out.
Options = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class InputTensor(BaseModel):
    name: Literal["images"]
    datatype: Literal["BYTES", "UINT8"] = Field(description="Encoded pictures, or pixels in the model's size")
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], FailFast()] = Field(
        min_length=1, max_length=4, description="[N] or [N, 1] of BYTES, [N, height, width, 3] of UINT8"
    )
    parameters: Options = Field(default_factory=dict)
    data: list[Any] | None = Field(default=None, description="Pictures in base64, or pixels; absent with binary values")


class RequestedOutput(BaseModel):
    name: str
    parameters: Options = Field(default_factory=dict)


class InferenceRequest(BaseModel):
    id: str | None = None
    parameters: Options = Field(default_factory=dict)
    inputs: Annotated[list[InputTensor], FailFast()] = Field(min_length=1, max_length=1)
    outputs: Annotated[
        list[RequestedOutput], FailFast(), BeforeValidator(lambda value: [] if value is None else value)
    ] = Field(default_factory=list, max_length=8)


class OutputTensor(BaseModel):
    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[float] | list[str] | None = Field(default=None, description="Row after row; absent with binary values")


class InferenceResponse(BaseModel):
    model_name: str
    model_version: str | None = Field(default=None, description="The version that gave all answers")
    id: str | None = None
    outputs: list[OutputTensor]


def request_and_rest(body: bytes, json_bytes: str | None) -> tuple[InferenceRequest, memoryview]:
    """The JSON, and what follows it.

    Args:
        json_bytes: length of the JSON according to the header; None if the body is all JSON.

    Raises:
        MalformedRequest, RequestValidationError
    """
    length = len(body)
    if json_bytes is not None:
        if not (json_bytes.isascii() and json_bytes.isdecimal()) or int(json_bytes[:10]) > length:
            raise MalformedRequest(
                f"Inference-Header-Content-Length is {json_bytes[:20]!r}, and the body has {length} bytes"
            )
        length = int(json_bytes)
    view = memoryview(body)
    return parsed(InferenceRequest, view[:length]), view[length:]


def images_of(tensor: InputTensor, rest: memoryview, *, max_images: int) -> Sequence[Upload | ReadyPixels]:
    """The images of the input, in order.

    Raises:
        InvalidParameter, MalformedRequest: shape and values do not match.
    """
    declared = tensor.parameters.get("binary_data_size")
    if declared is None:
        if tensor.data is None or len(rest):
            raise MalformedRequest(
                f"the input {IMAGES} needs either data, or bytes after the JSON and binary_data_size"
            )
    elif declared != len(rest) or tensor.data is not None:
        raise MalformedRequest(f"binary_data_size is {str(declared)[:20]}, and {len(rest)} bytes follow the JSON")
    if tensor.datatype == "UINT8":
        return pixels_of(tensor, rest if tensor.data is None else flat(tensor.data), max_images)
    count = math.prod(tensor.shape)
    check_count(count, max_images)
    texts = None if tensor.data is None else unnested(tensor.data)
    contents = elements(rest, at_most=count) if texts is None else texts
    if len(contents) != count:
        raise InvalidParameter(f"the shape {tensor.shape} needs {count} elements, but data has another number")
    if texts is None:
        return [Upload(filename="", content=each) for each in contents]
    return [picture(each, "data") if isinstance(each, str) else not_text() for each in texts]


def pixels_of(tensor: InputTensor, values: bytes | memoryview, max_images: int) -> list[ReadyPixels]:
    shape = tensor.shape
    check_count(shape[0], max_images)
    if len(shape) != 4 or shape[3] != 3 or 0 in shape or math.prod(shape) != len(values):
        raise InvalidParameter(
            f"UINT8 {shape} with {len(values)} values are not images: give [N, height, width, 3] in the model's size"
        )
    return [ReadyPixels(image) for image in np.frombuffer(values, np.uint8).reshape(shape)]


def flat(data: list[Any]) -> bytes:
    """The pixels of lists within lists, as the protocol allows, or of one list."""
    values = data
    try:
        while values and isinstance(values[0], list):
            values = list(itertools.chain.from_iterable(values))
        return bytes(values)
    except (TypeError, ValueError) as error:
        raise InvalidParameter("data of type UINT8 must be whole numbers from 0 to 255") from error


def elements(rest: memoryview, *, at_most: int) -> list[bytes]:
    """The elements of BYTES, each preceded by its length (4 bytes, little-endian); at most one more than `at_most`."""
    found: list[bytes] = []
    position = 0
    while position < len(rest) and len(found) <= at_most:
        size = int.from_bytes(rest[position : position + 4], "little")
        end = position + 4 + size
        if end > len(rest):
            raise MalformedRequest("the last element of BYTES ends after the body; each begins with its length")
        found.append(bytes(rest[position + 4 : end]))
        position = end
    return found


def unnested(data: list[Any]) -> list[Any]:
    """The elements, also of data in the shape [N, 1]."""
    return [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]


def not_text() -> Upload:
    raise InvalidParameter("data of type BYTES must be strings: images in base64, or data URLs")


def written(
    asked: InferenceRequest,
    model: str,
    version: str | None,
    outputs: Mapping[str, Sequence[Probabilities]],
    labels: tuple[str, ...],
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON; None if it is all JSON."""
    everything = bool(asked.parameters.get("binary_data_output", False))
    wanted = {each.name: each.parameters for each in asked.outputs}
    tensors, values = [], []
    for name, rows in outputs.items():
        options = wanted.get(name, {})
        tensor: dict[str, Any] = {"name": name}
        if (count := options.get("classification")) is not None:
            texts = [text for row in rows for text in classification(row, labels, count)]
            tensor |= {"datatype": "BYTES", "shape": [len(rows), len(texts) // len(rows)], "data": texts}
        else:
            tensor |= {"datatype": "FP32", "shape": [len(rows), len(labels)], "data": np.concatenate(rows).tolist()}
        if options.get("binary_data", everything):
            values.append(binary(tensor.pop("data"), tensor["datatype"]))
            tensor["parameters"] = {"binary_data_size": len(values[-1])}
        tensors.append(tensor)
    body: dict[str, Any] = {"model_name": model, "outputs": tensors}
    body |= {} if version is None else {"model_version": version}
    body |= {} if asked.id is None else {"id": asked.id}
    text = json.dumps(body).encode()
    return b"".join([text, *values]), len(text) if values else None


def classification(row: Probabilities, labels: tuple[str, ...], count: Any) -> list[str]:
    """The most probable classes as Triton's classification extension writes them. Raises InvalidParameter."""
    if not isinstance(count, int) or count < 1:
        raise InvalidParameter(f"classification is {str(count)[:20]!r}; give the number of classes, 1 or more")
    found = best(row, labels, min(count, len(labels)))
    return [f"{each.probability:.6f}:{each.index}:{each.label}" for each in found]


def binary(data: list[Any], datatype: str) -> bytes:
    if datatype == "FP32":
        return np.asarray(data, "<f4").tobytes()
    return b"".join(len(each).to_bytes(4, "little") + each for each in (text.encode() for text in data))
