"""The query parameters of /classify.

A pydantic model instead of FastAPI parameters: resolving those one by one took a fifth of the time that the gateway
spends in Python on a request.
"""

from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.gateway.deadline import HEADER
from serving.gateway.errors import InvalidParameter


class Parameters(BaseModel):
    """The parameters of one request, for all its images. If one is repeated, the last counts."""

    model_config = ConfigDict(frozen=True)

    model: Annotated[str | None, Field(description="Name of the model. Default: the default model")] = None
    version: Annotated[str | None, Field(description="Version of the model. Default: the newest")] = None
    top_k: Annotated[
        int | None, Field(ge=1, description="Number of predictions, at most the number of classes. Default: 5")
    ] = None
    min_probability: Annotated[
        float | None,
        Field(ge=0, le=1, description="Leave out classes below this probability; abstain if none is left"),
    ] = None
    abstain: Annotated[
        bool,
        Field(description="Abstain if the answer has more entropy than the answers to familiar images"),
    ] = False
    heads: Annotated[
        bool, Field(description="Also return each head's predictions and how far they agree; for distilled models")
    ] = False
    explain: Annotated[
        bool,
        Field(description="Also return where each token looks: a heat map over the model's input, as a PNG data URL"),
    ] = False
    embedding: Annotated[
        bool,
        Field(description="Also return each token's features, as float32 in base64, for search and monitoring drift"),
    ] = False
    pixels: Annotated[
        bool, Field(description="Also return the model's input: the image resized and cropped, as a PNG data URL")
    ] = False


def parameters_of(request: Request) -> Parameters:
    """Raises RequestValidationError, as FastAPI does, which names the parameter.

    Raises:
        InvalidParameter: there is no parameter of that name; if it were ignored, a mistyped one would seem to work.
    """
    if unknown := request.query_params.keys() - Parameters.model_fields.keys():
        known = ", ".join(Parameters.model_fields)
        raise InvalidParameter(f"there is no parameter {min(unknown)[:60]!r}; there are: {known}")
    try:
        return Parameters.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def documented_parameters() -> list[dict[str, Any]]:
    """For OpenAPI, the header of the deadline included."""
    fields = Parameters.model_json_schema()["properties"]
    query = [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in fields.items()
    ]
    deadline = "Deadline in milliseconds; at most the server's own limit"
    return [*query, {"name": HEADER, "in": "header", "description": deadline, "schema": {"type": "string"}}]
