"""The paths of the gateway."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from serving.gateway.admission import IMAGES_AT_ONCE, Ticket
from serving.gateway.deadline import Deadline
from serving.gateway.errors import (
    IMAGE_PROBLEMS,
    PROBLEMS,
    Draining,
    NotFound,
    NotReady,
    Problem,
    UnknownModel,
    documented,
)
from serving.gateway.examples import ANSWER_EXAMPLES, STREAM_EXAMPLE
from serving.gateway.metrics import CONTENT_TYPE, Metrics
from serving.gateway.metrics_port import METRICS
from serving.gateway.models import ServedModel
from serving.gateway.parameters import documented_parameters, parameters_of
from serving.gateway.paths import CLASSIFY
from serving.gateway.question import Question
from serving.gateway.record import RequestRecord, record_of
from serving.gateway.schemas import (
    ClassificationBody,
    Health,
    ImageAnswer,
    ImageResult,
    ImageResults,
    Model,
    Models,
    StreamedResult,
)
from serving.gateway.state import GatewayState, gateway_state
from serving.gateway.uploads import FIELD, RAW_TYPES, Upload, read_uploads
from serving.gateway.waiting import deadline_of, gather, received, while_client_waits

STATIC = Path(__file__).parent / "static"

NDJSON = "application/x-ndjson"

# The page runs its own script and style, and shows the browser's own picture; nothing comes from other hosts.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

# Swagger UI writes style attributes and shows its icons as data URLs.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter()

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
REQUEST = {
    "parameters": documented_parameters(),
    "requestBody": {
        "required": True,
        "description": "JPEG, PNG, WebP or AVIF: one image as the body itself, or one or several as files of a form.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            **dict.fromkeys(RAW_TYPES, BINARY),
        },
    },
}


@router.post(
    CLASSIFY,
    summary="Classify images",
    openapi_extra=REQUEST,
    response_model=ClassificationBody | ImageResults,
    responses={
        200: {
            "description": "One image: its classification. Several: a result for each, in order.",
            "content": {
                "application/json": {"examples": ANSWER_EXAMPLES},
                NDJSON: {
                    "schema": {"type": "string", "description": "One StreamedResult per line"},
                    "example": STREAM_EXAMPLE,
                },
            },
            "headers": {
                "Server-Timing": {"description": "Milliseconds by stage", "schema": {"type": "string"}},
                "X-Model": {"description": "Name of the model", "schema": {"type": "string"}},
                "X-Model-Version": {
                    "description": "Its version, if one version gave all answers",
                    "schema": {"type": "string"},
                },
            },
        },
        **documented(*IMAGE_PROBLEMS),
    },
)
async def classify(request: Request) -> Response:
    """The most probable classes of each image, best first.

    Several images get one result each; a refused one has `problem` and does not affect the others. With
    `Accept: application/x-ndjson` results are streamed as they finish, one per line.

    The header Server-Timing gives the time of the body, the wait for a decoder, decoding, preprocessing and the model
    with its queue, in milliseconds, each summed over the images.
    """
    gateway = gateway_state(request)
    record = record_of(request.scope)
    deadline = deadline_of(request)
    question = gateway.question(parameters_of(request), record)
    gateway.tritons.raise_if_lost(question.model)
    record.model = question.model
    uploads = await received(request, read_uploads(request, max_images=gateway.limits.max_images), deadline)
    ticket: Ticket = request.state.ticket
    ticket.begin([upload.pixels_to_expect(gateway.limits.max_image_pixels) for upload in uploads])
    work = ClassifyRequest(gateway, question, deadline, ticket, record)
    if accepts_ndjson(request):
        headers = {"X-Model": question.model}
        if request.scope["http_version"] == "1.0":  # which has no chunks (RFC 9112 section 7.1)
            lines = await while_client_waits(request, whole(work.lines(uploads)))
            return Response(lines, media_type=NDJSON, headers=headers)
        return StreamingResponse(work.lines(uploads), media_type=NDJSON, headers=headers)
    return await while_client_waits(request, work.response(uploads))


@dataclass(frozen=True, eq=False)
class ClassifyRequest:
    """The images of one request, answered."""

    gateway: GatewayState
    question: Question
    deadline: Deadline
    ticket: Ticket
    record: RequestRecord
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(IMAGES_AT_ONCE))

    async def response(self, uploads: list[Upload]) -> Response:
        """The whole response; if a single image is refused, this raises its Problem."""
        body: BaseModel
        if len(uploads) == 1:
            answer = await self._answer(uploads[0])
            body = ClassificationBody(model=self.question.model, **dict(answer))
        else:
            results = await gather(*(self._result(upload) for upload in uploads))
            body = ImageResults(model=self.question.model, results=results)
        content = body.model_dump_json(exclude_none=True)
        return Response(content, media_type="application/json", headers=self.record.headers())

    async def lines(self, uploads: list[Upload]) -> AsyncIterator[str]:
        """Results as JSON lines, in the order in which they finish."""
        tasks = {asyncio.create_task(self._result(upload)): index for index, upload in enumerate(uploads)}
        waiting = set(tasks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    line = StreamedResult(index=tasks[task], **dict(task.result()))
                    yield line.model_dump_json(exclude_none=True) + "\n"
        finally:
            for task in waiting:  # the client left
                task.cancel()

    async def _result(self, upload: Upload) -> ImageResult:
        try:
            async with self.turns:
                answer = await self._answer(upload)
        except Problem as problem:
            self.record.problems.append(problem.name)
            return ImageResult.model_validate(
                {"filename": upload.filename, "problem": problem.body(self.record.root_path)}
            )
        return ImageResult(filename=upload.filename, **dict(answer))

    async def _answer(self, upload: Upload) -> ImageAnswer:
        with self.ticket.image(upload.pixels_to_expect(self.gateway.limits.max_image_pixels)):
            return await self.gateway.classifier.answer(
                upload, self.question, deadline=self.deadline, record=self.record
            )


async def whole(lines: AsyncIterator[str]) -> str:
    return "".join([line async for line in lines])


def accepts_ndjson(request: Request) -> bool:
    """By name and not with the weight 0, which refuses it (RFC 9110 section 12.4.2)."""
    for accepted in request.headers.get("accept", "").lower().split(","):
        media_type, *parameters = (part.strip() for part in accepted.split(";"))
        if media_type == NDJSON:
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", parameter) for parameter in parameters)
    return False


@router.get("/models", summary="List the models")
async def models(request: Request) -> Models:
    """The served models, with their inputs and provenance."""
    gateway = gateway_state(request)
    return Models(
        default=gateway.default_model, models=[described(gateway, model) for model in gateway.models.values()]
    )


@router.get("/models/{name}", summary="Describe a model", responses=documented(UnknownModel))
async def describe_model(name: str, request: Request) -> Model:
    """One model's input, classes and provenance."""
    gateway = gateway_state(request)
    return described(gateway, gateway.model(name))


