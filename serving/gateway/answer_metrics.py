"""What the models find in what they are shown, for Prometheus: a change there says that the pictures have changed.

Counted by hand and made into metrics when Prometheus asks: prometheus_client's own counters with labels would take as
long for one image as picking its best classes.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

MOST_CLASSES = 1000
"""Of a model; those with a higher index are counted together."""

OTHERS = "others"

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Upper bounds; the last holds all that are above the one before, also by rounding."""


class AnswerMetrics:
    """Images by the class that was found most probable, and how probable it was."""

    def __init__(self) -> None:
        self._classes: Counter[tuple[str, str, str]] = Counter()
        self._confidences: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * len(CONFIDENCES))
        self._sums: defaultdict[tuple[str, str], float] = defaultdict(float)

    def count(self, model: str, version: str, label: str, confidence: float) -> None:
        """An image was answered; `confidence` is the probability of its best class."""
        self._classes[model, version, label] += 1
        self._confidences[model, version][min(bisect_left(CONFIDENCES, confidence), len(CONFIDENCES) - 1)] += 1
        self._sums[model, version] += confidence

    def collect(self) -> Iterator[Metric]:
        classes = CounterMetricFamily(
            "deit_predictions", "Images by their most probable class", labels=["model", "version", "label"]
        )
        for key, images in self._classes.items():
            classes.add_metric(key, images)
        yield classes
        confidences = HistogramMetricFamily(
            "deit_confidence", "Probability of the most probable class of an image", labels=["model", "version"]
        )
        for names, counts in self._confidences.items():
            upper_bounds = [*map(str, CONFIDENCES[:-1]), "+Inf"]
            cumulative = [sum(counts[: place + 1]) for place in range(len(counts))]
            confidences.add_metric(names, list(zip(upper_bounds, cumulative, strict=True)), self._sums[names])
        yield confidences
