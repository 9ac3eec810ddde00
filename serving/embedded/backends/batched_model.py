"""The common part of our Triton backends: each batch that Triton forms is one call to the engine.

Each backend's folder gets a copy of this file and of deit/allowance.py, because Triton's stub process imports nothing
of this project.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from allowance import usable_cores

Config = dict[str, Any]


class BatchedModel:
    """One instance of one model version, in its own process.

    A backend's `initialize` calls `read` and loads the engine; its `infer` runs it.
    """

    ENGINE: str
    """Name of the engine, for messages."""

    def read(self, args: dict[str, str], default_file: str) -> tuple[Config, Path]:
        """The model's configuration and file."""
        config = json.loads(args["model_config"])
        self.batches = config["max_batch_size"] > 0
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.output_names = [tensor["name"] for tensor in config["output"]]
        filename = config.get("default_model_filename") or default_file
        return config, Path(args["model_repository"], args["model_version"], filename)

    def infer(self, names: list[str], inputs: dict[str, Any]) -> list[Any]:
        """The outputs of these names, in order, in memory that the next call does not overwrite."""
        raise NotImplementedError

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order; the batch that Triton formed runs as one.

        Clients that have left are not checked for here: Triton drops their requests while they are queued.
        """
        groups = [requests] if self.batches else [[request] for request in requests]
        return [response for group in groups for response in self._run(group)]

    def _run(self, requests: list[Any]) -> list[Any]:
        wanted = {name for request in requests for name in request.requested_output_names()}
        names = [name for name in self.output_names if name in wanted]
        try:
            inputs = [
                [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names]
                for request in requests
            ]
            # A single request is passed on from shared memory, without a copy.
            batch = inputs[0] if len(inputs) == 1 else [np.concatenate(parts) for parts in zip(*inputs, strict=True)]
            outputs = self.infer(names, dict(zip(self.input_names, batch, strict=True)))
        except Exception as error:  # the engines' exceptions share no base class
            failure = pb_utils.TritonError(f"{self.ENGINE}: {error}", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        ends = np.cumsum([len(parts[0]) for parts in inputs]).tolist()
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, output[start:end])
                    for name, output in zip(names, outputs, strict=True)
                    if name in request.requested_output_names()
                ]
            )
            for request, start, end in zip(requests, [0, *ends], ends, strict=False)
        ]


def parameters_of(config: Config) -> dict[str, str]:
    """`parameters` of config.pbtxt."""
    return {name: value["string_value"] for name, value in config["parameters"].items()}


def cores_of_an_instance(config: Config) -> int:
    """An equal share of the cores; the native backends would give each instance all of them."""
    instances = sum(int(group["count"]) for group in config["instance_group"])
    return int(max(1, usable_cores() // instances))


def warn(config: Config, message: str) -> None:
    pb_utils.Logger.log_warn(f"{config['name']}: {message}")
