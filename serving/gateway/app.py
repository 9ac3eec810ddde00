"""The gateway as an ASGI application."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from deit import __version__
from serving.gateway.admission import Admission
from serving.gateway.api_keys import ApiKeys
from serving.gateway.authentication import KEY_SCHEMES, Authentication, is_open
from serving.gateway.candidates import Candidates
from serving.gateway.capture import Capture
from serving.gateway.classification import Classifier
from serving.gateway.client_address import Network
from serving.gateway.contracts import hugging_face, open_inference, sagemaker, vertex
from serving.gateway.deadline import HEADER as DEADLINE_HEADER
from serving.gateway.decoder import Decoder
from serving.gateway.errors import (
    MEDIA_TYPE,
    InvalidParameter,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Problem,
    Unauthorized,
    documented,
)
from serving.gateway.following import following
from serving.gateway.joining import Joiner
from serving.gateway.metrics import Metrics
from serving.gateway.metrics_port import MetricsPort
from serving.gateway.middleware import AdmissionControl, BodyGuard, RequestEnvelope
from serving.gateway.models import ServedModel
from serving.gateway.readiness import Readiness, in_background
from serving.gateway.record import record_of
from serving.gateway.routes import STATIC, router
from serving.gateway.shadow import Shadow
from serving.gateway.state import GatewayState, gateway_state
from serving.gateway.tracing import Tracing
from serving.gateway.tritons import Triton, Tritons
from serving.settings.serve import ServeSettings

Companion = Callable[[Readiness], AbstractAsyncContextManager[None]]
"""Tasks that run while the application does, such as the watch over an embedded Triton."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may send requests, how often, and from which pages; None and empty for everyone on this machine.

    Attributes:
        trusted_proxies: proxies whose X-Forwarded-For is trusted.
    """

    keys: ApiKeys | None = None
    rate_limit: float | None = None
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()


def create_app(
    settings: ServeSettings,
    triton_urls: Sequence[str],
    *,
    models: Mapping[str, ServedModel] | None,
    broken: Mapping[str, str],
    default_model: str,
    access: Access,
    admission: Admission,
    metrics: Metrics,
    tracing: Tracing | None,
    companions: Sequence[Companion],
    capture: Capture | None,
    shared_memory_key: str | None,
) -> FastAPI:
    """The application for the Tritons at these addresses.

    Args:
        models: what a single Triton serves, if this process decides that; None if it is learnt from Triton.
        broken: why it does not serve others, by name.
        companions: tasks that run alongside the single Triton.
        capture: keeps a share of the pictures; None for none.
        shared_memory_key: the key for registering shared memory with the Tritons; None to send pixels in requests.
    """
    limits, decoder = settings.limits, Decoder(settings.decoding, settings.limits, metrics.lose_decoder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lone = None if models is None else Triton(triton_urls[0], models, broken, shared_memory_key=shared_memory_key)
        tritons = Tritons(metrics.show_models, *(() if lone is None else (lone,)))
        shared = Candidates(tritons, settings.candidates, metrics)
        shadow = Shadow(admission, metrics)
        metrics.watch(tritons, shared.of)
        app.state.gateway = GatewayState(
            tritons=tritons,
            candidates=shared,
            default_model=default_model,
            limits=limits,
            admission=admission,
            classifier=Classifier(
                tritons,
                decoder,
                Joiner(settings.images_per_request, metrics.count_model_request),
                shadow,
                max_pixels=limits.max_image_pixels,
                count_jpeg=metrics.count_jpeg,
                capture=capture,
            ),
            decoder=decoder,
            shows_metrics=settings.metrics_port is None,
        )
        await decoder.start()
        async with contextlib.AsyncExitStack() as stack:
            if lone is None:
                await stack.enter_async_context(following(triton_urls, tritons, shared_memory_key))
            else:
                stack.push_async_callback(lone.client.close)
                await lone.readiness.ask()  # /readyz is right from the first request on
                await stack.enter_async_context(in_background(lone.readiness.watch()))
                for companion in companions:
                    await stack.enter_async_context(companion(lone.readiness))
            yield
            shadow.close()
            if capture is not None:
                await capture.written()
        decoder.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="deit-server",
        summary="Classifies images with distilled DeiT models.",
        version=__version__,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        lifespan=lifespan,
        redirect_slashes=False,  # it would redirect to whatever stands in Host
        docs_url=None,  # FastAPI's would load Swagger UI from elsewhere; ours brings it along
        redoc_url=None,
    )
    app.state.metrics = metrics
    contracts = (hugging_face, open_inference, vertex, sagemaker) if settings.contracts else ()
    routes = [route for each in (router, *(contract.router for contract in contracts)) for route in each.routes]
    # Not by include_router, which makes the search for a route take 0.1 ms; and what takes pictures is found first.
    app.router.routes += sorted(routes, key=lambda route: "POST" not in getattr(route, "methods", ()))
    app.mount("/static/swagger", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    _add_middleware(app, settings, access, admission, metrics, tracing)
    _describe_keys(app, asks_for_keys=access.keys is not None)
    return app


def _add_middleware(
    app: FastAPI,
    settings: ServeSettings,
    access: Access,
    admission: Admission,
    metrics: Metrics,
    tracing: Tracing | None,
) -> None:
    """Add middleware from the innermost to the outermost, which is added last."""
    app.add_middleware(AdmissionControl, admission=admission)
    app.add_middleware(BodyGuard, max_bytes=settings.limits.max_body_bytes)
    if access.keys is not None:
        app.add_middleware(Authentication, keys=access.keys, rate_limit=access.rate_limit)
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID", DEADLINE_HEADER],
            expose_headers=["Retry-After", "Server-Timing", "X-Model", "X-Model-Version", "X-Request-ID"],
        )
    if settings.metrics_port is not None:
        app.add_middleware(MetricsPort, metrics=metrics, port=settings.metrics_port)
    app.add_middleware(
        RequestEnvelope,
        metrics=metrics,
        tracing=tracing,
        logs_requests=settings.log_requests,
        trusted_proxies=access.trusted_proxies,
    )


async def _answer_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    if isinstance(error, Overloaded) and error.retry_after_s is None:  # Triton's queue is full
        error.retry_after_s = gateway_state(request).admission.retry_after_s()
    return error.response()


async def _answer_validation_error(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's own check of the query parameters."""
    assert isinstance(error, RequestValidationError)
    errors = [{"parameter": str(each["loc"][-1]), "reason": each["msg"]} for each in error.errors()]
    found = "; ".join(f"{each['parameter']}: {each['reason']}" for each in errors)
    return InvalidParameter(found, errors=errors).response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, wrong method."""
    assert isinstance(error, HTTPException)
    path: str = request.scope["path"]
    if error.status_code == 404:
        if not path:  # the root path without its slash, where the page's relative addresses would be wrong
            return RedirectResponse(f"{record_of(request.scope).root_path.rpartition('/')[2]}/", 307)
        name = path.removesuffix("/").rpartition("/")[2]
        if name and path.endswith("/"):
            # Relative, so that host, scheme and a proxy's prefix stay as the client knows them.
            query = request.scope["query_string"].decode("latin-1")
            return RedirectResponse(f"../{quote(name)}{'?' if query else ''}{query}", 307)
        return NotFound(f"there is nothing at {path[:100]}").response()
    if error.status_code == 405:
        response = MethodNotAllowed(f"{path[:100]} does not take {request.method}").response()
        response.headers.update(error.headers or {})  # Allow
        return response
    return MalformedRequest(str(error.detail)).response()


def _describe_keys(app: FastAPI, *, asks_for_keys: bool) -> None:
    """Put keys into OpenAPI, and take FastAPI's own validation errors out."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = generate()
            schemas = schema["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            unauthorized = documented(Unauthorized)
            if asks_for_keys:
                schema["components"]["securitySchemes"] = KEY_SCHEMES
            # FastAPI documents its own 422 for every path with a parameter, even if any text is valid.
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    if asks_for_keys and not is_open(path):
                        operation["security"] = [{name: []} for name in KEY_SCHEMES]
                        operation["responses"] |= {str(status): each for status, each in unauthorized.items()}
                    if MEDIA_TYPE not in operation["responses"].get("422", {}).get("content", {MEDIA_TYPE: None}):
                        del operation["responses"]["422"]
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]
