"""Triton's model repository: `<model>/{config.pbtxt,labels.txt,<version>/model.onnx}`, each version published whole."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.durable import new_folder, write_file
from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, read_labels, write_labels
from deit.model import (
    CONFIG_FILE,
    IMAGES,
    ONNX_FILE,
    PREPROCESSING_PARAMETER,
    PROBABILITIES,
    PROVENANCE_PARAMETER,
    Provenance,
)
from deit.preprocessing import Preprocessing

PROVENANCE_FILE = "provenance.json"
"""In the version's folder, which Triton does not read: what config.pbtxt says of the newest version only."""


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """How Triton runs a model; `deit export --help` says when to change what."""

    max_batch_size: int
    instances: int
    threads: int
    queue_delay_us: int
    queue_size: int
    queue_timeout_ms: int


def config_text(
    name: str,
    *,
    outputs: tuple[str, ...],
    num_classes: int,
    preprocessing: Preprocessing,
    provenance: Provenance,
    scheduling: Scheduling,
) -> str:
    """A complete config.pbtxt: nothing is left to Triton's auto-completion, which differs between backends and
    releases.

    https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
    """
    size = preprocessing.image_size
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=scheduling.max_batch_size)
    config.input.add(name=IMAGES, data_type=model_config_pb2.TYPE_UINT8, dims=[size, size, 3])
    for output in outputs:
        labels = LABELS_FILE if output == PROBABILITIES else ""
        config.output.add(name=output, data_type=model_config_pb2.TYPE_FP32, dims=[num_classes], label_filename=labels)

    config.dynamic_batching.max_queue_delay_microseconds = scheduling.queue_delay_us
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    # A request's own timeout counts only when it is allowed and below this default.
    policy.default_timeout_microseconds = scheduling.queue_timeout_ms * 1000
    policy.allow_timeout_override = True
    policy.max_queue_size = scheduling.queue_size

    # KIND_AUTO: a GPU where Triton sees one, else the CPU. With one instance and a queue policy the batcher of Triton
    # 2.51 misses the request that comes between the end of an execution and the release of its instance, and sleeps on
    # for 500 ms; 2.72 names the fix of such a starvation in its notes.
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO, count=scheduling.instances)
    config.version_policy.latest.num_versions = 1
    for batch_size in sorted({1, scheduling.max_batch_size}):
        warmup = config.model_warmup.add(name=f"batch {batch_size}", batch_size=batch_size)
        warmup.inputs[IMAGES].data_type = model_config_pb2.TYPE_UINT8
        warmup.inputs[IMAGES].dims.extend([size, size, 3])
        warmup.inputs[IMAGES].zero_data = True

    config.parameters["intra_op_thread_count"].string_value = str(scheduling.threads)
    config.parameters[PREPROCESSING_PARAMETER].string_value = preprocessing.to_json()
    config.parameters[PROVENANCE_PARAMETER].string_value = provenance.to_json()
    text: str = text_format.MessageToString(config)
    return text


def publish(
    repository: Path, name: str, *, onnx_file: Path, config: str, label_names: tuple[str, ...], provenance: Provenance
) -> int:
    """Put a proven graph into the repository as the model's next version, and return its number.

    A version appears whole, by one rename. config.pbtxt follows it, because Triton serves a version as the
    configuration says that it reads when it loads.

    Raises:
        RepositoryError: a model of this name has other tensors or class names; the repository is unchanged.
    """
    model = repository / name
    if model.exists():
        _refuse_other_interface(model, config, label_names)
        version = 1 + max((int(entry.name) for entry in model.iterdir() if entry.name.isdigit()), default=0)
        with new_folder(model / str(version)) as folder:
            _fill_version(folder, onnx_file, provenance)
        write_file(model / CONFIG_FILE, config)
        return version
    # Beside the repository, not inside it: Triton takes every folder there for a model.
    with new_folder(model, staging=repository.parent) as folder:
        write_file(folder / CONFIG_FILE, config)
        write_labels(folder / LABELS_FILE, label_names)
        (folder / "1").mkdir()
        _fill_version(folder / "1", onnx_file, provenance)
    return 1


def _fill_version(folder: Path, onnx_file: Path, provenance: Provenance) -> None:
    shutil.copyfile(onnx_file, folder / ONNX_FILE)
    (folder / PROVENANCE_FILE).write_text(json.dumps(json.loads(provenance.to_json()), indent=2) + "\n")


def _refuse_other_interface(model: Path, config: str, label_names: tuple[str, ...]) -> None:
    """A version's clients keep their inputs, outputs and class names."""
    try:
        present = text_format.Parse((model / CONFIG_FILE).read_text(), model_config_pb2.ModelConfig())
        present_labels = read_labels(model / LABELS_FILE)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise RepositoryError(
            f"{model} is no model that `deit export` wrote ({error}): choose another --name"
        ) from error
    new = text_format.Parse(config, model_config_pb2.ModelConfig())
    if list(present.input) != list(new.input) or list(present.output) != list(new.output):
        raise RepositoryError(f"{model} has other inputs or outputs than this export: choose another --name")
    if present_labels != label_names:
        raise RepositoryError(f"{model} has other class names than this export: choose another --name")
