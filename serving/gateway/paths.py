"""The paths that classify images: our own, and those of other servers' APIs."""

import functools
import re

from starlette.routing import compile_path

CLASSIFY = "/classify"

HUGGING_FACE, HUGGING_FACE_MODEL = "/hf", "/hf/{name}"
PING, INVOCATIONS = "/ping", "/invocations"
PREDICT = "/v1/models/{name}:predict"
VERTEX = "/v1/endpoints/{endpoint}/deployedModels/{deployed}"
VERTEX_PREDICT = f"{VERTEX}:predict"
SERVER, LIVE, READY = "/v2", "/v2/health/live", "/v2/health/ready"
MODEL, MODEL_VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
INFER, INFER_VERSION = f"{MODEL}/infer", f"{MODEL_VERSION}/infer"

ANSWERING = (HUGGING_FACE, HUGGING_FACE_MODEL, INVOCATIONS, PREDICT, VERTEX_PREDICT, INFER, INFER_VERSION)
OF_OTHERS = ("/hf", "/ping", "/invocations", "/v1", "/v2")


def answering_route(path: str) -> str | None:
    """The route that declares this path, if it accepts images, else None."""
    path = path.removesuffix("\n")  # which the router ignores too
    if path == CLASSIFY:
        return CLASSIFY
    if is_of_another_contract(path):
        return next((route for route in ANSWERING if _pattern(route).match(path)), None)
    return None


def is_of_another_contract(path: str) -> bool:
    """Whether the path belongs to another server's API."""
    path = path.removesuffix("\n")
    return path.startswith(OF_OTHERS) and f"/{path.split('/', 2)[1]}" in OF_OTHERS


@functools.cache
def _pattern(route: str) -> re.Pattern[str]:
    return compile_path(route)[0]
