"""Every error of the gateway: one table, as problem details (RFC 9457).

A problem's `type` is stable and resolves on the gateway itself: GET /problems/image-too-large explains it. `detail`
explains to the caller what is wrong with this request; it contains nothing internal.
"""

import http
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serving.gateway.paths import is_of_another_contract
from serving.gateway.record import record_of

MEDIA_TYPE = "application/problem+json"
PROBLEM_SCHEMA = "#/components/schemas/ProblemBody"
"""Where OpenAPI has the body of a problem: schemas.py declares it."""

RETRY_AFTER_S = 1
"""Without a better estimate: long enough for a restart or a queue to move, short enough for a caller to wait."""


class Problem(Exception):
    """One row of the table; the docstring of each class is its explanation.

    Args:
        detail: what was found this time.
        retry_after_s: when a repetition may succeed, for the header Retry-After.
        extensions: further members of the answer, such as the failing parameters.
    """

    status: ClassVar[int]
    name: ClassVar[str]
    title: ClassVar[str]
    may_succeed_later: ClassVar[bool] = False
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, *, retry_after_s: int | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.extensions = extensions

    def body(self, root_path: str = "") -> dict[str, Any]:
        """Problem details; `root_path` is the path under which a proxy offers this server."""
        return {
            "type": f"{root_path}/problems/{self.name}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extensions,
        }

    def response_headers(self) -> dict[str, str]:
        later = {"Retry-After": str(self.retry_after_s or RETRY_AFTER_S)} if self.may_succeed_later else {}
        return {**self.headers, **later}

    def response(self) -> "ProblemResponse":
        return ProblemResponse(self)

    def raw_response(self, root_path: str) -> bytes:
        """HTTP/1.1, for a connection that ends with it and whose request no application has seen."""
        body = json.dumps(self.body(root_path)).encode()
        lines = [
            f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            *(f"{name.lower()}: {value}" for name, value in self.response_headers().items() if name != "Connection"),
            "x-content-type-options: nosniff",
            "connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


class ProblemResponse(JSONResponse):
    """The answer; it also notes the problem in the request's record."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.body(), problem.status, problem.response_headers(), MEDIA_TYPE)
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.problems.append(self._problem.name)
        body = self._problem.body(record.root_path)
        if is_of_another_contract(scope["path"]):  # whose clients show the member `error`
            body["error"] = self._problem.detail
        self.body = self.render(body)
        self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


class MalformedRequest(Problem):
    """The request cannot be read: the body is empty, or the multipart form is broken or has no file field `image`."""

    status, name, title = 400, "malformed-request", "The request cannot be read"


class Unauthorized(Problem):
    """The request has no key, or an unknown one. Ask the operator of the server for one."""

    status, name, title = 401, "unauthorized", "An API key is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class NotFound(Problem):
    """This path does not exist. /docs lists the paths."""

    status, name, title = 404, "not-found", "Not found"


class UnknownModel(Problem):
    """The model or the version is not served. GET /models lists those that are."""

    status, name, title = 404, "unknown-model", "No such model"


class MethodNotAllowed(Problem):
    """The path exists, but not for this method. /docs lists the paths with their methods."""

    status, name, title = 405, "method-not-allowed", "Method not allowed"


class HeaderTimeout(Problem):
    """The header of the request did not arrive in time."""

    status, name, title = 408, "header-timeout", "The header arrived too slowly"


class BodyTimeout(Problem):
    """The body did not arrive in time. Send it faster, or a smaller image."""

    status, name, title = 408, "body-timeout", "The body arrived too slowly"


class BodyTooLarge(Problem):
    """The body has more bytes than the server accepts. Send a smaller or more compressed image."""

    status, name, title = 413, "body-too-large", "The body is too large"


class ImageTooLarge(Problem):
    """The image has more pixels than the server decodes, whatever its size in bytes. Send a smaller one."""

    status, name, title = 413, "image-too-large", "The image has too many pixels"


class UrlTooLong(Problem):
    """The URL is longer than the server accepts. Parameters go into the query, the image into the body."""

    status, name, title = 414, "url-too-long", "The URL is too long"


class UnsupportedType(Problem):
    """The body is not a JPEG, PNG, WebP or AVIF image, or its Content-Type cannot hold one."""

    status, name, title = 415, "unsupported-type", "Not a JPEG, PNG, WebP or AVIF image"


class UndecodableImage(Problem):
    """The image begins like a JPEG, PNG, WebP or AVIF, but is truncated or damaged."""

    status, name, title = 422, "undecodable-image", "The image cannot be decoded"


class ImageTooComplex(Problem):
    """The image is crafted to take far more time than its size suggests, such as a JPEG with hundreds of scans."""

    status, name, title = 422, "image-too-complex", "The image takes too long to decode"


class RateLimited(Problem):
    """This key exceeded its rate limit. Try again after the time in Retry-After."""

    status, name, title = 429, "rate-limited", "The key exceeded its rate limit"
    may_succeed_later = True


class HeadersTooLarge(Problem):
    """The request has more header lines, or larger ones, than the server accepts."""

    status, name, title = 431, "headers-too-large", "The header is too large"


class Overloaded(Problem):
    """Too many images are waiting. Try again after the time in Retry-After."""

    status, name, title = 429, "overloaded", "The server is overloaded"
    may_succeed_later = True


class InvalidParameter(Problem):
    """A parameter does not exist or has an invalid value. `errors` lists each value."""

    status, name, title = 422, "invalid-parameter", "A parameter is not valid"


class Internal(Problem):
    """The server failed. Its log has the reason under the request id."""

    status, name, title = 500, "internal", "The server failed"


class NotReady(Problem):
    """Triton is not ready, or a model does not answer. Try again later."""

    status, name, title = 503, "not-ready", "The server is not ready"
    may_succeed_later = True


class DecoderLost(Problem):
    """The process that was decoding the image died and was replaced. Send the image again."""

    status, name, title = 503, "decoder-lost", "The image was lost while it was decoded"
    may_succeed_later = True


class Draining(Problem):
    """The server is shutting down and only finishes requests in progress. Another server may answer."""

    status, name, title = 503, "shutting-down", "The server is shutting down"
    may_succeed_later = True
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class DeadlineExceeded(Problem):
    """The response was not ready in time."""

    status, name, title = 504, "deadline-exceeded", "The response took too long"


IMAGE_PROBLEMS: tuple[type[Problem], ...] = (
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
    DecoderLost,
    Draining,
    Overloaded,
    DeadlineExceeded,
)
"""The errors that may answer a request with images."""

PROBLEMS: Mapping[str, type[Problem]] = {problem.name: problem for problem in Problem.__subclasses__()}


def documented(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for OpenAPI: one entry a status, one example a problem."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        response = responses.setdefault(
            problem.status,
            {
                "description": problem.title,
                "content": {MEDIA_TYPE: {"schema": {"$ref": PROBLEM_SCHEMA}, "examples": {}}},
            },
        )
        example = problem(problem.__doc__ or problem.title).body()
        response["content"][MEDIA_TYPE]["examples"][problem.name] = {"summary": problem.title, "value": example}
        if problem.may_succeed_later:
            response["headers"] = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}
    return responses
