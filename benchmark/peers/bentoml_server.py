"""BentoML: worker processes, each with one thread that computes. Started with `bentoml serve`."""

from typing import Any

import bentoml
from PIL import Image

from benchmark.peers.classifier import PeerClassifier, peer_settings

SETTINGS = peer_settings()


@bentoml.service(workers=SETTINGS.workers, traffic={"timeout": 60}, metrics={"enabled": False})
class BentoService:
    def __init__(self) -> None:
        self.classifier = PeerClassifier(SETTINGS)

    @bentoml.api(route="/classify")
    def classify(self, image: Image.Image, /) -> dict[str, Any]:
        return self.classifier.answers([self.classifier.pixels(image)])[0]
