"""The Open Inference Protocol over REST, also known as KServe v2, for `tritonclient.http` and KServe's own client.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
Triton's extensions binary_tensor_data and classification are supported too:
https://github.com/triton-inference-server/server/tree/main/docs/protocol
Paths, names and outputs are Triton's. The input may also hold encoded pictures; Triton itself always gets pixels.
"""

from typing import Any

from fastapi import APIRouter, Request, Response

from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, IMAGES, PROBABILITIES
from serving.gateway.classification import AnsweredImage
from serving.gateway.contracts.answering import answers
from serving.gateway.contracts.json_body import path_parameters, refuse_compressed, schema_of
from serving.gateway.contracts.tensors import InferenceRequest, InferenceResponse, images_of, request_and_rest, written
from serving.gateway.deadline import Deadline
from serving.gateway.errors import (
    IMAGE_PROBLEMS,
    Draining,
    InvalidParameter,
    NotReady,
    UnknownModel,
    documented,
)
from serving.gateway.models import ServedModel
from serving.gateway.parameters import Parameters
from serving.gateway.paths import INFER, INFER_VERSION, LIVE, MODEL, MODEL_VERSION, READY, SERVER
from serving.gateway.record import record_of
from serving.gateway.state import gateway_state
from serving.gateway.triton_client import Probabilities
from serving.gateway.uploads import Upload
from serving.gateway.waiting import deadline_of, received

router = APIRouter(tags=["Open Inference Protocol"])

HEADER_LENGTH = "Inference-Header-Content-Length"

HEADS = (CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES)


def inference_at(path: str) -> dict[str, Any]:
    """Its OpenAPI description."""
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "Length of the JSON in bytes; the values of the input follow it",
        "schema": {"type": "string"},
    }
    return {
        "response_model": InferenceResponse,
        "responses": {
            200: {
                "description": "The outputs; with the binary extension, JSON followed by the values",
                "content": binary,
            },
            **documented(*IMAGE_PROBLEMS),
        },
        "openapi_extra": {
            "parameters": [*path_parameters(path), length],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema_of(InferenceRequest)}, **binary},
            },
        },
    }


@router.get(LIVE, summary="Is the process alive?")
async def live() -> dict[str, bool]:
    """Same as /healthz."""
    return {"live": True}


@router.get(READY, summary="Can it answer?", responses=documented(NotReady, Draining))
async def ready(request: Request) -> dict[str, bool]:
    """Same as /readyz."""
    gateway_state(request).raise_if_not_ready()
    return {"ready": True}


@router.get(SERVER, summary="Describe the server")
async def server_metadata(request: Request) -> dict[str, Any]:
    """The server's name, its version, and the extensions of the protocol that it supports."""
    return {
        "name": request.app.title,
        "version": request.app.version,
        "extensions": ["binary_tensor_data", "classification"],
    }


@router.get(MODEL, summary="Describe a model's tensors", responses=documented(UnknownModel, NotReady))
async def model_metadata(name: str, request: Request) -> dict[str, Any]:
    """The tensors of a model. `images` also takes encoded pictures of any size, as BYTES."""
    return described(gateway_state(request).model(name))


@router.get(
    MODEL_VERSION, summary="Describe the tensors of a model's version", responses=documented(UnknownModel, NotReady)
)
async def version_metadata(name: str, version: str, request: Request) -> dict[str, Any]:
    """The tensors of this version of a model."""
    gateway = gateway_state(request)
    return described(gateway.model(gateway.question(Parameters(model=name, version=version)).model))


@router.get(f"{MODEL}/ready", summary="Does a model answer?", responses=documented(UnknownModel, NotReady))
async def model_ready(name: str, request: Request) -> dict[str, Any]:
    """200 while a Triton serves this model and the model has answered recently."""
    return model_state(request, name, None)


