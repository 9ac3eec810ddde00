"""One export, step by step: load, build the graphs, judge them, publish those that pass."""

import dataclasses
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import timm
import torch
from rich.console import Console
from rich.progress import track

from deit import __version__
from deit.errors import RepositoryError
from deit.model import IMAGES, Provenance
from deit.repository.layout import ONNX_FILE, PROVENANCE_FILE, REFERENCE_FILE, REPORT_FILE, REPORT_TABLE
from deit.repository.publishing import publish
from deit.tensorrt_plan import FINGERPRINT_FILE, PLAN_FILE
from export import findings
from export.config import GPU_ENGINES, ExportConfig
from export.config_pbtxt import model_config, scheduling_of
from export.engines import Engine, Infer, candidates
from export.findings import Candidate
from export.gate import Reference, judge, reference
from export.graph import OPSET_FOR_GPU, export_graph
from export.joint import JointClassifier
from export.quantization import GPU_METHODS, METHODS, quantize
from export.samples import Sample, load_samples
from export.served import served_form
from export.source import load_source
from export.speed import images_per_s
from training.columns import Columns
from training.opening import TrainedModel

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
REFERENCE_IMAGES = 32
MEASURED_BATCH, MEASURED_BATCH_ON_GPU = 8, 64


def export_models(config: ExportConfig) -> list[Path]:
    """Publish the precisions that `config` names and that pass the gate, and return the folders of their versions.

    Raises:
        DeitError: the model cannot be loaded, exported or published, or a precision does not pass. What passed is
        published; what did not is named with the reason.
    """
    engines = {precision: candidates(precision, config.engine) for precision in config.precisions}
    source = load_source(config)
    classifier = JointClassifier(source.model, source.preprocessing, config.readout).eval()
    sample, calibration = load_samples(
        config.images,
        source.preprocessing,
        config.parity_images,
        num_classes=len(source.label_names),
        calibrates="int8" in config.precisions,
        columns=Columns(config.image_column, config.label_column),
    )
    if sample.labels is None:
        logger.warning("%s has no labels of the model's classes: top-1 is not part of the gate", config.images)
    expected = reference(classifier, sample.images, sample.labels)

    folders, refused = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for precision in config.precisions:
            try:
                found = _judged(precision, engines[precision], classifier, expected, calibration, config, Path(scratch))
            except RepositoryError as error:
                refused.append(f"for it does not run here: {precision}: {error}")
                continue
            measured = [candidate for _, candidate in found]
            best = max(
                (each for each in found if each[1].passes), key=lambda each: each[1].images_per_s or 0.0, default=None
            )
            Console(stderr=True, width=140).print(findings.table(measured, [best[1]] if best else []))
            if best is None:
                reasons = dict.fromkeys(
                    f"{each.title} on {each.engine.title}: {failure}"
                    for each in measured
                    for failure in each.judgement.failures
                )
                refused.append(f"for its answers are not PyTorch's: {'; '.join(reasons)}")
                continue
            folders.append(_publish(*best, measured, expected, source, classifier, config))
    if refused:
        raise RepositoryError(
            f"not published, {'; '.join(refused)}. Published: {', '.join(map(str, folders)) or 'nothing'}"
        )
    return folders


def _judged(
    precision: str,
    engines: list[Engine],
    classifier: JointClassifier,
    expected: Reference,
    calibration: Sample | None,
    config: ExportConfig,
    scratch: Path,
) -> list[tuple[Path, Candidate]]:
    """Every graph of the precision on every engine, with the gate's findings, and speeds where there is a choice."""
    found = []
    scheduling = scheduling_of(config)
    unloadable = []
    for method, onnx_file in _graphs(precision, classifier, expected, calibration, config, scratch):
        for engine in engines:
            if method == "dynamic" and engine.title != "onnxruntime":
                continue  # MatMulInteger; the others read Q/DQ
            engine = dataclasses.replace(
                engine,
                threads=config.threads,
                instances=scheduling.instances,
                max_batch_size=scheduling.max_batch_size,
            )
            try:
                run = engine.load(onnx_file, classifier.output_names)
            except RepositoryError as error:  # another form of the graph may do
                logger.warning("%s %s: %s", precision, method, error)
                unloadable.append(error)
                continue
            logger.info("judging %s %s on %s", precision, method, engine.title)
            judgement = judge(run, expected, precision, engine.title, largest_batch=scheduling.max_batch_size)
            found.append((onnx_file, Candidate(method=method, engine=engine, judgement=judgement)))
    if not found:
        raise unloadable[0]
    rivals = [place for place, (_, candidate) in enumerate(found) if candidate.passes]
    if len(rivals) < 2:
        return found
    size = MEASURED_BATCH_ON_GPU if config.engine in GPU_ENGINES else MEASURED_BATCH
    batch = np.resize(expected.images, (min(size, scheduling.max_batch_size), *expected.images.shape[1:]))
    instances = [
        [found[place][1].engine.load(found[place][0], classifier.output_names) for _ in range(scheduling.instances)]
        for place in track(rivals, "measuring", console=Console(stderr=True), transient=True)
    ]
    for place, rate in zip(rivals, images_per_s(instances, batch), strict=True):
        found[place] = (found[place][0], dataclasses.replace(found[place][1], images_per_s=rate))
    return found


