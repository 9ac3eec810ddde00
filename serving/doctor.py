"""What is wrong with a model repository, in sentences that end with the remedy."""

import json
from collections.abc import Iterator
from pathlib import Path

from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, read_labels
from deit.model import (
    CONFIG_FILE,
    FINGERPRINT_FILE,
    MODEL_NAME,
    ONNX_FILE,
    PLAN_FILE,
    PREPROCESSING_PARAMETER,
    PROBABILITIES,
)
from deit.onnx_file import external_files
from deit.preprocessing import Preprocessing
from deit.repository import model_folders, read_config, served_version, staging_folder, versions
from deit.tensorrt_plan import release_of
from serving.triton.config import engine_of

# backend -> the file that it loads by default
BACKENDS = {"onnxruntime": ONNX_FILE, "openvino": ONNX_FILE, "tensorrt": PLAN_FILE}


def examine(repository: Path, *, tensorrt: str | None = None) -> list[str]:
    """Everything wrong with the repository; empty when Triton can serve it.

    Args:
        tensorrt: version of the TensorRT that will load plans, such as "11.1.0"; plans are not compared when None.
    """
    names = model_folders(repository)
    findings = [] if names else [f"{repository} holds no model: write one with `deit export`"]
    if staging_folder(repository).exists():
        findings.append(
            f"{staging_folder(repository)} is left of a writer that was killed, or one is at work: the next one that "
            "writes removes it"
        )
    for name in names:
        if not MODEL_NAME.fullmatch(name):
            findings.append(f"{repository / name} is not a model's name: use letters, digits, '.', '_' and '-'")
        findings += examine_model(repository / name, tensorrt=tensorrt)
    return findings


def examine_model(model: Path, *, tensorrt: str | None = None) -> list[str]:
    """Everything wrong with one model's folder and its served version."""
    try:
        config = read_config(model / CONFIG_FILE)
        served = served_version(model)
    except (RepositoryError, OSError) as error:
        return [f"{error}; export the model again, or remove the folder"]
    findings = []
    if config.name and config.name != model.resolve().name:
        findings.append(
            f"{model / CONFIG_FILE} names the model {config.name!r}, and Triton wants the folder's name; "
            "export it again, or write the folder's name there"
        )
    engine = engine_of(config)
    if engine not in BACKENDS:
        findings.append(
            f"{model / CONFIG_FILE} asks for the backend {engine!r}; there are {', '.join(BACKENDS)}: export it again"
        )
    findings += _labels(model, config)
    findings += _preprocessing(model, config)
    if served is None:
        asked = ", ".join(map(str, config.version_policy.specific.versions)) or "latest"
        present = ", ".join(map(str, versions(model))) or "none"
        findings.append(
            f"{model} serves no version: {CONFIG_FILE} asks for {asked}, there are {present}; "
            f"go to one with `deit models rollback {model.name} --version N`"
        )
    else:
        file = model / str(served) / (config.default_model_filename or BACKENDS.get(engine, ONNX_FILE))
        findings += _model_file(file, tensorrt)
    return findings


def _labels(model: Path, config: object) -> Iterator[str]:
    classes = {output.name: output for output in config.output}.get(PROBABILITIES)  # type: ignore[attr-defined]
    if classes is None:
        yield f"{model / CONFIG_FILE} has no output {PROBABILITIES!r}, which the gateway asks for: export it again"
        return
    if not classes.label_filename:
        yield f"{model / CONFIG_FILE} gives {PROBABILITIES} no label_filename, so answers have no names"
    try:
        count = len(read_labels(model / (classes.label_filename or LABELS_FILE)))
    except (OSError, ValueError) as error:
        yield f"{model / LABELS_FILE} has no class names ({error}): write one name a line, in the order of the classes"
        return
    if list(classes.dims) != [count]:
        yield f"{model / LABELS_FILE} names {count} classes, the model decides among {list(classes.dims)}"


def _preprocessing(model: Path, config: object) -> Iterator[str]:
    parameters = config.parameters  # type: ignore[attr-defined]
    try:
        Preprocessing.from_json(parameters[PREPROCESSING_PARAMETER].string_value)
    except ValueError as error:
        yield f"{model / CONFIG_FILE} does not say how to prepare an image ({error}): export it again"


def _model_file(file: Path, tensorrt: str | None) -> Iterator[str]:
    if not file.is_file():
        yield f"{file} is missing: publish the version again, or go to another with `deit models rollback`"
        return
    if file.suffix == ".onnx":
        try:
            outside = external_files(file)
        except ValueError as error:
            yield f"{file} is no ONNX file: {error}; publish the version again"
            return
        if outside:
            yield (
                f"{file} keeps weights in other files ({', '.join(sorted(outside)[:3])}), and a version must be one "
                "file: export it again"
            )
    if file.name == PLAN_FILE:
        yield from _plan(file, tensorrt)


def _plan(file: Path, tensorrt: str | None) -> Iterator[str]:
    try:
        built_with = str(json.loads((file.parent / FINGERPRINT_FILE).read_text())["machine"]["tensorrt"])
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{file} has no {FINGERPRINT_FILE}, so the TensorRT that it was built with is not known: build it again"
        return
    if tensorrt is not None and built_with != release_of(tensorrt):
        yield (
            f"{file} was built with TensorRT {built_with}, and TensorRT {tensorrt} will load it: a plan runs on the "
            "version that built it alone; build it again with `deit export --engine tensorrt`"
        )
