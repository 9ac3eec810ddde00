"""Every precision of one checkpoint, served by the embedded Triton on the engine that its export chose."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from deit.preprocessing import Preprocessing, resize_and_crop
from deit.repository.config import read_config
from deit.repository.doctor import examine
from deit.repository.models import read_version
from export.config import ExportConfig
from export.engines import Engine
from export.pipeline import export_models
from tests.end_to_end.conftest import serving
from tests.export.conftest import checkpoint  # noqa: F401  a fixture
from tests.training.conftest import TINY
from training.images import ParquetImages, decode

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@pytest.fixture(scope="module")
def folders(
    checkpoint: Path,  # noqa: F811
    colours_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """The published versions. The colours are so easy that even random weights keep their answers in int8."""
    return export_models(
        ExportConfig(
            checkpoint=str(checkpoint),
            images=colours_data,
            repository=tmp_path_factory.mktemp("models"),
            name="tiny",
            precision=",".join(PRECISIONS),
            engine="auto",
            parity_images=48,
        )
    )


def test_several_precisions_become_models_of_their_own_with_their_reports(folders: list[Path]) -> None:
    assert [folder.parent.name for folder in folders] == ["tiny", "tiny_fp16", "tiny_bf16", "tiny_int8"]
    for folder, precision in zip(folders, PRECISIONS, strict=True):
        version = read_version(folder.parent)
        found = json.loads((folder / "report.json").read_text())
        best = found["candidates"][found["published"]]
        assert best["failures"] == []
        assert version.verification["precision"] == version.precision == precision
        assert best["settings"].items() <= {k: v.string_value for k, v in version.config.parameters.items()}.items()
        assert version.engine == best["engine"].partition(",")[0]
        # labels of the data set's test split count, and they are judged: 48 images
        assert best["images"] == 48
        assert best["top1"] is not None
        assert "published" in (folder / "report.txt").read_text()
    assert examine(folders[0].parents[1]) == []
    engines = {each["engine"] for each in found["candidates"]}
    assert engines == {"onnxruntime", "openvino", "openvino, rest bf16"}
    assert {each["method"] for each in found["candidates"]} == {"static", "mixed", "dynamic"}


def test_every_precision_answers_over_http_as_its_engine_does_alone(folders: list[Path], colours_data: Path) -> None:
    colours = ParquetImages([colours_data / "test.parquet"])
    images = np.stack([resize_and_crop(decode(colours, index), TINY) for index in range(len(colours))])
    with serving(folders[0].parents[1]) as url, httpx.Client(base_url=url, timeout=60) as client:
        for folder in folders:
            parsed = read_config(folder.parent / "config.pbtxt")
            engine = Engine(backend=parsed.backend, bf16=parsed.parameters["HINT_BF16"].string_value == "YES")
            (expected,) = engine.load(folder / "model.onnx", ("probabilities",))(images)
            served = _probabilities(client, folder.parent.name, colours)
            # The same graph on the same engine; another batch size rounds sums in half precision at other places.
            np.testing.assert_allclose(served, expected, atol=1e-5 if folder.parent.name == "tiny" else 2e-2)


def _probabilities(client: httpx.Client, model: str, images: ParquetImages) -> np.ndarray:
    def classify(index: int) -> list[float]:
        answer = client.post(
            "/classify",
            files={"image": images.encoded(index)},
            params={"model": model, "top_k": len(images.label_names)},
        )
        assert answer.status_code == 200, answer.text
        return [each["probability"] for each in sorted(answer.json()["predictions"], key=lambda each: each["index"])]

    with ThreadPoolExecutor(8) as pool:  # several at once, so that Triton's batches mix the images
        return np.array(list(pool.map(classify, range(len(images)))))


@pytest.mark.soak
def test_real_deit_tiny_has_the_accuracy_over_http_that_the_gate_found(shared_data: Path, tmp_path: Path) -> None:
    """All 500 photographs, of which the export sees those that the calibration leaves to the gate."""
    repository, source = tmp_path / "models", shared_data / "imagenet" / "sample500.parquet"
    folders = export_models(
        ExportConfig(
            checkpoint=str(shared_data / "imagenet" / "deit_tiny_patch16_224.pth"),
            architecture="deit_tiny_patch16_224",
            labels="imagenet-1k",
            crop_pct=0.875,
            images=source,
            repository=repository,
            name="deit_tiny",
            precision="fp32,bf16,int8",
        )
    )
    assert len(folders) == 3
    photographs = ParquetImages([source])
    with serving(repository) as url, httpx.Client(base_url=url, timeout=120) as client:
        preprocessing = _preprocessing(client)
        images = np.stack([resize_and_crop(decode(photographs, index), preprocessing) for index in range(500)])
        labels = np.array([photographs.label(index) for index in range(500)])
        for folder in folders:
            parsed = read_config(folder.parent / "config.pbtxt")
            engine = Engine(backend=parsed.backend, bf16=parsed.parameters["HINT_BF16"].string_value == "YES")
            run = engine.load(folder / "model.onnx", ("probabilities",))
            offline = np.concatenate([run(images[start : start + 20])[0] for start in range(0, 500, 20)]).argmax(axis=1)
            served = _probabilities(client, folder.parent.name, photographs).argmax(axis=1)
            # a near-tie may fall the other way in the last bit of another batch size
            assert (served != offline).sum() <= 1
            assert abs((served == labels).sum() - (offline == labels).sum()) <= 1


def _preprocessing(client: httpx.Client) -> Preprocessing:
    return Preprocessing.from_dict(client.get("/models").raise_for_status().json()["models"][0]["preprocessing"])
