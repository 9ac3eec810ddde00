"""Decides which requests go to a model's candidate: a canary answers them, a shadow is only compared.

Only the request's id decides. Requests that name a version or contain pixels always get the model they name.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from deit.candidate import CandidateModel
from deit.errors import ServingError
from deit.options import named
from serving.gateway.metrics import Metrics
from serving.gateway.models import Discovered, ServedModel
from serving.gateway.question import Question
from serving.gateway.record import CanaryRecord, RequestRecord
from serving.gateway.tritons import Tritons

logger = logging.getLogger(__name__)


class Candidates:
    """The candidates of the models that are served.

    Args:
        chosen: those that the settings name, by model. They override the repository's.
    """

    def __init__(self, tritons: Tritons, chosen: Mapping[str, CandidateModel], metrics: Metrics) -> None:
        self._tritons = tritons
        self._chosen = chosen
        self._metrics = metrics
        self._missing: set[CandidateModel] = set()

    def of(self, model: ServedModel) -> CandidateModel | None:
        """Its shadow or canary, if it has one."""
        return self._chosen.get(model.name, model.candidate)

    def share(self, question: Question, model: ServedModel, record: RequestRecord) -> Question:
        """The question unchanged, with a shadow, or addressed to the canary.

        If the canary is unavailable the model answers, which is counted and logged.
        """
        candidate = self.of(model)
        if candidate is None or not candidate.takes(record.request_id):
            return question
        tried = self._in_its_place(candidate, model)
        if candidate.mode == "shadow":
            if tried is None:
                self._metrics.count_shadow(model.name, model.version, candidate.model, candidate.version, "failed")
                return question
            # of several versions that are served, this one
            named_only = tried if candidate.version is None else replace(tried, versions=(candidate.version,))
            return replace(question, shadow=named_only)
        record.canary = CanaryRecord(model.name, candidate.model, answers=tried is not None)
        if tried is None:
            return question
        return replace(question, model=candidate.model, version=candidate.version, is_canary=True)

    def _in_its_place(self, candidate: CandidateModel, model: ServedModel) -> ServedModel | None:
        tried = self._tritons.answering_model(candidate.model, candidate.version)
        if tried is None:
            why = "it does not answer"
        elif tried.labels != model.labels or tried.has_heads < model.has_heads or tried.can_abstain < model.can_abstain:
            why = "it has other class names or outputs, or cannot abstain"
        else:
            self._missing.discard(candidate)
            return tried
        if candidate not in self._missing:
            self._missing.add(candidate)
            logger.warning("the %s of the model %s is not used: %s", candidate, model.name, why)
        return None


def check_candidates(candidates: Mapping[str, CandidateModel], discovered: Discovered) -> None:
    """Raises ServingError for a candidate that could never get a request. What Triton serves may change later."""
    for name, candidate in candidates.items():
        for each in (name, candidate.model):
            if each not in discovered.names():
                raise ServingError(
                    f"{named(f'--{candidate.mode}')} names the model {each}, which is not served; choose from: "
                    f"{', '.join(discovered.names())}"
                )
        served, tried = discovered.models.get(name), discovered.models.get(candidate.model)
        if tried is not None and tried.served(candidate.version) is None:
            options = f"--version {candidate.version} --percent {candidate.percent:g}"
            command = f"`deit models {candidate.mode} {name} {options}`"
            raise ServingError(
                f"{named(f'--{candidate.mode}')} names version {candidate.version} of {candidate.model}, which is not "
                f"served; served: {', '.join(tried.versions)}. For another version of the same model, {command} makes "
                "Triton load both"
            )
        if served is not None and tried is not None and tried.labels != served.labels:
            raise ServingError(
                f"{named(f'--{candidate.mode}')}: {candidate.model} has other class names than {name}, so it cannot "
                "replace it"
            )
