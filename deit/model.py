"""The served model: names that the exporter writes and the gateway reads, through Triton.

A model takes `images` and returns `probabilities`; a distilled one also returns those of each head. Everything the
gateway needs beyond shapes is in `parameters` of config.pbtxt, because Triton may run on another machine.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from deit.calibration import Calibration

IMAGES = "images"
"""Input, uint8 (N, H, W, 3), RGB, already resized and cropped. Normalisation is the first layer of the graph."""

PROBABILITIES = "probabilities"
"""Output, float32 (N, classes): the mean of both heads' softmax (arXiv:2012.12877 section 4), or the only head's."""

CLASS_PROBABILITIES = "class_probabilities"
"""Output of a distilled model, float32 (N, classes): softmax of the class token's head."""

DISTILLATION_PROBABILITIES = "distillation_probabilities"
"""Output of a distilled model, float32 (N, classes): softmax of the distillation token's head."""

CLASS_RELEVANCE, DISTILLATION_RELEVANCE = "class_relevance", "distillation_relevance"
"""Outputs of a model that explains, float32 (N, rows, columns): the share of each patch in the token at the end."""

CLASS_FEATURES, DISTILLATION_FEATURES = "class_features", "distillation_features"
"""Outputs of a model that explains, float32 (N, width): what the head of the token reads."""

EXPLAIN_SUFFIX = "_explain"
"""Suffix of the name of a model that explains another."""

PREPROCESSING_PARAMETER = "preprocessing"
"""Key in config.pbtxt's parameters; the value is `Preprocessing.to_json()`."""

VERSION_PARAMETER = "version"
"""Key in config.pbtxt's parameters; the value is the number of the version that the configuration was published with.
Triton gives one configuration for all versions that it serves, but it is valid only for this one.
"""

PROVENANCE_PARAMETER = "provenance"
"""Key in config.pbtxt's parameters; the value is `Provenance.to_json()`."""

VERIFICATION_PARAMETER = "verification"
"""Key in config.pbtxt's parameters; the value is the summary of the gate's report, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model came from and how it was verified.

    Attributes:
        architecture: timm's name of the architecture.
        checkpoint_sha256: of the weights file the graph was made from.
        precision: of the arithmetic in the graph, such as "fp32".
        readout: what `probabilities` is: "joint-probability" or, for a model with one head, "class".
        teacher: name of the teacher, or None when the model was not distilled (or its checkpoint does not say).
        parity_images: number of real images on which the graph was compared with PyTorch.
        parity_max_difference: largest absolute difference of a probability on them.
        metrics: accuracies that came with the checkpoint, such as {"joint_top1": 0.81}.
        versions: of the tools that made the graph.
        calibration: how its probabilities were fitted to labelled images; None if they are the model's own.
    """

    architecture: str
    checkpoint_sha256: str
    precision: str
    readout: str
    teacher: str | None
    parity_images: int
    parity_max_difference: float
    metrics: dict[str, float]
    versions: dict[str, str]
    calibration: Calibration | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        fields: dict[str, Any] = json.loads(text)
        try:
            if fields.get("calibration") is not None:
                fields["calibration"] = Calibration(**fields["calibration"])
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a description of provenance: {error}") from error
