"""config.pbtxt: how Triton runs a model, and which versions of it.

Schema: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.candidate import CANDIDATE_PARAMETER
from deit.errors import RepositoryError


def read_config(file: Path) -> model_config_pb2.ModelConfig:
    """Raises RepositoryError when the file is missing or is not a configuration."""
    try:
        return text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise RepositoryError(f"{file} is not a configuration that Triton reads: {error}") from error


def chosen_versions(config: model_config_pb2.ModelConfig, present: Sequence[int]) -> tuple[int, ...]:
    """The versions among `present`, oldest first, that Triton serves: by default the latest one."""
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return tuple(present)
        case "specific":
            return tuple(version for version in present if version in policy.specific.versions)
        case _:
            return tuple(present[-max(1, policy.latest.num_versions) :])


def config_text(config: model_config_pb2.ModelConfig, versions: Sequence[int]) -> str:
    """The text of config.pbtxt that makes Triton serve these versions."""
    changed = model_config_pb2.ModelConfig()
    changed.CopyFrom(config)
    changed.version_policy.specific.versions[:] = versions
    text: str = text_format.MessageToString(changed)
    return text


def parameter(config: model_config_pb2.ModelConfig, key: str) -> str:
    """The value under `key` of `parameters`, or "". Looking it up by [] would add the key to the configuration."""
    return str(config.parameters[key].string_value) if key in config.parameters else ""


def without_candidate(config: model_config_pb2.ModelConfig) -> model_config_pb2.ModelConfig:
    """The configuration of the version itself, without its candidate."""
    plain = model_config_pb2.ModelConfig()
    plain.CopyFrom(config)
    plain.parameters.pop(CANDIDATE_PARAMETER, None)
    return plain


def engine_of(config: model_config_pb2.ModelConfig) -> str:
    """The name of the backend, or of the platform in configurations of older releases."""
    return str(config.backend or config.platform or "none")
