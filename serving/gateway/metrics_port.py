"""A separate port for /metrics, without API keys, with the same limits on connections as the gateway's."""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.gateway.errors import NotFound
from serving.gateway.metrics import CONTENT_TYPE, Metrics

METRICS = "/metrics"


class MetricsPort:
    """Answers requests on this port; all others go to the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, port: int) -> None:
        self._app = app
        self._metrics = metrics
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["server"][1] != self._port:
            await self._app(scope, receive, send)
        elif scope["path"] == METRICS and scope["method"] == "GET":
            await Response(self._metrics.page(), headers={"Content-Type": CONTENT_TYPE})(scope, receive, send)
        else:
            await NotFound(f"this port has only {METRICS}").response()(scope, receive, send)
