"""What config.pbtxt says of a model beyond tensors: its `parameters`, which the exporter writes."""

import json
from typing import Any

from tritonclient.grpc import model_config_pb2

from deit.model import PROVENANCE_PARAMETER, VERIFICATION_PARAMETER, Provenance


def provenance_of(config: model_config_pb2.ModelConfig) -> Provenance | None:
    """Where the model came from, or None when nothing, or nothing readable, is said."""
    try:
        return Provenance.from_json(config.parameters[PROVENANCE_PARAMETER].string_value)
    except ValueError:
        return None


def verification_of(config: model_config_pb2.ModelConfig) -> dict[str, Any] | None:
    """The summary of the gate's report, or None for a model that was published without one."""
    try:
        return dict(json.loads(config.parameters[VERIFICATION_PARAMETER].string_value))
    except (ValueError, TypeError):
        return None


def engine_of(config: model_config_pb2.ModelConfig) -> str:
    """The name of the backend, also when only the older field `platform` gives it."""
    return str(config.backend or config.platform or "none")
