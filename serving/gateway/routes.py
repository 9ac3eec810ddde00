"""The paths of the gateway."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse

from serving.gateway.errors import (
    PROBLEMS,
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    ImageTooComplex,
    ImageTooLarge,
    Internal,
    InvalidParameter,
    MalformedRequest,
    NotFound,
    NotReady,
    Overloaded,
    UndecodableImage,
    UnknownModel,
    UnsupportedType,
    documented,
)
from serving.gateway.schemas import Classification, Health, Model, Models, Prediction
from serving.gateway.state import GatewayState, gateway_state
from serving.gateway.uploads import FIELD, RAW_TYPES, read_upload

STATIC = Path(__file__).parent / "static"

DEFAULT_TOP_K = 5

# The page runs its own script and style, and shows the picture that the browser holds; nothing comes from elsewhere.
PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'"

Gateway = Annotated[GatewayState, Depends(gateway_state)]

router = APIRouter()

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "description": "One image in JPEG, PNG or WebP: as the body itself, or as the file of a form.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                }
            },
            **dict.fromkeys(RAW_TYPES, BINARY),
        },
    }
}


@router.post(
    "/classify",
    summary="Classify an image",
    openapi_extra=UPLOAD_BODY,
    responses=documented(
        MalformedRequest,
        UnknownModel,
        BodyTimeout,
        BodyTooLarge,
        ImageTooLarge,
        UnsupportedType,
        UndecodableImage,
        ImageTooComplex,
        InvalidParameter,
        Internal,
        NotReady,
        Overloaded,
        DeadlineExceeded,
    ),
)
async def classify(
    request: Request,
    response: Response,
    gateway: Gateway,
    model: Annotated[str | None, Query(description="Name of a model; without it, the default one")] = None,
    top_k: Annotated[
        int | None, Query(ge=1, description="How many predictions, at most the number of classes; 5 without it")
    ] = None,
) -> Classification:
    """The most probable classes of one image, best first.

    The header Server-Timing tells how long the body, the decoding and the model took, in milliseconds.
    """
    served = gateway.model(model)
    classes = len(served.labels)
    if top_k is not None and top_k > classes:
        raise InvalidParameter(f"top_k is {top_k}, and the model {served.name} has {classes} classes")
    timeout_s = gateway.limits.request_timeout_s
    started = time.monotonic()
    deadline = started + timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            content = await read_upload(request)
    except TimeoutError as error:
        raise BodyTimeout(f"the body was not complete after {timeout_s:g} s") from error
    received = time.monotonic()
    try:
        async with asyncio.timeout(deadline - received):
            pixels = await gateway.decoder.model_input(content, served.preprocessing)
    except TimeoutError as error:
        raise DeadlineExceeded(f"the image was not decoded {timeout_s:g} s after the request began") from error
    decoded = time.monotonic()
    answer = await gateway.client.classify(
        served.name, pixels, timeout_s=deadline - decoded, request_id=request.state.request_id
    )
    durations = {"receive": received - started, "decode": decoded - received, "model": time.monotonic() - decoded}
    response.headers["Server-Timing"] = ", ".join(f"{k};dur={s * 1000:.1f}" for k, s in durations.items())
    return Classification(
        model=served.name,
        version=answer.version,
        predictions=best(answer.probabilities, served.labels, top_k or min(DEFAULT_TOP_K, classes)),
    )


def best(probabilities: npt.NDArray[np.float32], labels: tuple[str, ...], count: int) -> list[Prediction]:
    """The `count` most probable classes, best first; of equals the lower index."""
    order = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return [Prediction(index=i, label=labels[i], probability=float(probabilities[i])) for i in order]


@router.get("/models", summary="List the models")
async def models(gateway: Gateway) -> Models:
    """The models that are served, with what they expect and where they came from."""
    return Models(
        default=gateway.default_model, models=[Model.model_validate(model) for model in gateway.models.values()]
    )


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """200 as long as the process lives. Restart it when this fails."""
    return Health(status="alive")


@router.get("/readyz", summary="Can it answer?", responses=documented(NotReady))
async def readyz(gateway: Gateway) -> Health:
    """200 when every model gave an answer of late, else 503. Send no requests while this fails."""
    findings = gateway.readiness.findings()
    if findings:
        raise NotReady("; ".join(findings))
    return Health(status="ready")


@router.get("/problems/{name}", include_in_schema=False)
async def problem(name: str) -> PlainTextResponse:
    """What the `type` of an error points at."""
    if name not in PROBLEMS:
        raise NotFound(f"there is no problem of this name; known: {', '.join(PROBLEMS)}")
    known = PROBLEMS[name]
    return PlainTextResponse(f"{known.title} (status {known.status})\n\n{known.__doc__}\n")


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})
