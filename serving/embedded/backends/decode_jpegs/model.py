"""Triton's model decode_jpegs: files in, another model's outputs out.

serving/embedded/jpeg_process.py decodes and resizes in a separate process; the pixels go to the model that the request
names, in Triton's memory. When that process dies or hangs, its files are left to the caller's own decoders, and so are
all others until a new process is ready. serving/embedded/jpeg_step.py configures the model.
"""

import json
import os
import socket
import struct
import subprocess
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from batched_model import Config, parameters_of

JPEGS, DECODED, IMAGES = "jpegs", "decoded", "images"

# CUDA, and the proof of the pixels
START_TIMEOUT_S = 120.0

# For a batch. What takes longer hangs.
HANG_S = 5

PAUSE_AFTER_LOSS_S = 1.0


class Lost(Exception):
    """The process ended, or is being given up."""


class Recipient(NamedTuple):
    """What requests that can be answered together have in common."""

    model: str
    version: int
    largest_batch: int
    preprocessing: str
    outputs: tuple[str, ...]


class DecodingProcess:
    """The child process of one instance, restarted when it is lost."""

    def __init__(self, command: list[str], packages: str) -> None:
        self._command = command
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join([packages, os.environ.get("PYTHONPATH", "")])}
        self._start()

    def wait_until_ready(self) -> None:
        """Raises Lost with its reason."""
        if not self._connection.poll(START_TIMEOUT_S):
            raise Lost(f"it was not ready after {START_TIMEOUT_S:.0f} s")
        self._hear()

    def pixels(self, files: list[bytes], preprocessing: str) -> list[Any]:
        """uint8 (side, side, 3) of each file; None for one that it leaves to others, which are all while it starts."""
        try:
            if not self._is_ready:
                if not self._connection.poll():
                    return [None] * len(files)
                self._hear()
            side = json.loads(preprocessing)["image_size"]
            question = json.dumps({"preprocessing": preprocessing, "sizes": [len(each) for each in files]})
            self._connection.send_bytes(question.encode())
            self._connection.send_bytes(b"".join(files))
            is_decoded = self._connection.recv_bytes(len(files))  # OSError if it is more
            pixels = np.frombuffer(self._connection.recv_bytes(len(files) * side * side * 3), np.uint8)
        except (OSError, EOFError, Lost) as error:  # BlockingIOError: it has taken HANG_S
            self._replace(error)
            return [None] * len(files)
        rows = iter(pixels.reshape(-1, side, side, 3))
        return [next(rows) if each else None for each in is_decoded]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _start(self) -> None:
        self._is_ready, self._started_s = False, time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", HANG_S, 0))
            self._process = subprocess.Popen(
                [*self._command, f"--socket={theirs.fileno()}"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())

    def _hear(self) -> None:
        try:
            reason = self._connection.recv_bytes().decode()
        except EOFError:
            reason = f"it ended with status {self._process.wait()}"
        if reason:
            raise Lost(reason)
        self._is_ready = True

    def _replace(self, reason: Exception) -> None:
        pb_utils.Logger.log_error(f"the process that decodes JPEGs is started again: {reason!r}")
        self.end()
        time.sleep(max(0.0, self._started_s + PAUSE_AFTER_LOSS_S - time.monotonic()))
        self._start()


class TritonPythonModel:
    """The name and the methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        config: Config = json.loads(args["model_config"])
        parameters = parameters_of(config)
        device = f"--gpu={args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else None
        command = [parameters["python"], "-P", "-m", "serving.embedded.jpeg_process", *filter(None, [device])]
        self._process = DecodingProcess(command, parameters["packages"])
        try:
            self._process.wait_until_ready()
        except Lost as reason:
            self._process.end()
            raise pb_utils.TritonModelException(f"JPEGs cannot be decoded: {reason}") from reason

    def finalize(self) -> None:
        self._process.end()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; those for the same model are decoded together."""
        groups = defaultdict(list)
        responses: list[Any] = [None] * len(requests)
        for place, request in enumerate(requests):
            try:
                groups[recipient_of(request)].append(place)
            except (KeyError, ValueError) as error:
                responses[place] = failed(f"a parameter is missing or wrong: {error}")
        for recipient, places in groups.items():
            for place, response in zip(
                places, self._answers(recipient, [requests[each] for each in places]), strict=True
            ):
                responses[place] = response
        return responses

    def _answers(self, recipient: Recipient, requests: list[Any]) -> list[Any]:
        try:
            files = [pb_utils.get_input_tensor_by_name(each, JPEGS).as_numpy()[:, 0] for each in requests]
            pixels = self._process.pixels([file for each in files for file in each], recipient.preprocessing)
            decoded = np.array([each is not None for each in pixels])
            timeout_us = max(each.timeout() for each in requests)
            outputs = answers_of(recipient, [each for each in pixels if each is not None], timeout_us)
        except Exception as error:  # of Triton's, which share no base class
            return [failed(str(error)) for _ in requests]
        rows = {name: np.zeros((len(decoded), output.shape[1]), np.float32) for name, output in outputs.items()}
        for name, output in outputs.items():
            rows[name][decoded] = output
        rows[DECODED] = decoded[:, None]
        ends = np.cumsum([len(each) for each in files]).tolist()
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, row[start:end]) for name, row in rows.items()])
            for start, end in zip([0, *ends], ends, strict=False)
        ]


def failed(reason: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.INTERNAL))


def recipient_of(request: Any) -> Recipient:
    given = json.loads(request.parameters())
    outputs = tuple(sorted(set(request.requested_output_names()) - {DECODED}))
    return Recipient(given["model"], int(given["version"]), given["largest_batch"], given["preprocessing"], outputs)


def answers_of(recipient: Recipient, pixels: list[Any], timeout_us: int) -> dict[str, Any]:
    """The model's outputs, float32 (N, classes), for N pictures; (0, 1) for none."""
    parts = []
    for start in range(0, len(pixels), recipient.largest_batch):
        request = pb_utils.InferenceRequest(
            model_name=recipient.model,
            model_version=recipient.version,
            requested_output_names=list(recipient.outputs),
            inputs=[pb_utils.Tensor(IMAGES, np.stack(pixels[start : start + recipient.largest_batch]))],
            timeout=timeout_us,
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        parts.append([pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in recipient.outputs])
    if not parts:
        return {name: np.zeros((0, 1), np.float32) for name in recipient.outputs}
    return dict(zip(recipient.outputs, map(np.concatenate, zip(*parts, strict=True)), strict=True))
