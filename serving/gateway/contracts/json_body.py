"""JSON bodies: checks them against a contract, and decodes pictures from base64."""

import re
from typing import Any, TypeVar

import numpy as np
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from serving.gateway.errors import IMAGE_PROBLEMS, InvalidParameter, MalformedRequest, UnsupportedType, documented
from serving.gateway.uploads import Upload

Body = TypeVar("Body", bound=BaseModel)

# Parsing JSON blocks the event loop, and so every other request; the time depends on the number of values, hardly on
# their length.
MOST_TEXTS = 10_000
MOST_LISTS = 60_000
MOST_VALUES = 200_000
"""A picture in base64 is one text; an image of 224 x 224 as lists of pixels has 150,528 values in 50,402 lists."""

BASE64: TypeAdapter[bytes] = TypeAdapter(bytes, config=ConfigDict(val_json_bytes="base64"))
"""In a fifth of the time that binascii takes; it also accepts the URL-safe alphabet and missing padding."""

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}://")
DATA_URL = re.compile(r"data:[^,]{0,200};base64,")


def parsed(kind: type[Body], body: bytes | memoryview) -> Body:
    """The body, parsed as the contract defines it.

    Raises:
        MalformedRequest: it is not JSON, or not an object, or has too many values.
        RequestValidationError: a member has another type, or a value that it cannot have.
    """
    text = bytes(body)
    limits = {'"': 2 * MOST_TEXTS, "{": MOST_TEXTS, "[": MOST_LISTS, ",": MOST_VALUES}
    characters = np.frombuffer(text, np.uint8)  # counts in a quarter of the time that bytes.count takes
    if any(np.count_nonzero(characters == ord(character)) > most for character, most in limits.items()):
        raise MalformedRequest(
            f"the JSON has more than {MOST_TEXTS} texts or objects, {MOST_LISTS} lists or {MOST_VALUES} values; send "
            "fewer images, and pixels as binary data"
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        if not found[0]["loc"]:  # the error is about the whole body: it is not JSON, or not an object
            raise MalformedRequest(f"the body cannot be read: {found[0]['msg']}") from error
        raise RequestValidationError(found) from error


def description(path: str, answer: Any, asked: type[BaseModel], *raw_types: str) -> dict[str, Any]:
    """The OpenAPI description of a path that reads its own body: JSON as `asked`, or the bytes of a picture."""
    content: dict[str, Any] = {"application/json": {"schema": schema_of(asked)}}
    content |= {each: {"schema": {"type": "string", "format": "binary"}} for each in raw_types}
    return {
        "response_model": answer,
        "responses": documented(*IMAGE_PROBLEMS),
        "openapi_extra": {
            "parameters": path_parameters(path),
            "requestBody": {"required": True, "content": content},
        },
    }


def path_parameters(path: str) -> list[dict[str, Any]]:
    """Path parameters of a route, for OpenAPI. The route reads them itself: FastAPI would take a tenth of a ms."""
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def picture(text: str, name: str) -> Upload:
    """The picture in the member `name`, in base64 or as a data URL.

    Raises:
        InvalidParameter: it holds neither, or a URL, which is never fetched.
    """
    if ADDRESS.match(text):
        raise InvalidParameter(f"{name} is a URL, and URLs are not fetched; send the image itself in base64")
    if (url := DATA_URL.match(text)) is not None:
        text = text[url.end() :]
    elif text.startswith("data:"):
        raise InvalidParameter(f"{name} is a data URL without ;base64,")
    if "\n" in text:  # the command base64 wraps its lines
        text = "".join(text.split())
    try:
        return Upload(filename="", content=BASE64.validate_strings(text))
    except ValidationError as error:
        raise InvalidParameter(f"{name} is not base64: {error.errors()[0]['ctx']['encoding_error']}") from error


def is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def refuse_compressed(encoding: str) -> None:
    """Raises UnsupportedType."""
    if encoding.lower() != "identity":
        raise UnsupportedType("the body is compressed; send it as it is, without Content-Encoding")


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The complete schema for OpenAPI: FastAPI's components have only the models that it reads itself."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return whole(parts[node["$ref"].rpartition("/")[2]])
        return {name: whole(each) for name, each in node.items()}

    described: dict[str, Any] = whole(schema)
    return described