def _graphs(
    precision: str,
    classifier: JointClassifier,
    expected: Reference,
    calibration: Sample | None,
    config: ExportConfig,
    scratch: Path,
) -> Iterator[tuple[str, Path]]:
    """The graphs that a precision may be, by the method that made them."""
    side, dtype = expected.images.shape[1], DTYPES[precision]
    if config.engine in GPU_ENGINES and precision != "int8":
        fused = scratch / f"{precision}-fused.onnx"
        logger.info("exporting the graph in %s, attention fused", dtype)
        export_graph(served_form(classifier, dtype, for_gpu=True), side, fused, opset=OPSET_FOR_GPU)
        yield "fused", fused
    plain = scratch / f"{dtype}.onnx".removeprefix("torch.")
    if not plain.exists():
        logger.info("exporting the graph in %s", dtype)
        export_graph(served_form(classifier, dtype), side, plain)
    if precision != "int8":
        yield "", plain
        return
    assert calibration is not None
    on_gpu = config.engine in GPU_ENGINES
    for method in GPU_METHODS if on_gpu else METHODS:
        target = scratch / f"int8-{method}.onnx"
        logger.info("quantizing, %s, on %d images", method, len(calibration.images))
        quantize(plain, target, calibration.images, method=method, symmetric=on_gpu)
        yield method, target


def _publish(
    onnx_file: Path,
    best: Candidate,
    measured: list[Candidate],
    expected: Reference,
    source: TrainedModel,
    classifier: JointClassifier,
    config: ExportConfig,
) -> Path:
    judgement = best.judgement
    name = config.name or source.architecture
    if judgement.precision != "fp32":
        name += f"_{judgement.precision}"
    provenance = Provenance(
        architecture=source.architecture,
        checkpoint_sha256=source.weights_sha256,
        precision=judgement.precision,
        readout=classifier.readout,
        teacher=source.teacher,
        parity_images=judgement.images,
        parity_max_difference=judgement.max_difference,
        metrics=source.metrics,
        versions=_versions(best.engine),
    )
    answers = _reference_answers(best.engine.load(onnx_file, classifier.output_names), expected, classifier)
    file = PLAN_FILE if best.engine.backend == "tensorrt" else ONNX_FILE

    def fill(folder: Path) -> None:
        if best.engine.backend == "tensorrt":
            built = onnx_file.with_suffix("")
            shutil.copyfile(built / FINGERPRINT_FILE, folder / FINGERPRINT_FILE)
            shutil.copyfile(built / PLAN_FILE, folder / PLAN_FILE)
        # with a plan too: another TensorRT or GPU builds its own from it
        shutil.copyfile(onnx_file, folder / ONNX_FILE)
        np.savez_compressed(folder / REFERENCE_FILE, **answers)
        (folder / PROVENANCE_FILE).write_text(json.dumps(asdict(provenance), indent=2) + "\n")
        (folder / REPORT_FILE).write_text(json.dumps(findings.as_json(measured, best), indent=2) + "\n")
        (folder / REPORT_TABLE).write_text(findings.as_text(measured, best))

    version = publish(
        config.repository,
        name,
        config=model_config(
            backend=best.engine.backend,
            on_gpu=best.engine.on_gpu,
            file=file,
            backend_parameters=best.engine.parameters,
            outputs=classifier.output_names,
            num_classes=len(source.label_names),
            preprocessing=source.preprocessing,
            provenance=provenance,
            verification=findings.summary(best),
            scheduling=scheduling_of(config),
        ),
        label_names=source.label_names,
        fill=fill,
    )
    folder = config.repository / name / str(version)
    logger.info("published %s (%.1f MB)", folder, (folder / file).stat().st_size / 1e6)
    return folder


def _reference_answers(run: Infer, expected: Reference, classifier: JointClassifier) -> dict[str, npt.NDArray[Any]]:
    """Images and what PyTorch answers to them, by the names in REFERENCE_FILE. The published variant answers them as
    PyTorch does, so an engine that does not differs from the one that was judged.
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
