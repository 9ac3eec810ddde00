"""The moving average of a model's weights."""

import math

from timm.utils import ModelEmaV3

WARMUP_SHARE = 9
"""While it warms up, the average spans the last ninth of the steps so far, as in TensorFlow's
ExponentialMovingAverage, so that the random initial weights are forgotten.
"""


class WeightAverage(ModelEmaV3):  # type: ignore[misc]  # timm is untyped
    """timm's average with a warm-up that ends: timm's own never reaches 0.99996, not in 300 epochs of ImageNet."""

    def get_decay(self, step: int | None = None) -> float:
        """The decay at a step, counted from 1; after the warm-up it is the configured one."""
        decay: float = self.decay
        return decay if step is None else min(decay, step / (step + WARMUP_SHARE))

    def warmed_at(self) -> int:
        """The first step with the configured decay."""
        decay: float = self.decay
        return math.ceil(WARMUP_SHARE * decay / max(1 - decay, 1e-12))
