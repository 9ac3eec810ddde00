"""Image classification as in Hugging Face's Inference Endpoints, for `InferenceClient.image_classification`.

https://huggingface.co/docs/inference-providers/tasks/image-classification
"""

from typing import Annotated, Any, Literal

from annotated_types import MaxLen
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, TypeAdapter

from serving.gateway.classification import AnsweredImage, best
from serving.gateway.contracts.answering import answers, check_count
from serving.gateway.contracts.json_body import description, is_json, parsed, picture, refuse_compressed
from serving.gateway.parameters import Parameters
from serving.gateway.paths import HUGGING_FACE, HUGGING_FACE_MODEL
from serving.gateway.record import record_of
from serving.gateway.state import DEFAULT_TOP_K, gateway_state
from serving.gateway.uploads import RAW_TYPES, Upload, read_uploads
from serving.gateway.waiting import deadline_of, received

router = APIRouter(tags=["Hugging Face"])


MOST_INPUTS = 4096
"""Each error may be reported separately. --max-images limits the pictures."""


class PipelineParameters(BaseModel):
    top_k: int = Field(default=DEFAULT_TOP_K, ge=1, description="How many classes to return, at most")
    function_to_apply: Literal["softmax"] | None = Field(default=None, description="The model gives probabilities")


class PipelineRequest(BaseModel):
    inputs: str | Annotated[list[str], MaxLen(MOST_INPUTS)] = Field(
        description="A picture or several, base64 or data URLs"
    )
    parameters: PipelineParameters | None = None


class LabelScore(BaseModel):
    label: str
    score: float


Answer = list[LabelScore] | list[list[LabelScore]]
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def described(path: str) -> dict[str, Any]:
    return description(path, Answer, PipelineRequest, *RAW_TYPES)


@router.post(HUGGING_FACE, summary="Classify as Hugging Face does", **described(HUGGING_FACE))
async def classify_by_default(request: Request) -> Response:
    """The bytes of a picture, or JSON with `inputs` in base64; answered by the default model, best class first."""
    return await label_scores(request, None)


@router.post(HUGGING_FACE_MODEL, summary="Classify by a model as Hugging Face does", **described(HUGGING_FACE_MODEL))
async def classify_by_name(request: Request) -> Response:
    """The bytes of a picture, or JSON with `inputs` in base64; answered by this model, best class first."""
    return await label_scores(request, request.path_params["name"])


async def label_scores(request: Request, model: str | None) -> Response:
    """A list of labels with scores; for several pictures, a list of lists."""
    gateway, deadline = gateway_state(request), deadline_of(request)
    served = gateway.model(model)
    uploads, is_list, top_k = await received(request, pictures(request, gateway.limits.max_images), deadline)
    record = record_of(request.scope)
    question = gateway.question(Parameters(model=served.name, top_k=min(top_k, len(served.labels))), record)
    answered = await answers(request, uploads, question, deadline)
    found = [scores(each, question.top_k) for each in answered]
    body = ANSWER.dump_json(found if is_list else found[0])
    return Response(body, media_type="application/json", headers=record.headers())


async def pictures(request: Request, max_images: int) -> tuple[list[Upload], bool, int]:
    """The pictures, whether they came as a list, and the number of classes to return."""
    if not is_json(request.headers.get("content-type", "")):
        uploads = await read_uploads(request, max_images=max_images)
        return uploads, len(uploads) > 1, DEFAULT_TOP_K
    refuse_compressed(request.headers.get("content-encoding", "identity"))
    asked = parsed(PipelineRequest, await request.body())
    inputs = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    check_count(len(inputs), max_images)
    top_k = DEFAULT_TOP_K if asked.parameters is None else asked.parameters.top_k
    return [picture(each, "inputs") for each in inputs], isinstance(asked.inputs, list), top_k


def scores(answered: AnsweredImage, top_k: int) -> list[LabelScore]:
    labels = answered.model.labels
    found = best(answered.answer.probabilities, labels, min(top_k, len(labels)))
    return [LabelScore(label=each.label, score=each.probability) for each in found]