@router.get(
    f"{MODEL_VERSION}/ready", summary="Does a model's version answer?", responses=documented(UnknownModel, NotReady)
)
async def version_ready(name: str, version: str, request: Request) -> dict[str, Any]:
    """200 while a Triton serves this version and the model has answered recently."""
    return model_state(request, name, version)


@router.post(INFER, summary="Infer", **inference_at(INFER))
async def infer(request: Request) -> Response:
    """Probabilities for each image: an encoded picture as BYTES (base64 if in JSON), or pixels as UINT8."""
    return await inference(request, request.path_params["name"], None)


@router.post(INFER_VERSION, summary="Infer by a version", **inference_at(INFER_VERSION))
async def infer_by_version(request: Request) -> Response:
    """The same, with this version of the model."""
    return await inference(request, request.path_params["name"], request.path_params["version"])


def described(model: ServedModel) -> dict[str, Any]:
    outputs = (PROBABILITIES, *(HEADS if model.has_heads else ()))
    return {
        "name": model.name,
        "versions": list(model.versions),
        "platform": "deit-server",
        "inputs": [{"name": IMAGES, "datatype": "UINT8", "shape": [-1, *model.input_shape]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, len(model.labels)]} for name in outputs],
    }


def model_state(request: Request, name: str, version: str | None) -> dict[str, Any]:
    gateway = gateway_state(request)
    model = gateway.question(Parameters(model=name, version=version)).model
    gateway.tritons.raise_if_lost(model)
    return {"name": model, "ready": True}


async def inference(request: Request, name: str, version: str | None) -> Response:
    gateway, deadline = gateway_state(request), deadline_of(request)
    gateway.model(name)  # before its body is read
    refuse_compressed(request.headers.get("content-encoding", "identity"))
    body = await received(request, request.body(), deadline)
    asked, rest = request_and_rest(body, request.headers.get(HEADER_LENGTH))
    images = images_of(asked.inputs[0], rest, max_images=gateway.limits.max_images)
    model = gateway.model(name)
    names = output_names(asked, model)
    record = record_of(request.scope)
    question = gateway.question(
        Parameters(model=name, version=version, heads=not set(HEADS).isdisjoint(names)),
        record if all(isinstance(image, Upload) for image in images) else None,  # pixels are made for one model
    )
    timeout = asked.parameters.get("timeout")
    answered = await answers(request, images, question, sooner(deadline, timeout, record.started_s))
    outputs = {output: [row_of(each, output) for each in answered] for output in names}
    headers = record.headers()
    content, json_bytes = written(asked, question.model, headers.get("X-Model-Version"), outputs, model.labels)
    if json_bytes is None:
        return Response(content, media_type="application/json", headers=headers)
    return Response(content, media_type="application/octet-stream", headers={**headers, HEADER_LENGTH: str(json_bytes)})


def output_names(asked: InferenceRequest, model: ServedModel) -> list[str]:
    """The outputs that the request names; if it names none, all of the model's, as Triton does."""
    known = [PROBABILITIES, *(HEADS if model.has_heads else ())]
    for output in asked.outputs:
        if output.name not in known:
            raise InvalidParameter(
                f"the model {model.name} has no output {output.name[:100]!r}; it has {', '.join(known)}"
            )
    return [output.name for output in asked.outputs] or known


def row_of(answered: AnsweredImage, output: str) -> Probabilities:
    if output == PROBABILITIES:
        return answered.answer.probabilities
    assert answered.answer.heads is not None
    return answered.answer.heads[HEADS.index(output)]


def sooner(deadline: Deadline, timeout_us: Any, started_s: float) -> Deadline:
    """The deadline, or an earlier one from the `timeout` that Triton's clients send."""
    if not isinstance(timeout_us, int) or timeout_us <= 0:
        return deadline
    allowed_s = min(deadline.allowed_s, timeout_us / 1e6)
    return Deadline(allowed_s=allowed_s, at_s=min(deadline.at_s, started_s + allowed_s))
