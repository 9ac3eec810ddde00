"""Writes a graph that passed the gate: as a version in the model repository, or as plans next to it."""

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import timm
import torch

from deit import __version__
from deit.durable import removed_folder, replaced_folder
from deit.model import EXPLAIN_SUFFIX, IMAGES, Provenance
from deit.repository.layout import ONNX_FILE, PROVENANCE_FILE, REFERENCE_FILE, REPORT_FILE, REPORT_TABLE
from deit.repository.publishing import publish
from deit.tensorrt_plan import FINGERPRINT_FILE, PLAN_FILE
from export import findings
from export.config import ExportConfig
from export.config_pbtxt import model_config, scheduling_of
from export.engines import Engine, Infer
from export.findings import Candidate
from export.fitting import Confidence
from export.gate import Reference
from export.joint import JointClassifier
from export.tensorrt_rtx import plan_file
from training.opening import TrainedModel

logger = logging.getLogger(__name__)

REFERENCE_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Passed:
    """A graph that passed the gate.

    Attributes:
        onnx_file, best: the graph, and its findings.
        measured: all candidates that were judged in this precision.
        answers: of `reference_answers`.
        confidence: how the probabilities were fitted; None if they are the model's own.
        further_outputs: those of a graph that explains, with the shape of one image's; empty for all others.
    """

    onnx_file: Path
    best: Candidate
    measured: list[Candidate]
    answers: dict[str, npt.NDArray[Any]]
    source: TrainedModel
    classifier: JointClassifier
    config: ExportConfig
    confidence: Confidence | None
    further_outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        if self.further_outputs:
            return explaining_name(self.source, self.config)
        return model_name(self.best.judgement.precision, self.source, self.config)

    def write_findings(self, folder: Path, *, outcome: str = "published", note: str = "") -> None:
        """Write the files kept with a version or a plan: reference answers, provenance and the gate's report."""
        best, measured = self.best, self.measured
        np.savez_compressed(folder / REFERENCE_FILE, **self.answers)
        (folder / PROVENANCE_FILE).write_text(json.dumps(asdict(self.provenance), indent=2) + "\n")
        found, text = findings.as_json(measured, best), findings.as_text(measured, best, outcome)
        if self.confidence is not None:
            found["confidence"] = self.confidence.as_json()
            text += self.confidence.as_text()
        (folder / REPORT_FILE).write_text(json.dumps(found, indent=2) + "\n")
        (folder / REPORT_TABLE).write_text(text + (f"{note}\n" if note else ""))

    @property
    def provenance(self) -> Provenance:
        source, judgement = self.source, self.best.judgement
        return Provenance(
            architecture=source.architecture,
            checkpoint_sha256=source.weights_sha256,
            precision=judgement.precision,
            readout=self.classifier.readout,
            teacher=source.teacher,
            parity_images=judgement.images,
            parity_max_difference=judgement.max_difference,
            metrics=source.metrics,
            versions=_versions(self.best.engine),
            calibration=None if self.confidence is None else self.confidence.calibration,
        )


def publish_version(passed: Passed) -> Path:
    """Publish the best candidate as the next version of its model, and return the version's folder."""
    onnx_file, best, source, config = passed.onnx_file, passed.best, passed.source, passed.config
    file = PLAN_FILE if best.engine.backend == "tensorrt" else ONNX_FILE

    def fill(folder: Path) -> None:
        if best.engine.backend == "tensorrt":
            built = onnx_file.with_suffix("")
            shutil.copyfile(built / FINGERPRINT_FILE, folder / FINGERPRINT_FILE)
            shutil.copyfile(built / PLAN_FILE, folder / PLAN_FILE)
        # next to a plan too, so that another TensorRT or GPU can build its own
        shutil.copyfile(onnx_file, folder / ONNX_FILE)
        passed.write_findings(folder)

    version = publish(
        config.repository,
        passed.name,
        config=model_config(
            backend=best.engine.backend,
            on_gpu=best.engine.on_gpu,
            file=file,
            backend_parameters=best.engine.parameters,
            outputs=passed.classifier.output_names,
            num_classes=len(source.label_names),
            preprocessing=source.preprocessing,
            provenance=passed.provenance,
            verification=findings.summary(best),
            scheduling=scheduling_of(config),
            further_outputs=passed.further_outputs,
        ),
        label_names=source.label_names,
        fill=fill,
    )
    folder = config.repository / passed.name / str(version)
    logger.info("published %s (%.1f MB)", folder, (folder / file).stat().st_size / 1e6)
    return folder


def keep_plans(passed: Passed) -> list[Path]:
    """Make a folder for each compute capability, with the plan, its graph and the gate's findings."""
    onnx_file, best, config = passed.onnx_file, passed.best, passed.config
    folders = []
    for capability in config.capabilities:
        plan = plan_file(onnx_file, capability)
        if best.engine.capability == capability:
            ran = f"The gate judged the plan for {capability} itself, on the GPU of this machine."
        else:
            ran = (
                f"The plan for {capability} was built but not run, because this machine has no such GPU: the gate "
                f"judged its graph, on {best.engine.title}."
            )
        target = config.plans / model_name(best.judgement.precision, passed.source, config) / capability
        with replaced_folder(target) as folder:
            for file in (plan, plan.with_name(FINGERPRINT_FILE)):
                shutil.copyfile(file, folder / file.name)
            shutil.copyfile(onnx_file, folder / ONNX_FILE)
            passed.write_findings(folder, outcome="built", note=ran)
        folders.append(target)
        logger.info("built %s (%.1f MB). %s", target, plan.stat().st_size / 1e6, ran)
    return folders


def drop_plans(precision: str, source: TrainedModel, config: ExportConfig) -> None:
    """Remove earlier plans of `keep_plans` for the same GPUs, so that none remains of a model that fails the gate."""
    for capability in config.capabilities:
        target = config.plans / model_name(precision, source, config) / capability
        if removed_folder(target):
            logger.warning("removed %s: the model no longer passes the gate for it", target)


def model_name(precision: str, source: TrainedModel, config: ExportConfig) -> str:
    """Name of the model that a precision is published as."""
    name = config.name or source.architecture
    return name if precision == "fp32" else f"{name}_{precision}"


def explaining_name(source: TrainedModel, config: ExportConfig) -> str:
    """Name of the model that explains those of all precisions."""
    return f"{model_name('fp32', source, config)}{EXPLAIN_SUFFIX}"


def reference_answers(run: Infer, expected: Reference, classifier: JointClassifier) -> dict[str, npt.NDArray[Any]]:
    """Images and PyTorch's answers to them, by the names in REFERENCE_FILE. The published variant agrees with PyTorch
    on these images, so an engine that does not differs from the one that was judged.
    """
    spread = np.unique(np.linspace(0, len(expected.images) - 1, 2 * REFERENCE_IMAGES).astype(int))
    answered = np.concatenate([run(expected.images[part])[0] for part in np.array_split(spread, len(spread) // 8 + 1)])
    agreed = spread[answered.argmax(axis=1) == expected.outputs[0][spread].argmax(axis=1)]
    agreed = agreed[np.unique(np.linspace(0, len(agreed) - 1, REFERENCE_IMAGES).astype(int))]
    outputs = {name: output[agreed] for name, output in zip(classifier.output_names, expected.outputs, strict=True)}
    return {IMAGES: expected.images[agreed], **outputs}


def _versions(engine: Engine) -> dict[str, str]:
    found = {
        "deit-server": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    if engine.backend in ("openvino", "tensorrt"):
        found[engine.backend] = sys.modules[engine.backend].__version__
    return found