def described(gateway: GatewayState, model: ServedModel) -> Model:
    facts = {name: getattr(model, name, None) for name in Model.model_fields}
    return Model.model_validate({**facts, "is_explained": gateway.explainer(model) is not None})


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """200 while the process runs. Restart it if this fails."""
    return Health(status="alive")


@router.get("/readyz", summary="Can it answer?", responses=documented(NotReady, Draining))
async def readyz(request: Request) -> Health:
    """200 if a decoder runs and every model has answered recently, else 503. Do not send requests while it fails."""
    gateway_state(request).raise_if_not_ready()
    return Health(status="ready")


@router.get(METRICS, include_in_schema=False)
async def metrics(request: Request) -> Response:
    """For Prometheus; absent if the metrics have a separate port."""
    if not gateway_state(request).shows_metrics:
        raise NotFound("the metrics are on a separate port")
    page: Metrics = request.app.state.metrics
    return Response(page.page(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/problems/{name}", include_in_schema=False)
async def problem(name: str) -> PlainTextResponse:
    """The explanation that an error's `type` links to."""
    if name not in PROBLEMS:
        raise NotFound(f"no problem has this name; known: {', '.join(PROBLEMS)}")
    known = PROBLEMS[name]
    return PlainTextResponse(f"{known.title} (status {known.status})\n\n{known.__doc__}\n")


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})


@router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    return FileResponse(STATIC / "docs.html", headers={"Content-Security-Policy": DOCS_POLICY})
