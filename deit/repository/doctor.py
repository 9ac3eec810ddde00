"""Finds faults in a model repository, as sentences that end with the remedy."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2

from deit.errors import RepositoryError
from deit.installation import how_to_install
from deit.model import PROBABILITIES, VERSION_PARAMETER
from deit.repository.config import parameter
from deit.repository.layout import CONFIG_FILE, MODEL_NAME, models_command
from deit.repository.lock import staging_folder
from deit.repository.models import (
    BACKENDS,
    ModelVersion,
    candidate_of,
    find_model,
    listed,
    model_folders,
    nothing_served,
    published_version,
    read_served,
    read_version,
    version_numbers,
)
from deit.tensorrt_plan import FINGERPRINT_FILE, PLAN_FILE, release_of

PYTHON_BACKENDS = {"onnxruntime": "serving", "openvino": "openvino"}
"""Backends of the embedded Triton that import the Python package of their name, with the extra that brings it."""

# In a TensorProto the entry `location` of external_data, field 13:
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
EXTERNAL_WEIGHTS = re.compile(rb"\x6a.{1,2}\x0a\x08location\x12", re.DOTALL)


def examine(repository: Path, *, tensorrt: str | None = None) -> list[str]:
    """Everything wrong with the repository; empty when Triton can serve it.

    Args:
        tensorrt: version of the TensorRT that will load plans, such as "11.1.0"; plans are not compared when None.
    """
    names = model_folders(repository)
    findings = [] if names else [f"{repository} does not contain a model: write one with `deit export`"]
    if staging_folder(repository).exists():
        findings.append(
            f"{staging_folder(repository)} was left by a writer that was killed, unless one is at work now: the next "
            "writer removes it"
        )
    for name in names:
        if not MODEL_NAME.fullmatch(name):
            findings.append(f"{repository / name} is not a model's name: use letters, digits, '.', '_' and '-'")
        findings += examine_model(repository / name, tensorrt=tensorrt)
    return findings


def examine_model(model: Path, *, tensorrt: str | None = None) -> list[str]:
    """Everything wrong with a model's configuration and its served version."""
    try:
        config, served = read_served(model)
    except RepositoryError as error:
        return [f"{error}; {_way_back(model) or 'export the model again, or remove the folder'}"]
    findings = []
    if config.name and config.name != model.absolute().name:
        findings.append(
            f"{model / CONFIG_FILE} names the model {config.name!r}, but Triton requires the folder's name; "
            "export it again, or write the folder's name there"
        )
    if not served:
        return [*findings, f"{nothing_served(model, config)}; {_way_back(model) or 'export the model again'}"]
    try:
        version = read_version(model)
    except RepositoryError as error:
        return [*findings, str(error)]
    findings += examine_version(version, tensorrt=tensorrt)
    if findings and (way_back := _way_back(model)):
        findings[-1] += f". Until then, {way_back}"
    return [
        *findings,
        *_candidate(model, config),
        *_edited_preprocessing(version),
        *_not_described(model, config, served),
        *_missing_package(version),
    ]


def examine_version(version: ModelVersion, *, tensorrt: str | None = None) -> list[str]:
    """Everything wrong with one version: its configuration, class names, and graph or plan."""
    findings = []
    if version.engine not in BACKENDS:
        findings.append(
            f"{version.config_file} asks for the backend {version.engine!r}; known are {', '.join(BACKENDS)}: "
            "export it again"
        )
    findings += _labels(version)
    try:
        _ = version.preprocessing
    except RepositoryError as error:
        findings.append(str(error))
    return [*findings, *_file(version.file, tensorrt)]


def _labels(version: ModelVersion) -> Iterator[str]:
    output = {output.name: output for output in version.config.output}.get(PROBABILITIES)
    if output is None:
        yield f"{version.config_file} has no output {PROBABILITIES!r}, which the gateway needs: export it again"
        return
    if not output.label_filename:
        yield (
            f"{version.config_file} gives {PROBABILITIES} no label_filename, so answers have no names: export it again"
        )
    try:
        count = len(version.labels)
    except RepositoryError as error:
        yield str(error)
        return
    if list(output.dims) != [count]:
        yield (
            f"{version.model} names {count} classes, but the model has {list(output.dims)}: write one "
            "name a line, in the order of the classes"
        )


