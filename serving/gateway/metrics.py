"""What the gateway counts, for Prometheus. Labels are bounded: routes, models, problems, never text from a caller."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from deit.candidate import CandidateModel
from serving.gateway.admission import Admission
from serving.gateway.errors import DeadlineExceeded, Internal, NotReady
from serving.gateway.models import ServedModel
from serving.gateway.record import RequestRecord
from serving.gateway.tritons import Tritons

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a cached small model on a GPU to the longest deadline.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)

DIFFERENCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

MODEL_FAILED = frozenset(problem.name for problem in (NotReady, Internal, DeadlineExceeded))

# Set for one of several gateways: prometheus_client then keeps its values in this folder, where the others read them.
IS_SHARED = "PROMETHEUS_MULTIPROC_DIR" in os.environ


class WhatIsServed:
    """What is served now, read when Prometheus asks: Tritons and models come and go."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.models = models
        self.tritons: Tritons | None = None
        self.candidate_of: Callable[[ServedModel], CandidateModel | None] = lambda _: None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info = GaugeMetricFamily("deit_model_info", "1", labels=["model", "version", "precision", "checkpoint"])
        served = self.models.values()
        for model in [*served, *(each.other for each in served if each.other is not None)]:
            precision = model.provenance.precision if model.provenance else ""
            checkpoint = model.provenance.checkpoint_sha256 if model.provenance else ""
            info.add_metric([model.name, model.version, precision, checkpoint], 1)
        yield info
        candidates = GaugeMetricFamily(
            "deit_candidate_percent",
            "Share of a model's requests that its shadow or canary gets",
            labels=["model", "candidate", "candidate_version", "mode"],
        )
        for model in self.models.values():
            if (tried := self.candidate_of(model)) is not None:
                candidates.add_metric([model.name, tried.model, tried.version or "", tried.mode], tried.percent)
        yield candidates
        if self.tritons is None:
            return
        yield GaugeMetricFamily("deit_tritons", "Tritons that answer", value=self.tritons.answering())
        broken = GaugeMetricFamily(
            "deit_models_broken",
            "Models that a Triton does not serve, because they do not load or do not return probabilities",
            labels=["triton"],
        )
        for triton in self.tritons:
            if triton.models:
                broken.add_metric([triton.url], len(triton.broken.keys() - triton.models.keys()))
        yield broken


