"""The objects that the routes work with, made when the application starts and closed when it stops."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from serving.gateway.admission import Admission
from serving.gateway.candidates import Candidates
from serving.gateway.classification import Classifier
from serving.gateway.decoder import Decoder
from serving.gateway.errors import Draining, InvalidParameter, NotReady, UnknownModel
from serving.gateway.models import ServedModel
from serving.gateway.parameters import Parameters
from serving.gateway.question import Question
from serving.gateway.record import RequestRecord
from serving.gateway.tritons import Tritons
from serving.settings.limits import Limits

DEFAULT_TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class GatewayState:
    tritons: Tritons
    candidates: Candidates
    default_model: str
    limits: Limits
    admission: Admission
    classifier: Classifier
    decoder: Decoder
    shows_metrics: bool

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return self.tritons.models()

    def raise_if_not_ready(self) -> None:
        """Raises Draining, or NotReady if no decoder runs or a model does not answer."""
        if self.admission.is_stopping:
            raise Draining("the server is shutting down")
        findings = [*self.decoder.findings(), *self.tritons.findings()]
        if findings:
            raise NotReady("; ".join(findings))

    def model(self, name: str | None) -> ServedModel:
        """Raises UnknownModel, which lists the served models, and NotReady if what is served is unknown."""
        name, models = self.default_model if name is None else name, self.models
        if name in models:
            return models[name]
        if not models or name == self.default_model or name in self.tritons.broken():
            raise NotReady(self.tritons.why_not(name))
        raise UnknownModel(f"the model {name[:100]!r} is not served; served: {', '.join(models)}")

    def explainer(self, model: ServedModel) -> str | None:
        """The name of the model that explains this one, perhaps itself; None if none does."""
        return next((each.name for each in self.models.values() if each.explains(model)), None)

    def question(self, asked: Parameters, record: RequestRecord | None = None) -> Question:
        """What a request asks, checked against the model.

        Args:
            record: of a request that the model's candidate may get; None if it must not.

        Raises:
            UnknownModel, InvalidParameter
        """
        served = self.model(asked.model)
        if asked.version is not None and asked.version not in (loaded := self.tritons.versions(served.name)):
            raise UnknownModel(
                f"the model {served.name} has no version {asked.version[:100]!r}; loaded: {', '.join(loaded)}"
            )
        asked_for = served.served(asked.version) or served
        classes = len(served.labels)
        if asked.top_k is not None and asked.top_k > classes:
            raise InvalidParameter(f"top_k is {asked.top_k}, and the model {served.name} has {classes} classes")
        if asked.heads and not asked_for.has_heads:
            raise InvalidParameter(f"the model {served.name} has one head; leave heads out")
        if asked.abstain and not asked_for.can_abstain:
            raise InvalidParameter(
                f"the model {served.name} was exported without labelled images, so it does not know when to abstain; "
                "leave abstain out"
            )
        explainer = None
        if asked.explain or asked.embedding:
            explainer = self.explainer(asked_for)
            if explainer is None:
                raise InvalidParameter(
                    f"no served model explains {served.name}; export it again with --explain, or leave "
                    "explain and embedding out"
                )
        question = Question(
            model=served.name,
            version=asked.version,
            top_k=asked.top_k or min(DEFAULT_TOP_K, classes),
            min_probability=asked.min_probability,
            abstains=asked.abstain,
            explainer=explainer,
            with_explanation=asked.explain,
            with_embedding=asked.embedding,
            with_heads=asked.heads,
            with_pixels=asked.pixels,
        )
        if record is None or asked.version is not None or explainer is not None:  # which explains no other weights
            return question
        return self.candidates.share(question, served, record)


def gateway_state(request: Request) -> GatewayState:
    """The state for a route. Not a dependency of FastAPI, which takes longer to resolve than this function takes."""
    state: GatewayState = request.app.state.gateway
    return state
