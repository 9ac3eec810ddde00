"""The version of a model that a job runs, with ONNX Runtime and with the preprocessing that this version needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from deit.cuda_provider import CPU, GpuUnavailableError, cuda_provider, gpu_session
from deit.errors import RepositoryError
from deit.model import IMAGES, PROBABILITIES
from deit.preprocessing import Preprocessing
from deit.repository.models import find_model, model_folders, read_version


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """Everything about a version that workers on other machines need, since they may not share a disk.

    Attributes:
        graph: the bytes of model.onnx.
        digest: their SHA-256.
    """

    name: str
    version: str
    graph: bytes
    digest: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing


def read_model(repository: Path, name: str | None, version: int | None) -> StoredModel:
    """A version of the named model, or of the only one; by default the version that Triton serves.

    Raises:
        RepositoryError: the model or version does not exist, or ONNX Runtime cannot run it.
    """
    if name is None:
        names = model_folders(repository)
        if len(names) != 1:
            raise RepositoryError(f"{repository} holds {', '.join(names) or 'no model'}; choose one with --model")
        (name,) = names
    found = read_version(find_model(repository, name), version)
    if found.file.suffix != ".onnx":
        raise RepositoryError(
            f"{found.file} runs only on {found.engine}: choose a model or a --version that was exported as ONNX"
        )
    try:
        graph = found.file.read_bytes()
    except OSError as error:
        raise RepositoryError(f"{found.file} cannot be read ({error.strerror}): export the model again") from error
    return StoredModel(
        name=name,
        version=str(found.number),
        graph=graph,
        digest=found.digest,
        labels=found.labels,
        preprocessing=found.preprocessing,
    )


class Session:
    """A graph that is ready to run, on the GPU that Ray gave this process if `on_gpu`, and else on the CPU.

    Raises:
        RepositoryError: it must run on a GPU and cannot; the message says what is missing.
    """

    def __init__(self, graph: bytes, *, threads: int, on_gpu: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if not on_gpu:
            self._session: Any = onnxruntime.InferenceSession(graph, options, providers=[CPU])
            return
        try:
            self._session = gpu_session(graph, options, [cuda_provider()])
        except GpuUnavailableError as error:
            raise RepositoryError(f"--gpus needs a GPU, and none can be used: {error}") from error

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities (N, classes) for images, uint8 (N, H, W, 3)."""
        result: npt.NDArray[np.float32] = self._session.run([PROBABILITIES], {IMAGES: pixels})[0]
        return result
