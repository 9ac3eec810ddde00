"""Example responses of POST /classify for the OpenAPI description."""

import json
from typing import Any

from serving.gateway.errors import UndecodableImage

CAT = {"index": 3, "label": "cat", "probability": 0.93}
DOG = {"index": 5, "label": "dog", "probability": 0.04}

ONE: dict[str, Any] = {"model": "deit_cifar10", "version": "1", "predictions": [CAT, DOG]}

HEADS = {
    "class": [{**CAT, "probability": 0.91}, {**DOG, "probability": 0.06}],
    "distillation": [{**CAT, "probability": 0.95}, {**DOG, "probability": 0.02}],
    "agree": True,
    "jensen_shannon_divergence": 0.00786,
}

RESULTS: list[dict[str, Any]] = [
    {"filename": "cat.jpg", "version": "1", "predictions": [CAT, DOG]},
    {"filename": "torn.jpg", "problem": UndecodableImage("the JPEG image is truncated or damaged").body()},
]

ANSWER_EXAMPLES: dict[str, Any] = {
    "one image": {"summary": "One image", "value": ONE},
    "heads": {"summary": "heads=true", "value": {**ONE, "heads": HEADS}},
    "abstained": {
        "summary": "min_probability=0.99 or abstain=true: no class is that probable, or the image is unfamiliar",
        "value": {**ONE, "predictions": [], "abstained": True},
    },
    "a look inside": {
        "summary": "explain=true and embedding=true",
        "value": {
            **ONE,
            "explanation": dict.fromkeys(("class", "distillation"), "data:image/png;base64,iVBORw0KGgo="),
            "embedding": {"class": "q6qqPg==", "distillation": "AACAvw=="},
        },
    },
    "several images": {
        "summary": "Several images, one of them broken",
        "value": {"model": "deit_cifar10", "results": RESULTS},
    },
}

STREAM_EXAMPLE = "".join(json.dumps({**result, "index": index}) + "\n" for index, result in enumerate(RESULTS))
