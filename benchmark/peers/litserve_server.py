"""LitServe: worker processes that decode and compute, with its batching."""

from typing import Annotated, Any

import litserve
import numpy as np
import numpy.typing as npt
from fastapi import Body

from benchmark.peers.classifier import PeerClassifier, peer_settings

Pixels = npt.NDArray[np.uint8]


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = PeerClassifier(peer_settings())

    def decode_request(self, request: Annotated[bytes, Body()]) -> Pixels:
        return self.classifier.pixels(request)

    def predict(self, x: Any) -> Any:
        return self.classifier.answers(list(x))

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        return inputs

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    settings = peer_settings()
    api = Api(max_batch_size=settings.max_batch_size, batch_timeout=settings.batch_delay_s, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=settings.workers)
    server.run(host="127.0.0.1", port=settings.port, generate_client_file=False, log_level="warning")
