"""What the routes work with, made when the application starts and closed when it stops."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from serving.gateway.errors import UnknownModel
from serving.gateway.images import ImageDecoder
from serving.gateway.models import ServedModel
from serving.gateway.readiness import Readiness
from serving.gateway.triton_client import TritonClient
from serving.settings import Limits


@dataclass(frozen=True, kw_only=True)
class GatewayState:
    models: Mapping[str, ServedModel]
    default_model: str
    limits: Limits
    client: TritonClient
    decoder: ImageDecoder
    readiness: Readiness

    def model(self, name: str | None) -> ServedModel:
        """Raises UnknownModel, which lists the models there are."""
        name = self.default_model if name is None else name
        if name not in self.models:
            raise UnknownModel(f"there is no model {name[:100]!r}; served: {', '.join(self.models)}")
        return self.models[name]


def gateway_state(request: Request) -> GatewayState:
    """The dependency by which a route gets it."""
    state: GatewayState = request.app.state.gateway
    return state