class Metrics:
    """The metrics of one gateway, or of all gateways of a supervisor, in a separate registry."""

    def __init__(self, models: Mapping[str, ServedModel], admission: Admission) -> None:
        self.registry = registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=registry)
        histogram = functools.partial(Histogram, registry=registry)
        gauge = functools.partial(Gauge, registry=registry)
        self._admission = admission
        self._served = WhatIsServed(models)
        registry.register(self._served)
        self._requests = counter("deit_requests", "Requests by answer; 499 when the client left", ["route", "status"])
        self._problems = counter("deit_problems", "Requests and images that were refused", ["problem"])
        self._seconds = histogram(
            "deit_request_seconds", "Seconds from the header to the answer", ["route"], buckets=SECONDS
        )
        self._stage_seconds = histogram(
            "deit_stage_seconds", "Seconds of one image", ["stage", "model", "version"], buckets=SECONDS
        )
        self._images = counter("deit_images", "Images that were answered", ["model", "version"])
        self._request_images = histogram("deit_request_images", "Images of one request", buckets=IMAGES)
        self._model_request_images = histogram(
            "deit_model_request_images", "Images in one request to Triton", ["model"], buckets=IMAGES
        )
        self._heads = counter(
            "deit_heads", "Images with heads=true, by whether both heads agree", ["model", "version", "agree"]
        )
        # Looking up the metric for some labels takes longer than counting, so it is done once.
        self._predictions = functools.cache(
            counter("deit_predictions", "Images by their most probable class", ["model", "version", "label"]).labels
        )
        self._confidences = functools.cache(
            histogram(
                "deit_confidence",
                "Probability of the most probable class of an image",
                ["model", "version"],
                buckets=CONFIDENCES,
            ).labels
        )
        of_shadow = ["model", "candidate", "candidate_version"]
        self._shadow_images = counter(
            "deit_shadow_images",
            "Images for a shadow: its most probable class agrees or differs; dropped while the server was busy; failed",
            ["model", "version", "candidate", "candidate_version", "outcome"],
        )
        self._shadow_differences = histogram(
            "deit_shadow_difference",
            "Largest difference of a probability between a shadow and the answer that was given",
            of_shadow,
            buckets=DIFFERENCES,
        )
        self._shadow_seconds = histogram(
            "deit_shadow_seconds",
            "Seconds of a shadow's model stage; compare with deit_stage_seconds",
            of_shadow,
            buckets=SECONDS,
        )
        self._canary_requests = counter(
            "deit_canary_requests",
            "Requests in a canary's share: it answered or failed, or was unavailable and the model answered",
            ["model", "candidate", "outcome"],
        )
        self._captured_images = counter(
            "deit_captured_images",
            "Images to be captured: written, dropped because writing was behind, refused by a full folder, or failed",
            ["outcome"],
        )
        self._jpegs = counter(
            "deit_triton_jpegs",
            "JPEGs that Triton was asked to decode: decoded, or left to the gateway's decoders",
            ["outcome"],
        )
        self._lost_decoders = counter("deit_decoders_lost", "Decoding processes that ended and were replaced")
        self._in_flight, self._images_in_flight, self._image_limit = (
            gauge(name, text, multiprocess_mode="livesum")
            for name, text in (
                ("deit_requests_in_flight", "Requests not yet answered"),
                ("deit_images_in_flight", "Images that wait or are being processed"),
                ("deit_image_limit", "Images in flight above which more are refused"),
            )
        )
        self._loads = counter("deit_model_loads", "Models by outcome of a reload", ["outcome"])
        self._show_load()

    def watch(self, tritons: Tritons, candidate_of: Callable[[ServedModel], CandidateModel | None]) -> None:
        self._served.tritons, self._served.candidate_of = tritons, candidate_of

    def show_models(self, models: Mapping[str, ServedModel]) -> None:
        """Those that are served now."""
        self._served.models = models

    def count_load(self, outcome: str) -> None:
        self._loads.labels(outcome).inc()

    def count_model_request(self, model: str, images: int) -> None:
        self._model_request_images.labels(model).observe(images)

    def count_shadow(
        self, model: str, version: str, candidate: str, candidate_version: str | None, outcome: str
    ) -> None:
        self._shadow_images.labels(model, version, candidate, candidate_version or "", outcome).inc()

    def observe_shadow(
        self, model: str, candidate: str, candidate_version: str, *, difference: float, seconds: float
    ) -> None:
        self._shadow_differences.labels(model, candidate, candidate_version).observe(difference)
        self._shadow_seconds.labels(model, candidate, candidate_version).observe(seconds)

    def count_capture(self, outcome: str) -> None:
        self._captured_images.labels(outcome).inc()

    def count_jpeg(self, is_decoded: bool) -> None:
        self._jpegs.labels("decoded" if is_decoded else "left").inc()

    def lose_decoder(self) -> None:
        self._lost_decoders.inc()

    def begin(self) -> None:
        self._in_flight.inc()
        if IS_SHARED:
            self._show_load()

    def end(self, record: RequestRecord, *, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._in_flight.dec()
        if IS_SHARED:
            self._show_load()
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        for problem in record.problems:
            self._problems.labels(problem).inc()
        if (canary := record.canary) is not None:
            # the status is 200 where all of several images failed; and a refused upload is not the model's fault
            outcome: str | None
            if record.images:
                outcome = "answered" if canary.answers else "unavailable"
            else:
                outcome = "failed" if not MODEL_FAILED.isdisjoint(record.problems) else None
            if outcome is not None:
                self._canary_requests.labels(canary.model, canary.candidate, outcome).inc()
        if record.images:
            self._request_images.observe(len(record.images))
        for image in record.images:
            self._images.labels(record.model, image.version).inc()
            self._predictions(record.model, image.version, image.best_label).inc()
            self._confidences(record.model, image.version).observe(image.confidence)
            if image.heads_agree is not None:
                self._heads.labels(record.model, image.version, str(image.heads_agree).lower()).inc()
            for stage, stage_seconds in image.stages_s.items():
                self._stage_seconds.labels(stage, record.model, image.version).observe(stage_seconds)

    def page(self) -> bytes:
        """What Prometheus reads."""
        self._show_load()
        if not IS_SHARED:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(self._served)
        return generate_latest(registry)

    def _show_load(self) -> None:
        self._images_in_flight.set(self._admission.images_in_flight)
        self._image_limit.set(self._admission.image_limit)
