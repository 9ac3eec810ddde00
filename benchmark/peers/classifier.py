"""What every peer does with an image: Pillow, the preprocessing of this project, ONNX Runtime, five best classes.

Settings come in the environment variable DEIT_PEER, because each server starts its workers in its own way.
"""

import io
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from deit.pictures import upright_rgb
from deit.preprocessing import Preprocessing, resize_and_crop

SETTINGS = "DEIT_PEER"


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """What to serve, and the tuning.

    Attributes:
        onnx_file: takes `images`, gives `probabilities` first.
        workers: processes, or threads that compute, depending on the server.
        threads: of ONNX Runtime in each.
        max_batch_size, batch_delay_s: if the server makes batches itself.
    """

    onnx_file: str
    preprocessing: str
    port: int
    workers: int
    threads: int
    max_batch_size: int = 1
    batch_delay_s: float = 0.0

    def to_environment(self) -> dict[str, str]:
        return {SETTINGS: json.dumps(self.__dict__)}


def peer_settings() -> PeerSettings:
    return PeerSettings(**json.loads(os.environ[SETTINGS]))


class PeerClassifier:
    """The model of one worker."""

    def __init__(self, settings: PeerSettings) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        self._session = onnxruntime.InferenceSession(settings.onnx_file, options, providers=["CPUExecutionProvider"])
        self._preprocessing = Preprocessing.from_json(settings.preprocessing)

    def pixels(self, content: bytes | bytearray | memoryview | Image.Image) -> npt.NDArray[np.uint8]:
        """The model's input, uint8 (H, W, 3), from an image file or from an image that the server opened."""
        image = content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content))
        return resize_and_crop(upright_rgb(image), self._preprocessing, exact=True)

    def answers(self, batch: list[npt.NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """The answers of this project's gateway, without names of classes."""
        (probabilities,) = self._session.run(["probabilities"], {"images": np.stack(batch)})
        return [
            {"predictions": [{"index": int(index), "probability": float(row[index])} for index in best]}
            for row, best in zip(probabilities, np.argsort(-probabilities, axis=1)[:, :5], strict=True)
        ]