def _file(file: Path, tensorrt: str | None) -> Iterator[str]:
    if not file.is_file():
        yield f"{file} is missing: publish the version again"
    elif file.suffix == ".onnx":
        content = file.read_bytes()
        try:
            empty_pb2.Empty.FromString(content)  # any protobuf, with fields that Empty does not know
        except DecodeError:
            yield f"{file} is cut off, or not an ONNX file: publish the version again"
        else:
            if not content:
                yield f"{file} is empty: publish the version again"
            elif EXTERNAL_WEIGHTS.search(content):
                yield f"{file} keeps weights in other files, and a version must be one file: export it again"
    elif file.name == PLAN_FILE:
        yield from _plan(file, tensorrt)


def _plan(file: Path, tensorrt: str | None) -> Iterator[str]:
    try:
        built_with = str(json.loads((file.parent / FINGERPRINT_FILE).read_text())["machine"]["tensorrt"])
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{file} has no {FINGERPRINT_FILE}, so the TensorRT that it was built with is not known: build it again"
        return
    if tensorrt is not None and built_with != release_of(tensorrt):
        yield (
            f"{file} was built with TensorRT {built_with}, and TensorRT {tensorrt} will load it: a plan runs only on "
            "the version that built it; build it again with `deit export --engine tensorrt`"
        )


def _edited_preprocessing(version: ModelVersion) -> Iterator[str]:
    """Found when config.pbtxt was edited to name another version, without what that version needs."""
    try:
        published = published_version(version.model, version.number)
        same = published.preprocessing == version.preprocessing
    except RepositoryError:  # nothing to compare with, or already reported
        return
    if not same:
        yield (
            f"{version.config_file} preprocesses images for version {version.number} differently from "
            f"{published.config_file}, with which it was published: {rollback_command(published)} restores that"
        )


def _candidate(model: Path, config: model_config_pb2.ModelConfig) -> Iterator[str]:
    if (candidate := candidate_of(model, config)) is None:
        return
    try:
        number = None if candidate.version is None else int(candidate.version)
        findings = examine_version(read_version(find_model(model.parent, candidate.model), number))
    except RepositoryError as error:
        findings = [str(error)]
    if findings:
        end = models_command(candidate.mode, model.name, "--percent", 0, repository=model.parent)
        yield f"{model / CONFIG_FILE} tries {candidate.model}, but {findings[0]}; until that is fixed, {end} ends it"


def _not_described(model: Path, config: model_config_pb2.ModelConfig, served: tuple[int, ...]) -> Iterator[str]:
    """Triton gives the gateway one configuration for all versions, valid only for the one it was published with."""
    published = parameter(config, VERSION_PARAMETER)
    if others := [number for number in served if published not in ("", str(number))]:
        way = models_command("rollback", model.name, "--version", served[-1], repository=model.parent)
        yield (
            f"{model / CONFIG_FILE} was published with version {published}, so the gateway does not serve version "
            f"{listed(others)}: {way} serves version {served[-1]} as it was published"
        )


def _missing_package(version: ModelVersion) -> Iterator[str]:
    if find_spec("pytriton") and version.engine in PYTHON_BACKENDS and not find_spec(version.engine):
        yield (
            f"version {version.number} of {version.name} runs on {version.engine}, which the Triton that `deit serve` "
            f"starts here lacks: {how_to_install(PYTHON_BACKENDS[version.engine])}, or export with another --engine"
        )


def newest_sound(model: Path, *, but: int | None = None) -> ModelVersion | None:
    """The newest sound version other than `but`; None if there is none."""
    for number in reversed(version_numbers(model)):
        with suppress(RepositoryError):
            version = published_version(model, number)
            if number != but and not examine_version(version):
                return version
    return None


def rollback_command(version: ModelVersion) -> str:
    """The command that makes Triton serve this version, for messages."""
    return models_command("rollback", version.name, "--version", version.number, repository=version.model.parent)


def _way_back(model: Path) -> str | None:
    version = newest_sound(model)
    return f"{rollback_command(version)} serves version {version.number}, which is sound" if version else None
