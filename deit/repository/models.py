"""The models of a repository, and their versions with the configurations that they run with."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from deit.candidate import CANDIDATE_PARAMETER, CandidateModel
from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, read_labels
from deit.model import (
    PREPROCESSING_PARAMETER,
    PROBABILITIES,
    PROVENANCE_PARAMETER,
    VERIFICATION_PARAMETER,
    VERSION_PARAMETER,
    Provenance,
)
from deit.preprocessing import Preprocessing
from deit.repository.config import chosen_versions, engine_of, parameter, read_config
from deit.repository.layout import CONFIG_FILE, MODEL_NAME, ONNX_FILE, VERSION_NUMBER, models_command
from deit.tensorrt_plan import PLAN_FILE

BACKENDS = {"onnxruntime": ONNX_FILE, "openvino": "model.xml", "tensorrt": PLAN_FILE}
"""The backends that serve our models, each with the file that it loads unless config.pbtxt names another."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A version of a model, with the configuration that it runs with.

    Attributes:
        config_file: the model's config.pbtxt for a version that is served, its own for any other.
    """

    model: Path
    number: int
    config_file: Path
    config: model_config_pb2.ModelConfig = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def folder(self) -> Path:
        return self.model / str(self.number)

    @property
    def engine(self) -> str:
        """Triton's name of the backend."""
        return engine_of(self.config)

    @property
    def file(self) -> Path:
        """The graph or plan that the backend loads, whether or not it is there."""
        return self.folder / (self.config.default_model_filename or BACKENDS.get(self.engine, ONNX_FILE))

    @property
    def digest(self) -> str:
        """SHA-256 of the graph or plan, in hexadecimal."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order. Raises RepositoryError when they cannot be read."""
        named = {output.name: output.label_filename for output in self.config.output}.get(PROBABILITIES)
        file = self.model / (named or LABELS_FILE)
        try:
            return read_labels(file)
        except (OSError, ValueError) as error:
            raise RepositoryError(
                f"{file} does not name the classes ({error}): write one name a line, in the order of the classes"
            ) from error

    @property
    def preprocessing(self) -> Preprocessing:
        """What the model expects of an image. Raises RepositoryError when the configuration does not say."""
        try:
            return Preprocessing.from_json(parameter(self.config, PREPROCESSING_PARAMETER))
        except ValueError as error:
            raise RepositoryError(
                f"{self.config_file} does not say how to preprocess an image ({error}): export the model again"
            ) from error

    @property
    def provenance(self) -> Provenance | None:
        """Where the version came from, or None if that is missing or cannot be read."""
        try:
            return Provenance.from_json(parameter(self.config, PROVENANCE_PARAMETER))
        except ValueError:
            return None

    @property
    def precision(self) -> str:
        """The precision of the graph's arithmetic, such as "fp32"; "unknown" without a provenance."""
        return self.provenance.precision if self.provenance else "unknown"

    @property
    def verification(self) -> dict[str, Any]:
        """The summary of the gate's report; empty for a version that was published without one."""
        try:
            return dict(json.loads(parameter(self.config, VERIFICATION_PARAMETER)))
        except (ValueError, TypeError):
            return {}


def read_version(model: Path, number: int | None = None) -> ModelVersion:
    """A version of the model in the folder `model`: the one that is served by default, the newest if several are.

    A served version runs with the model's config.pbtxt, unless that was published with another version; every other
    version runs with the one in its own folder. If it has none there it is refused, so that no graph gets the
    preprocessing of another version.

    Raises:
        RepositoryError: the model serves no version, has no such version, or has no configuration for that version.
    """
    config, served = read_served(model)
    if number is None:
        if not served:
            doctor = models_command("doctor", repository=model.parent)
            raise RepositoryError(f"{nothing_served(model, config)}; {doctor} names the remedy")
        number = served[-1]
    if number not in served or parameter(config, VERSION_PARAMETER) not in ("", str(number)):
        return published_version(model, number)
    return ModelVersion(model=model, number=number, config_file=model / CONFIG_FILE, config=config)


