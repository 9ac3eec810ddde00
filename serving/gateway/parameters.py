"""What a caller may ask of /classify in the query.

A model of pydantic instead of parameters of FastAPI's: resolving those one by one took a fifth of the time that the
gateway spends in Python on a request.
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

    model: Annotated[str | None, Field(description="Name of a model; without it, the default one")] = None
    version: Annotated[str | None, Field(description="Version of the model; without it, the newest")] = None
    top_k: Annotated[
        int | None, Field(ge=1, description="How many predictions, at most the number of classes; 5 without it")
    ] = None
    min_probability: Annotated[
        float | None,
        Field(ge=0, le=1, description="Leave out less probable classes, and abstain when none is left"),
    ] = None
    abstain: Annotated[
        bool,
        Field(description="Abstain from images unlike those that the model knows: its answer has too much entropy"),
    ] = False
    heads: Annotated[
        bool, Field(description="Of a distilled model: what each head says by itself, and how far they agree")
    ] = False
    explain: Annotated[
        bool,
        Field(description="Where each token of the model looks: a heat map over what it read, as a data URL in PNG"),
    ] = False
    embedding: Annotated[
        bool, Field(description="The features of each token, as float32 in base64, for search and to watch for drift")
    ] = False
    pixels: Annotated[
        bool, Field(description="What the model read of each image: resized and cropped, as a data URL in PNG")
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
    deadline = "When to give up, in milliseconds; at most what the server allows"
    return [*query, {"name": HEADER, "in": "header", "description": deadline, "schema": {"type": "string"}}]
