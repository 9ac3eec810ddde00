"""Predictions as in Google's Vertex AI; TensorFlow Serving and KServe's first protocol share its path.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
An instance is an image as for AutoML's image models (`content`) or TensorFlow Serving (`b64`); a prediction is
AutoML's.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, FailFast, Field

from serving.gateway.classification import AnsweredImage, best
from serving.gateway.contracts.answering import answers, check_count
from serving.gateway.contracts.json_body import description, parsed, picture, refuse_compressed
from serving.gateway.errors import Draining, InvalidParameter, NotReady, documented
from serving.gateway.parameters import Parameters
from serving.gateway.paths import PREDICT, VERTEX, VERTEX_PREDICT
from serving.gateway.record import record_of
from serving.gateway.state import DEFAULT_TOP_K, gateway_state
from serving.gateway.uploads import Upload
from serving.gateway.waiting import deadline_of, received

router = APIRouter(tags=["Vertex AI"])

Instance = str | dict[str, Any]


class PredictionParameters(BaseModel):
    maxPredictions: int = Field(default=DEFAULT_TOP_K, ge=1)  # noqa: N815 - Google's name
    confidenceThreshold: float = Field(default=0.0, ge=0, le=1)  # noqa: N815


class PredictionRequest(BaseModel):
    instances: Annotated[list[Instance], FailFast(), Field(min_length=1)] = Field(
        description='Pictures in base64: "...", {"content": "..."}, {"b64": "..."} or {"image": {"b64": "..."}}'
    )
    parameters: PredictionParameters | None = None


class InstancePrediction(BaseModel):
    ids: list[str] = Field(description="Indices of the classes, best first")
    displayNames: list[str] = Field(description="Their names")  # noqa: N815
    confidences: list[float] = Field(description="Their probabilities")


class PredictionAnswer(BaseModel):
    predictions: list[InstancePrediction]
    deployedModelId: str = Field(description="Name of the model")  # noqa: N815


@router.post(
    PREDICT,
    summary="Predict as TensorFlow Serving and Vertex AI do",
    **description(PREDICT, PredictionAnswer, PredictionRequest),
)
async def predict(request: Request) -> Response:
    """A prediction for each instance, from this model."""
    return await predictions(request, request.path_params["name"])


@router.post(
    VERTEX_PREDICT,
    summary="Predict on the path that Vertex AI chooses",
    **description(VERTEX_PREDICT, PredictionAnswer, PredictionRequest),
)
async def predict_deployed(request: Request) -> Response:
    """A prediction for each instance, from the default model, because Vertex AI's ids do not name our models."""
    return await predictions(request, None)


@router.get(VERTEX, summary="Can it answer? As Vertex AI asks", responses=documented(NotReady, Draining))
async def deployed_health(endpoint: str, deployed: str, request: Request) -> dict[str, str]:
    """Same as /readyz."""
    gateway_state(request).raise_if_not_ready()
    return {"status": "ready"}


async def predictions(request: Request, model: str | None) -> Response:
    gateway, deadline = gateway_state(request), deadline_of(request)
    served = gateway.model(model)
    refuse_compressed(request.headers.get("content-encoding", "identity"))
    asked = parsed(PredictionRequest, await received(request, request.body(), deadline))
    check_count(len(asked.instances), gateway.limits.max_images)
    parameters = asked.parameters or PredictionParameters()
    top_k = min(parameters.maxPredictions, len(served.labels))
    record = record_of(request.scope)
    question = gateway.question(Parameters(model=served.name, top_k=top_k), record)
    answered = await answers(request, [picture_of(each) for each in asked.instances], question, deadline)
    body = PredictionAnswer(
        predictions=[prediction(each, top_k, parameters.confidenceThreshold) for each in answered],
        deployedModelId=question.model,
    )
    return Response(body.model_dump_json(), media_type="application/json", headers=record.headers())


def picture_of(instance: Instance) -> Upload:
    """Raises InvalidParameter."""
    found: Any = instance
    for _ in range(2):  # {"image_bytes": {"b64": "..."}}, whatever the input is named
        if isinstance(found, Mapping):
            known = [found[name] for name in ("content", "b64") if name in found]
            found = known[0] if known else next(iter(found.values()), None) if len(found) == 1 else None
    if not isinstance(found, str):
        raise InvalidParameter('an instance is a picture in base64, such as {"content": "..."} or {"b64": "..."}')
    return picture(found, "instances")


def prediction(answered: AnsweredImage, top_k: int, threshold: float) -> InstancePrediction:
    labels = answered.model.labels
    found = best(answered.answer.probabilities, labels, min(top_k, len(labels)))
    kept = [each for each in found if each.probability >= threshold]
    return InstancePrediction(
        ids=[str(each.index) for each in kept],
        displayNames=[each.label for each in kept],
        confidences=[each.probability for each in kept],
    )
