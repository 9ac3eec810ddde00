"""The promise of the whole chain: an uploaded photograph gets the answer that PyTorch with timm's transform gives."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from export.config import ExportConfig
from export.pipeline import export_models
from tests.end_to_end.conftest import serving
from training.checkpoint import read_pytorch
from training.images import ParquetImages


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> ParquetImages:
    return ParquetImages([shared_data / "imagenet" / "sample500.parquet"])


@pytest.fixture(scope="module")
def reference(shared_data: Path, photographs: ParquetImages) -> list[int]:
    """Top-1 of PyTorch with timm's own evaluation transform, photograph by photograph."""
    model = timm.create_model("deit_tiny_patch16_224")
    model.load_state_dict(read_pytorch(shared_data / "imagenet" / "deit_tiny_patch16_224.pth")["model"])
    transform = create_transform(224, is_training=False, interpolation="bicubic", crop_pct=0.875)
    answers = []
    with torch.inference_mode():
        for start in range(0, len(photographs), 50):
            images = [
                Image.open(io.BytesIO(photographs.encoded(index))).convert("RGB") for index in range(start, start + 50)
            ]
            answers += model.eval()(torch.stack([transform(image) for image in images])).argmax(dim=1).tolist()
    return answers


@pytest.mark.timeout(600)
def test_500_photographs_over_http_answer_as_pytorch_does(
    shared_data: Path, photographs: ParquetImages, reference: list[int], tmp_path: Path
) -> None:
    export_models(
        ExportConfig(
            checkpoint=shared_data / "imagenet" / "deit_tiny_patch16_224.pth",
            architecture="deit_tiny_patch16_224",
            labels="imagenet-1k",
            crop_pct=0.875,
            images=shared_data / "imagenet" / "sample500.parquet",
            repository=tmp_path / "models",
            engine="onnxruntime",
        )
    )
    with serving(tmp_path / "models") as url, httpx.Client(base_url=url, timeout=60) as client:

        def classify(index: int) -> int:
            answer = client.post("/classify", files={"image": photographs.encoded(index)}, params={"top_k": 1})
            assert answer.status_code == 200, answer.text
            return answer.json()["predictions"][0]["index"]

        with ThreadPoolExecutor(8) as pool:  # several at once, so that Triton's batches mix the photographs
            served = list(pool.map(classify, range(len(photographs))))

    same = sum(ours == theirs for ours, theirs in zip(served, reference, strict=True))
    correct = sum(answer == photographs.label(index) for index, answer in enumerate(served))
    assert same >= 499  # a near-tie may fall the other way in the last bit
    assert correct >= 0.78 * len(photographs)