def published_version(model: Path, number: int) -> ModelVersion:
    """A version with its own config.pbtxt, which holds what it was published with.

    Raises:
        RepositoryError: the version does not exist, or has no configuration, as in a repository made by hand.
    """
    file = model / str(number) / CONFIG_FILE
    if number not in version_numbers(model):
        raise RepositoryError(f"{model} has no version {number}; it has: {listed(version_numbers(model))}")
    if not file.is_file():
        raise RepositoryError(
            f"version {number} of {model} has no {CONFIG_FILE} of its own, so its engine and preprocessing are "
            f"unknown: write the configuration that it was made with to {file}"
        )
    return ModelVersion(model=model, number=number, config_file=file, config=read_config(file))


def read_served(model: Path) -> tuple[model_config_pb2.ModelConfig, tuple[int, ...]]:
    """The model's config.pbtxt and the versions that are served by it, oldest first; perhaps none.

    Triton also loads a version that is only a candidate.

    Raises:
        RepositoryError: the configuration is missing or cannot be read.
    """
    config, loaded = read_loaded(model)
    candidate = candidate_of(model, config)
    tried = candidate.version if candidate is not None and candidate.model == model.absolute().name else None
    return config, tuple(number for number in loaded if str(number) != tried)


def read_loaded(model: Path) -> tuple[model_config_pb2.ModelConfig, tuple[int, ...]]:
    """The model's config.pbtxt and the versions that Triton loads by it. Raises as `read_served` does."""
    config = read_config(model / CONFIG_FILE)
    return config, chosen_versions(config, version_numbers(model))


def candidate_of(model: Path, config: model_config_pb2.ModelConfig) -> CandidateModel | None:
    """The model's shadow or canary, if any. Raises RepositoryError when it cannot be read."""
    if not (text := parameter(config, CANDIDATE_PARAMETER)):
        return None
    try:
        return CandidateModel.from_json(text)
    except ValueError as error:
        raise RepositoryError(f"{model / CONFIG_FILE} names a candidate that cannot be read: {error}") from error


def nothing_served(model: Path, config: model_config_pb2.ModelConfig) -> str:
    """The message for a model without a served version."""
    asked = listed(config.version_policy.specific.versions) if config.version_policy.HasField("specific") else "latest"
    return f"{model} serves no version: {CONFIG_FILE} asks for {asked}, there are: {listed(version_numbers(model))}"


def version_numbers(model: Path) -> list[int]:
    """The versions in a model's folder, oldest first."""
    return sorted(int(each.name) for each in model.iterdir() if VERSION_NUMBER.fullmatch(each.name) and each.is_dir())


def listed(numbers: Any) -> str:
    """Version numbers for a message."""
    return ", ".join(map(str, numbers)) or "none"


def find_model(repository: Path, name: str) -> Path:
    """The folder of a model. Raises RepositoryError that names the models there are."""
    folder = repository / name
    if not (folder / CONFIG_FILE).is_file():
        names = ", ".join(model_folders(repository)) or "none"
        raise RepositoryError(f"{repository} has no model {name!r}; it has: {names}")
    return folder


def model_folders(repository: Path) -> list[str]:
    """Sorted names of the folders that Triton takes for models. Raises RepositoryError without a repository."""
    if not repository.is_dir():
        raise RepositoryError(
            f"the model repository {repository} does not exist; write one with `deit export`, or name another folder"
        )
    return sorted(entry.name for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def model_names(repository: Path) -> list[str]:
    """Sorted names of the models, checked for what Triton would report late or not at all.

    Raises:
        RepositoryError: the repository does not contain a model, or a folder in it is not one. Triton puts a model's
            name on a command line (CVE-2025-23316), so only a MODEL_NAME may reach it.
    """
    names = model_folders(repository)
    if not names:
        raise RepositoryError(
            f"the model repository {repository} does not contain a model; write one with `deit export`"
        )
    for name in names:
        if not MODEL_NAME.fullmatch(name):
            raise RepositoryError(
                f"{repository / name} is not a model's name: use letters, digits, '.', '_' and '-'; rename the folder"
            )
        if not (repository / name / CONFIG_FILE).is_file():
            raise RepositoryError(
                f"the model {name} in {repository} has no {CONFIG_FILE}; "
                "export it again with `deit export`, or remove the folder"
            )
    return names
