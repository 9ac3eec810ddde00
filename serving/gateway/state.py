"""What the routes work with, made when the application starts and closed when it stops."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from serving.gateway.admission import Admission
from serving.gateway.classification import Classifier, Question
from serving.gateway.decoder import Decoder
from serving.gateway.errors import InvalidParameter, UnknownModel
from serving.gateway.models import ServedModel
from serving.gateway.parameters import Parameters
from serving.gateway.readiness import Readiness
from serving.settings import Limits

DEFAULT_TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class GatewayState:
    """Attributes:
    pins_versions: a request keeps to the version that was newest when it came. So a reload can load another one,
        and no request gets pixels made for one version and probabilities of another.
    """

    models: Mapping[str, ServedModel]
    default_model: str
    limits: Limits
    admission: Admission
    classifier: Classifier
    decoder: Decoder
    readiness: Readiness
    shows_metrics: bool
    pins_versions: bool

    def model(self, name: str | None) -> ServedModel:
        """Raises UnknownModel, which lists the models there are."""
        name = self.default_model if name is None else name
        if name not in self.models:
            raise UnknownModel(f"the model {name[:100]!r} is not served; served: {', '.join(self.models)}")
        return self.models[name]

    def question(self, asked: Parameters) -> Question:
        """What a request asks, checked against the model.

        Raises:
            UnknownModel, InvalidParameter
        """
        served = self.model(asked.model)
        if asked.version is not None and asked.version not in served.versions:
            raise UnknownModel(
                f"the model {served.name} has no version {asked.version[:100]!r}; loaded: {', '.join(served.versions)}"
            )
        classes = len(served.labels)
        if asked.top_k is not None and asked.top_k > classes:
            raise InvalidParameter(f"top_k is {asked.top_k}, and the model {served.name} has {classes} classes")
        if asked.heads and not served.has_heads:
            raise InvalidParameter(f"the model {served.name} has one head; leave heads out")
        return Question(
            model=served,
            version=asked.version or (served.version if self.pins_versions else ""),
            top_k=asked.top_k or min(DEFAULT_TOP_K, classes),
            min_probability=asked.min_probability,
            with_heads=asked.heads,
            with_pixels=asked.pixels,
        )


def gateway_state(request: Request) -> GatewayState:
    """What a route works with. Not a dependency of FastAPI: resolving one takes longer than all that is done here."""
    state: GatewayState = request.app.state.gateway
    return state
