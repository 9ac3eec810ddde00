"""config.pbtxt of an exported model: complete, because Triton's auto-completion differs between backends and releases.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.labels import LABELS_FILE
from deit.model import (
    IMAGES,
    PREPROCESSING_PARAMETER,
    PROBABILITIES,
    PROVENANCE_PARAMETER,
    VERIFICATION_PARAMETER,
    Provenance,
)
from deit.preprocessing import Preprocessing
from deit.tensorrt_plan import cuda_settings, plan_settings, profiles_for
from export.config import GPU_ENGINES, PLAN_ENGINES, ExportConfig

# Images that Triton joins into one batch on CPUs. They run 8 at once as fast as more, and the larger a batch, the
# later its answers: with 32 requests in flight, batches of up to 32 doubled the p99. A request with more images is
# still one batch.
BATCH_ON_PROCESSORS = 8


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """How Triton runs a model; `deit export --help` says when to change each setting."""

    max_batch_size: int
    instances: int
    queue_delay_us: int
    queue_size: int
    queue_timeout_ms: int


def scheduling_of(config: ExportConfig) -> Scheduling:
    """The settings given, with defaults that suit where the engine computes.

    At the 15,000 images/s of a GPU a queue of 256 is 17 ms. Two instances, one of which computes while the other
    copies, and because of the late wake-ups that `model_config` describes; a plan runs only in a later Triton, which
    wakes in time and whose backend copies ahead by itself.
    """
    on_gpu = config.engine in GPU_ENGINES
    return Scheduling(
        max_batch_size=config.max_batch_size or (128 if on_gpu else 32),
        instances=config.instances or (1 if config.engine in PLAN_ENGINES else 2),
        queue_delay_us=config.queue_delay_us,
        queue_size=config.queue_size or (4096 if on_gpu else 256),
        queue_timeout_ms=config.queue_timeout_ms,
    )


def model_config(
    *,
    backend: str,
    on_gpu: bool,
    file: str,
    backend_parameters: dict[str, str],
    outputs: tuple[str, ...],
    num_classes: int,
    preprocessing: Preprocessing,
    provenance: Provenance,
    verification: dict[str, Any],
    scheduling: Scheduling,
    further_outputs: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> model_config_pb2.ModelConfig:
    """The configuration without the model's name and version, which publishing adds.

    Args:
        backend, on_gpu, file: what runs the model and where, and the file in the version's folder.
        backend_parameters: by the names of NVIDIA's native backend.
        verification: summary of the gate's report.
        further_outputs: shapes of one image's, by name.
    """
    size = preprocessing.image_size
    config = model_config_pb2.ModelConfig(
        backend=backend,
        platform="tensorrt_plan" if backend == "tensorrt" else "",
        default_model_filename=file,
        max_batch_size=scheduling.max_batch_size,
    )
    config.input.add(name=IMAGES, data_type=model_config_pb2.TYPE_UINT8, dims=[size, size, 3])
    for output in outputs:
        labels = LABELS_FILE if output == PROBABILITIES else ""
        config.output.add(name=output, data_type=model_config_pb2.TYPE_FP32, dims=[num_classes], label_filename=labels)
    for output, shape in further_outputs.items():
        config.output.add(name=output, data_type=model_config_pb2.TYPE_FP32, dims=shape)

    config.dynamic_batching.max_queue_delay_microseconds = scheduling.queue_delay_us
    if not on_gpu and scheduling.max_batch_size > BATCH_ON_PROCESSORS:
        config.dynamic_batching.preferred_batch_size.append(BATCH_ON_PROCESSORS)
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    # A request's own timeout counts only when it is allowed and below this default.
    policy.default_timeout_microseconds = scheduling.queue_timeout_ms * 1000
    policy.allow_timeout_override = True
    policy.max_queue_size = scheduling.queue_size

    # Where the gate judged it, on each GPU that Triton sees. KIND_AUTO could run it on another kind of device, such as
    # the CPU. With one instance and a queue policy the batcher of Triton 2.51 misses the request that comes between the
    # end of an execution and the release of its instance, and sleeps on for 500 ms; the notes of 2.72 mention a fix of
    # such a starvation.
    if not on_gpu:
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=scheduling.instances)
    elif backend == "tensorrt":
        text_format.Merge(plan_settings(scheduling.instances, profiles_for(scheduling.max_batch_size)), config)
    else:
        text_format.Merge(cuda_settings(scheduling.instances), config)
    # The engine keeps the memory of its largest batch: per instance 100 MiB for 32 images of DeiT-Ti, 30 MiB for 8.
    largest = scheduling.max_batch_size if on_gpu else min(scheduling.max_batch_size, BATCH_ON_PROCESSORS)
    for batch_size in sorted({1, largest}):
        warmup = config.model_warmup.add(name=f"batch {batch_size}", batch_size=batch_size)
        warmup.inputs[IMAGES].data_type = model_config_pb2.TYPE_UINT8
        warmup.inputs[IMAGES].dims.extend([size, size, 3])
        warmup.inputs[IMAGES].zero_data = True

    parameters = {
        **backend_parameters,
        PREPROCESSING_PARAMETER: preprocessing.to_json(),
        PROVENANCE_PARAMETER: provenance.to_json(),
        VERIFICATION_PARAMETER: json.dumps(verification),
    }
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config
