"""Adds the model decode_jpegs to the repository that the embedded Triton sees, with --triton-decode."""

import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.durable import write_file
from deit.errors import ServingError
from deit.jpeg_step import DECODED, JPEGS, STEP
from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, PROBABILITIES
from deit.repository.layout import CONFIG_FILE
from serving.gateway.decoder_handle import PACKAGES
from serving.settings.triton import DecodingDevice

LARGEST_BATCH, QUEUE_SIZE, QUEUE_TIMEOUT_US = 64, 1024, 10_000_000

# One decodes while the pictures of the other are in the model.
INSTANCES = 2


def write_step(repository: Path, device: DecodingDevice) -> None:
    """Raises ServingError if a model of that name is there."""
    folder = repository / STEP
    if folder.exists():
        raise ServingError(f"the model repository has a model {STEP}, which is the name of Triton's own; rename it")
    (folder / "1").mkdir(parents=True)
    write_file(folder / CONFIG_FILE, text_format.MessageToString(step_config(device)))


def step_config(device: DecodingDevice) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name=STEP, backend=STEP, max_batch_size=LARGEST_BATCH)
    config.input.add(name=JPEGS, data_type=model_config_pb2.TYPE_STRING, dims=[1])
    config.output.add(name=DECODED, data_type=model_config_pb2.TYPE_BOOL, dims=[1])
    for name in (PROBABILITIES, CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES):
        config.output.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = QUEUE_TIMEOUT_US
    policy.allow_timeout_override = True
    policy.max_queue_size = QUEUE_SIZE
    kinds = model_config_pb2.ModelInstanceGroup
    config.instance_group.add(kind=kinds.KIND_GPU if device == "gpu" else kinds.KIND_CPU, count=INSTANCES)
    config.parameters["python"].string_value = sys.executable
    config.parameters["packages"].string_value = str(PACKAGES)
    return config
