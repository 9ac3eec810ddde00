"""Exports the graph that explains a model, and verifies it: its probabilities by the gate, the rest against PyTorch."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch

from deit.errors import RepositoryError
from export.config import ExportConfig
from export.config_pbtxt import scheduling_of
from export.engines import candidates
from export.explained import ExplainedClassifier
from export.findings import Candidate
from export.fitting import Confidence
from export.gate import REFERENCE_BATCH, Reference, judge
from export.graph import export_graph
from export.joint import JointClassifier
from export.publication import Passed, publish_version, reference_answers
from training.opening import TrainedModel

logger = logging.getLogger(__name__)

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of a relevance or feature from PyTorch's, absolute and relative; features are around 1."""


def publish_explaining(
    classifier: JointClassifier,
    expected: Reference,
    source: TrainedModel,
    config: ExportConfig,
    confidence: Confidence | None,
    scratch: Path,
) -> Path:
    """Publish the model that explains, in float32 on ONNX Runtime, and return its version's folder.

    Raises:
        RepositoryError: the model cannot be explained in this way, or the graph's answers are not PyTorch's.
    """
    explained = ExplainedClassifier(classifier).eval()
    onnx_file, images = scratch / "explain.onnx", expected.images
    logger.info("exporting the graph for --explain")
    export_graph(explained, images.shape[1], onnx_file)
    scheduling = scheduling_of(config)
    engine = dataclasses.replace(
        candidates("fp32", "cuda" if config.engine == "cuda" else "onnxruntime")[0],
        threads=config.threads,
        instances=scheduling.instances,
        max_batch_size=scheduling.max_batch_size,
    )
    run = engine.load(onnx_file, classifier.output_names)
    judgement = judge(
        run, expected, "fp32", engine.title, largest_batch=scheduling.max_batch_size, on_gpu=engine.on_gpu
    )
    if judgement.failures:
        raise RepositoryError(f"its answers differ from PyTorch's: {'; '.join(judgement.failures)}")
    further = tuple(explained.further_outputs)
    ours = engine.load(onnx_file, further)(images[:REFERENCE_BATCH])
    with torch.inference_mode():
        theirs = explained(torch.from_numpy(images[:REFERENCE_BATCH]))[-len(further) :]
    for name, found, wanted in zip(further, ours, theirs, strict=True):
        if not np.allclose(found, wanted.numpy(), rtol=LARGEST_DIFFERENCE, atol=LARGEST_DIFFERENCE):
            raise RepositoryError(
                f"{name} differs from PyTorch's by up to {np.abs(found - wanted.numpy()).max():.1e}, allowed is "
                f"{LARGEST_DIFFERENCE:.0e}"
            )
    candidate = Candidate(method="explain", engine=engine, judgement=judgement)
    return publish_version(
        Passed(
            onnx_file=onnx_file,
            best=candidate,
            measured=[candidate],
            answers=reference_answers(run, expected, classifier),
            source=source,
            classifier=classifier,
            config=config,
            confidence=confidence,
            further_outputs=explained.further_outputs,
        )
    )
