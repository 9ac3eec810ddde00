"""What Triton itself counts: how full its batches were and where a request's time in it went."""

from dataclasses import dataclass

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deit.errors import BenchmarkError
from deit.model import PREPROCESSING_PARAMETER, PROVENANCE_PARAMETER, Provenance
from deit.preprocessing import Preprocessing

DURATIONS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Statistics:
    """Counts since a model was loaded; subtract two of them for the time between.

    Attributes:
        images, executions: images that were computed, and batches in which that happened.
        requests: that were answered; `seconds` by stage are summed over them.
    """

    images: int
    executions: int
    requests: int
    seconds: dict[str, float]

    def __sub__(self, before: "Statistics") -> "Statistics":
        return Statistics(
            self.images - before.images,
            self.executions - before.executions,
            self.requests - before.requests,
            {stage: seconds - before.seconds[stage] for stage, seconds in self.seconds.items()},
        )

    @property
    def mean_batch(self) -> float:
        return self.images / max(self.executions, 1)

    def mean_ms(self, stage: str) -> float:
        return 1000 * self.seconds[stage] / max(self.requests, 1)


class TritonModel:
    """A model of a running Triton, asked over gRPC."""

    def __init__(self, url: str, model: str) -> None:
        self._client = InferenceServerClient(url)
        self._url, self._model = url, model

    def statistics(self) -> Statistics:
        """Raises BenchmarkError if Triton cannot be reached or lacks the model."""
        try:
            answer = self._client.get_inference_statistics(self._model)
        except InferenceServerException as error:
            raise BenchmarkError(f"{self._model} in Triton at {self._url}: {error.message()}") from error
        versions = answer.model_stats
        return Statistics(
            sum(each.inference_count for each in versions),
            sum(each.execution_count for each in versions),
            sum(each.inference_stats.success.count for each in versions),
            {stage: sum(getattr(each.inference_stats, stage).ns for each in versions) / 1e9 for stage in DURATIONS},
        )

    def description(self) -> tuple[Provenance, Preprocessing]:
        """Where the model came from and what images it takes.

        Raises:
            BenchmarkError: Triton cannot be reached, or lacks the model, or `deit export` did not make it.
        """
        try:
            parameters = self._client.get_model_config(self._model).config.parameters
            return (
                Provenance.from_json(parameters[PROVENANCE_PARAMETER].string_value),
                Preprocessing.from_json(parameters[PREPROCESSING_PARAMETER].string_value),
            )
        except InferenceServerException as error:
            raise BenchmarkError(f"{self._model} in Triton at {self._url}: {error.message()}") from error
        except ValueError as error:
            raise BenchmarkError(f"{self._model} was not written by `deit export`: {error}") from error
