"""The same pictures in every layout of a data set: the same weights, the same accuracy, and the same over HTTP."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image

from export.config import ExportConfig
from export.pipeline import export_models
from export.samples import load_samples
from tests.conftest import COLOURS, encoded
from tests.end_to_end.conftest import serving
from tests.training.conftest import TINY
from tests.training.test_images import pack
from tests.training.test_layouts import IMAGE, WORDNET, mat_file, named, write_parquet
from tests.training.test_loop import config, metrics_of, same, weights_of
from training.evaluate_checkpoint import evaluate_checkpoint
from training.evaluate_config import EvaluateConfig
from training.loop import train

KINDS = 4
Pictures = list[tuple[str, bytes]]
"""Class and file of each picture, in the order of class folders."""


def picture(label: int, number: int) -> bytes:
    """A dark picture whose upper, lower or one of whose other halves is bright: JPEG, JPEG turned by EXIF, PNG in 16
    bits, or transparent PNG. Each way to misread one changes its class, or leaves nothing to see.
    """
    random = np.random.default_rng(100 * label + number)
    levels = random.normal(40, 10, (32, 32))
    half = [np.s_[:16], np.s_[16:], np.s_[:, :16] if number % 8 < 4 else np.s_[:, 16:]][label]
    levels[half] += 170
    pixels = np.clip(levels, 0, 255).astype(np.uint8)
    match number % KINDS:
        case 0:
            return encoded(Image.fromarray(pixels))
        case 1:  # stored lying on its side
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            return encoded(Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90), exif=exif)
        case 2:  # the lower byte is another picture
            return encoded(Image.fromarray(pixels.astype(np.uint16) * 256 + (255 - pixels)), "PNG")
        case _:  # black all over, and bright where white shows through
            black = Image.new("RGB", (32, 32))
            black.putalpha(Image.fromarray(255 - pixels))
            return encoded(black, "PNG")


def pictures(first: int, count: int) -> Pictures:
    return [
        (name, picture(label, number)) for label, name in enumerate(WORDNET) for number in range(first, first + count)
    ]


def write_folders(folder: Path, split: str, files: Pictures) -> None:
    for place, (name, content) in enumerate(files):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        (folder / split / name / f"{place:03}.JPEG").write_bytes(content)


def write_plain_parquet(folder: Path, split: str, files: Pictures) -> None:
    columns = {"photo": [content for _, content in files], "kind": [name for name, _ in files]}
    write_parquet(folder / f"{split}.parquet", columns)


def write_hugging_face(folder: Path, split: str, files: Pictures) -> None:
    rows = [{"bytes": content, "path": f"{place}.png"} for place, (_, content) in enumerate(files)]
    labels = [WORDNET.index(name) for name, _ in files]
    features = {"img": IMAGE, "fine_label": named(*WORDNET), "note": {"_type": "Value"}}
    columns = {"img": rows, "fine_label": labels, "note": [[0.5]] * len(files)}
    write_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet", columns, features)


def write_web_data_set(folder: Path, split: str, files: Pictures) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(WORDNET))
    members: dict[str, bytes] = {}
    for place, (name, content) in enumerate(files):
        members[f"./set.v1/{place:03}.png"] = content
        members[f"./set.v1/{place:03}.cls"] = str(WORDNET.index(name)).encode()
    pack(folder / f"photos-{split}-000.tar", members)


def write_list(folder: Path, split: str, files: Pictures) -> None:
    write_folders(folder / "files", split, files)
    places = sorted((folder / "files" / split).glob("*/*"))
    lines = [f"{file.relative_to(folder)};{file.parent.name}" for file in places]
    (folder / f"{split}.csv").write_text("\n".join(["file_name;category", *lines]))


def write_imagenet(folder: Path, split: str, files: Pictures) -> None:
    """Flat validation images with the classes in the devkit, which counts classes from 1 in an order of its own."""
    if split == "train":
        return write_folders(folder, split, files)
    kit = folder / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    order = [WORDNET[2], WORDNET[0], WORDNET[1]]
    (kit / "meta.mat").write_bytes(mat_file([*order, "n00001740"]))
    truth = "".join(f"{order.index(name) + 1}\n" for name, _ in files)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    (folder / "val").mkdir()
    for place, (_, content) in enumerate(files, start=1):
        (folder / "val" / f"ILSVRC2012_val_{place:08}.JPEG").write_bytes(content)
    return None


LAYOUTS: dict[str, Callable[[Path, str, Pictures], None]] = {
    "class folders": write_folders,
    "parquet": write_plain_parquet,
    "Hugging Face": write_hugging_face,
    "WebDataset": write_web_data_set,
    "list": write_list,
    "ImageNet": write_imagenet,
}


def test_every_layout_is_trained_on_evaluated_exported_and_served_alike(tmp_path: Path) -> None:
    learned, judged = pictures(0, 40), pictures(40, 12)
    plain = {"model": "deit_tiny_patch16_224", "mixing_probability": 0.0, "label_smoothing": 0.0, "warmup_epochs": 0}
    runs: dict[str, Path] = {}
    start = None
    for place, (layout, write) in enumerate(LAYOUTS.items()):
        data, name = tmp_path / layout, f"run-{place}"
        write(data, "train", learned)
        write(data, "test", judged)
        if start is None:  # what one epoch continues
            train(config(data, tmp_path, name="start", **{**plain, "epochs": 20, "warmup_epochs": 1}))
            start = str(tmp_path / "start" / "checkpoint")
        train(config(data, tmp_path, name=name, **plain, epochs=1, initial_checkpoint=start))
        runs[layout] = tmp_path / name

    first = runs["class folders"]
    samples, *_ = load_samples(tmp_path / "class folders", TINY, None, label_names=tuple(COLOURS), calibrates=False)
    for layout, run in runs.items():
        assert same(weights_of(run), weights_of(first)), layout
        checkpoint = str(run / "checkpoint")
        report = evaluate_checkpoint(
            EvaluateConfig(data=tmp_path / layout, checkpoint=checkpoint, workers=0, device="cpu")
        )
        assert report is not None
        (logged,) = [line for key, line in metrics_of(run)[-1].items() if key.endswith("_class_top1")]
        assert report.evaluation.accuracy["class_top1"] == pytest.approx(logged, abs=1e-5), layout
        compared, *_ = load_samples(tmp_path / layout, TINY, None, label_names=tuple(COLOURS), calibrates=False)
        np.testing.assert_array_equal(compared.images, samples.images, err_msg=layout)
        np.testing.assert_array_equal(compared.labels, samples.labels, err_msg=layout)

    top1 = metrics_of(first)[-1]["test_class_top1"]
    assert top1 > 0.8  # so it reads each kind as it was made
    repository = tmp_path / "models"
    export_models(
        ExportConfig(
            checkpoint=str(first / "checkpoint"),
            images=tmp_path / "parquet",
            repository=repository,
            name="m",
            engine="onnxruntime",
        )
    )
    with serving(repository) as url, httpx.Client(base_url=url, timeout=60) as client:
        answers = [client.post("/classify", files={"image": io.BytesIO(content)}) for _, content in judged]
    best = [json.loads(answer.content)["predictions"][0]["label"] for answer in answers]
    right = [answer == name for answer, (name, _) in zip(best, judged, strict=True)]
    assert sum(right) / len(right) == pytest.approx(top1, abs=1e-5)
    for kind in range(KINDS):
        assert sum(right[kind::KINDS]) >= 6  # of nine
