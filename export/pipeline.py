"""One export, step by step: load, build the graphs, verify them, publish those that pass."""

import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from deit.errors import RepositoryError
from deit.repository.publishing import refuse_taken_name
from deit.tensorrt_plan import profiles_for
from export import findings
from export.config import GPU_ENGINES, ExportConfig
from export.config_pbtxt import scheduling_of
from export.engines import Engine, candidates
from export.explained import ExplainedClassifier
from export.explaining import publish_explaining
from export.findings import Candidate
from export.fitting import fit_confidence, fitted_reference
from export.gate import Reference, judge, reference
from export.graph import OPSET_FOR_GPU, export_graph
from export.joint import JointClassifier
from export.publication import (
    Passed,
    drop_plans,
    explaining_name,
    keep_plans,
    model_name,
    publish_version,
    reference_answers,
)
from export.quantization import GPU_METHODS, METHODS, quantize
from export.samples import Sample, load_samples
from export.served import served_form
from export.source import load_source
from export.speed import images_per_s
from export.tensorrt_rtx import build_plan_for, plan_file
from training.columns import Columns

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
# Precisions whose graph is tried with attention as one operator. TensorRT has no kernel for that in float32, so it
# builds no plan of such a graph.
FUSED = {"cuda": ("fp32", "fp16", "bf16"), "tensorrt": ("fp16", "bf16"), "tensorrt-rtx": ("fp16", "bf16")}
MEASURED_BATCH, MEASURED_BATCH_ON_GPU = 8, 64


def export_models(config: ExportConfig) -> list[Path]:
    """Publish the precisions that `config` names and that pass the gate, and return the folders of their versions.

    Raises:
        DeitError: the model cannot be loaded, exported or published, or a precision does not pass. Those that
        passed are published; the message names the others with the reason.
    """
    engines = {precision: candidates(precision, config.engine, config.capabilities) for precision in config.precisions}
    source = load_source(config)
    names = [model_name(precision, source, config) for precision in config.precisions]
    if config.explain:
        names.append(explaining_name(source, config))
    if config.engine != "tensorrt-rtx":  # whose plans lie outside the repository
        for name in names:
            refuse_taken_name(
                config.repository / name,
                image_size=source.preprocessing.image_size,
                label_names=source.label_names,
            )
    classifier = JointClassifier(source.model, source.preprocessing, config.readout).eval()
    if config.explain:
        ExplainedClassifier(classifier)  # refuses here what it could not explain after minutes
    sample, calibration, held_out = load_samples(
        config.images,
        source.preprocessing,
        config.parity_images,
        label_names=source.label_names,
        calibrates="int8" in config.precisions,
        columns=Columns(config.image_column, config.label_column),
    )
    if sample.labels is None:
        logger.warning("%s has no labels, so the gate does not check top-1", config.images)
    expected = reference(classifier, sample.images, sample.labels)
    confidence = fit_confidence(classifier, expected, held_out, source.preprocessing, config)
    if confidence is not None:
        expected = fitted_reference(classifier, expected)

    outcome = "built" if config.engine == "tensorrt-rtx" else "published"
    folders: list[Path] = []
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for precision in config.precisions:
            try:
                found = _judged(precision, engines[precision], classifier, expected, calibration, config, Path(scratch))
            except RepositoryError as error:
                refused.append(f"because it does not run here: {precision}: {error}")
                continue
            measured = [candidate for _, candidate in found]
            best = findings.best(found)
            Console(stderr=True, width=140).print(findings.table(measured, [best[1]] if best else [], outcome))
            if best is None:
                reasons = dict.fromkeys(
                    f"{each.title} on {each.engine.title}: {failure}"
                    for each in measured
                    for failure in each.judgement.failures
                )
                refused.append(f"because its answers differ from PyTorch's: {'; '.join(reasons)}")
                if config.engine == "tensorrt-rtx":
                    drop_plans(precision, source, config)
                continue
            onnx_file, candidate = best
            passed = Passed(
                onnx_file=onnx_file,
                best=candidate,
                measured=measured,
                answers=reference_answers(
                    candidate.engine.load(onnx_file, classifier.output_names), expected, classifier
                ),
                source=source,
                classifier=classifier,
                config=config,
                confidence=confidence,
            )
            folders += keep_plans(passed) if config.engine == "tensorrt-rtx" else [publish_version(passed)]
        if config.explain and folders:  # an explaining model of other weights would be useless
            try:
                folders.append(publish_explaining(classifier, expected, source, config, confidence, Path(scratch)))
            except RepositoryError as error:
                refused.append(f"because it cannot be explained: {error}")
    if refused:
        raise RepositoryError(
            f"not {outcome}, {'; '.join(refused)}. {outcome.capitalize()}: {', '.join(map(str, folders)) or 'nothing'}"
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
                for capability in config.capabilities:
                    build_plan_for(
                        capability,
                        onnx_file,
                        plan_file(onnx_file, capability),
                        precision=precision,
                        profiles=profiles_for(scheduling.max_batch_size),
                    )
                run = engine.load(onnx_file, classifier.output_names)
            except RepositoryError as error:  # another form of the graph may work
                logger.warning("%s %s: %s", precision, method, error)
                unloadable.append(error)
                continue
            logger.info("verifying %s %s on %s", precision, method, engine.title)
            judgement = judge(
                run,
                expected,
                precision,
                engine.title,
                largest_batch=scheduling.max_batch_size,
                on_gpu=engine.on_gpu,
            )
            found.append((onnx_file, Candidate(method=method, engine=engine, judgement=judgement)))
        if found and found[-1][1].passes and config.engine == "tensorrt-rtx" and not engines[0].on_gpu:
            return found  # a CPU's speed does not predict a GPU's: take the first that passes, the best known
    if not found:
        raise unloadable[0]
    rivals = [place for place, (_, candidate) in enumerate(found) if candidate.passes]
    if len(rivals) < 2:
        return found
    size = MEASURED_BATCH_ON_GPU if config.engine in GPU_ENGINES else MEASURED_BATCH
    batch = np.resize(expected.images, (min(size, scheduling.max_batch_size), *expected.images.shape[1:]))
    busy, alone = [], []
    for place in track(rivals, "measuring", console=Console(stderr=True), transient=True):
        onnx_file, candidate = found[place]
        busy.append([candidate.engine.load(onnx_file, classifier.output_names) for _ in range(scheduling.instances)])
        lone = candidate.engine.alone
        # most engines run alone as they do under load
        is_loaded = lone == candidate.engine
        alone.append(busy[-1][:1] if is_loaded else [lone.load(onnx_file, classifier.output_names)])
    rates = zip(images_per_s(busy, batch), images_per_s(alone, expected.images[:1]), strict=True)
    for place, (rate, lone_rate) in zip(rivals, rates, strict=True):
        candidate = dataclasses.replace(found[place][1], images_per_s=rate, images_per_s_alone=lone_rate)
        found[place] = (found[place][0], candidate)
    return found


def _graphs(
    precision: str,
    classifier: JointClassifier,
    expected: Reference,
    calibration: Sample | None,
    config: ExportConfig,
    scratch: Path,
) -> Iterator[tuple[str, Path]]:
    """The graphs that may be exported for a precision, by method, best known first."""
    side, dtype = expected.images.shape[1], DTYPES[precision]
    if precision in FUSED.get(config.engine, ()):
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
