"""Writes a model's shadow or canary into its config.pbtxt: another model, or another version of it.

Triton loads such a version with the configuration of the served one, and the gateway takes its preprocessing from the
description of the candidate. So the two may differ in preprocessing, but not in how Triton runs them.
"""

from pathlib import Path

from tritonclient.grpc import model_config_pb2

from deit.candidate import CANDIDATE_PARAMETER, CandidateModel, Mode
from deit.durable import write_file
from deit.errors import RepositoryError
from deit.model import PREPROCESSING_PARAMETER, PROVENANCE_PARAMETER, VERIFICATION_PARAMETER, VERSION_PARAMETER
from deit.repository.config import config_text, parameter, without_candidate
from deit.repository.doctor import examine_version
from deit.repository.layout import CONFIG_FILE, models_command
from deit.repository.lock import writing
from deit.repository.models import ModelVersion, find_model, listed, read_served, read_version
from deit.repository.publishing import explain_unwritable

# Triton does not read them.
OF_A_VERSION = (PREPROCESSING_PARAMETER, PROVENANCE_PARAMETER, VERIFICATION_PARAMETER, VERSION_PARAMETER)


def try_candidate(
    repository: Path, name: str, mode: Mode, percent: float, *, other: str | None = None, number: int | None = None
) -> CandidateModel:
    """Try a version, or another model, on a share of a model's requests from Triton's next load on; return which.

    Args:
        other: name of the model; None for this one.
        number: version; None for the served one of the other model.

    Raises:
        RepositoryError: the candidate is not sound, or cannot replace the model. Nothing was changed.
    """
    model = find_model(repository, name)
    with writing(repository), explain_unwritable(model):
        config, served = read_served(model)
        version = _tried(repository, name, other, number, served)
        if findings := examine_version(version):
            raise RepositoryError(f"version {version.number} of {version.name} is not sound: {findings[0]}")
        is_same = version.model == model
        if not is_same and version.number not in (others := read_served(version.model)[1]):
            raise RepositoryError(
                f"version {version.number} of {version.name} is not served (served: {listed(others)}), so Triton does "
                "not load it: leave --version out"
            )
        if missing := {each.name for each in config.output} - {each.name for each in version.config.output}:
            raise RepositoryError(
                f"{version.folder} lacks the output {min(missing)} of {name}, so it cannot replace it"
            )
        present = read_version(model)
        if version.labels != present.labels:
            raise RepositoryError(f"{version.folder} has other class names than {name}, so it cannot replace it")
        if is_same and _run(version.config) != _run(config):
            publish = models_command(
                "publish", model, "--version", version.number, "--name", "NAME", repository=repository
            )
            raise RepositoryError(
                f"version {version.number} of {name} runs with another {CONFIG_FILE} than the served one, and Triton "
                f"has one for both: {publish} makes it a separate model, to be named with --model"
            )
        candidate = CandidateModel(
            mode=mode,
            percent=percent,
            model=version.name,
            version=None if number is None else str(version.number),
            preprocessing=version.preprocessing.to_json() if is_same else None,
            provenance=parameter(version.config, PROVENANCE_PARAMETER) or None if is_same else None,
        )
        named = without_candidate(config)
        named.parameters[CANDIDATE_PARAMETER].string_value = candidate.to_json()
        write_file(model / CONFIG_FILE, config_text(named, [*served, *([version.number] if is_same else [])]))
        return candidate


def end_candidate(repository: Path, name: str) -> None:
    """Give all requests to the model itself from Triton's next load on. Raises RepositoryError."""
    model = find_model(repository, name)
    with writing(repository), explain_unwritable(model):
        config, served = read_served(model)
        write_file(model / CONFIG_FILE, config_text(without_candidate(config), served))


def _tried(repository: Path, name: str, other: str | None, number: int | None, served: tuple[int, ...]) -> ModelVersion:
    if other in (None, name):
        if number is None:
            raise RepositoryError(f"name a candidate: another version of {name} with --version, or a --model")
        if number in served:
            rollback = models_command("rollback", name, repository=repository)
            raise RepositoryError(
                f"version {number} of {name} is served (served: {listed(served)}), and a candidate must be another "
                f"version: {rollback} serves the previous one"
            )
        return read_version(repository / name, number)
    return read_version(find_model(repository, other), number)


def _run(config: model_config_pb2.ModelConfig) -> model_config_pb2.ModelConfig:
    """The part of the configuration that says how Triton runs a version."""
    plain = without_candidate(config)
    plain.ClearField("version_policy")
    for key in OF_A_VERSION:
        plain.parameters.pop(key, None)
    return plain
