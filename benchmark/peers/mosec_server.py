"""mosec: worker processes that decode and compute, with its batching. Its web layer is written in Rust."""

from typing import Any

from mosec import Server, Worker

from benchmark.peers.classifier import PeerClassifier, peer_settings

SETTINGS = peer_settings()


class MosecWorker(Worker):
    def __init__(self) -> None:
        self.classifier = PeerClassifier(SETTINGS)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Any) -> Any:
        return self.classifier.answers([self.classifier.pixels(content) for content in data])


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        MosecWorker,
        num=SETTINGS.workers,
        max_batch_size=SETTINGS.max_batch_size,
        max_wait_time=int(SETTINGS.batch_delay_s * 1000),
        route="/classify",
        timeout=60,
    )
    server.run()
