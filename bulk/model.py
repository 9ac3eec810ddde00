"""A model of a model repository, run here with ONNX Runtime: the same graph and preprocessing that Triton serves."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.cuda_provider import CPU, GpuUnavailableError, cuda_provider, gpu_session
from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, read_labels
from deit.model import CONFIG_FILE, IMAGES, ONNX_FILE, PREPROCESSING_PARAMETER, PROBABILITIES
from deit.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A version of a model as it lies in the repository.

    Attributes:
        graph: the bytes of model.onnx, so that workers on other machines need no common disk.
        digest: SHA-256 of them.
    """

    name: str
    version: str
    graph: bytes
    digest: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing


def read_model(repository: Path, name: str | None, version: str | None) -> StoredModel:
    """The named model, or the only one; its newest version unless another is asked for.

    Raises:
        RepositoryError: there is no such model or version, or it was not made by `deit export`.
    """
    folders = {path.parent.name: path.parent for path in repository.glob(f"[!.]*/{CONFIG_FILE}")}
    if name is None and len(folders) == 1:
        (name,) = folders
    if name not in folders:
        raise RepositoryError(
            f"the model repository {repository} holds {', '.join(sorted(folders)) or 'no model'}; "
            f"{'choose one with --model' if name is None else f'there is no {name}'}"
        )
    folder = folders[name]
    versions = sorted((path.parent.name for path in folder.glob(f"*/{ONNX_FILE}")), key=int)
    if not versions or (version or versions[-1]) not in versions:
        raise RepositoryError(f"{folder} has the versions {', '.join(versions) or 'none'}, not {version}")
    version = version or versions[-1]
    try:
        config = text_format.Parse((folder / CONFIG_FILE).read_text(), model_config_pb2.ModelConfig())
        preprocessing = Preprocessing.from_json(config.parameters[PREPROCESSING_PARAMETER].string_value)
    except (text_format.ParseError, ValueError) as error:
        raise RepositoryError(f"{folder / CONFIG_FILE} cannot be read: {error}; export the model again") from error
    graph = (folder / version / ONNX_FILE).read_bytes()
    return StoredModel(
        name=name,
        version=version,
        graph=graph,
        digest=hashlib.sha256(graph).hexdigest(),
        labels=tuple(read_labels(folder / LABELS_FILE)),
        preprocessing=preprocessing,
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
            raise RepositoryError(f"--gpus asks for a GPU, and none can be used: {error}") from error

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(N, classes) of uint8 (N, H, W, 3)."""
        result: npt.NDArray[np.float32] = self._session.run([PROBABILITIES], {IMAGES: pixels})[0]
        return result
