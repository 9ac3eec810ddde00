"""Probabilities that are fitted to held-out images."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from deit.calibration import entropy_bits
from deit.errors import DataError
from deit.model import Provenance
from export.confidence import calibrated, calibration_error, fit, reliability
from export.config import ExportConfig
from export.joint import JointClassifier
from export.pipeline import export_models
from export.samples import load_samples
from tests.conftest import write_parquet
from tests.export.conftest import LABELS
from tests.training.conftest import TINY
from training.checkpoint import load_checkpoint
from training.images import ParquetImages, prepare


def exported(checkpoint: Path, images: Path, repository: Path, **changes: object) -> list[Path]:
    settings = {"name": "tiny", "parity_images": 200, "engine": "onnxruntime", **changes}
    return export_models(
        ExportConfig(checkpoint=str(checkpoint), images=images, repository=repository, **settings)  # type: ignore[arg-type]
    )


def test_a_fit_undoes_label_smoothing_and_leaves_every_order() -> None:
    """Answers whose truth is known: labels are drawn from them, then they are smoothed and cooled."""
    random = np.random.default_rng(0)
    truth = torch.from_numpy(random.normal(0, 4, (6000, 10))).softmax(dim=-1).numpy()
    labels = np.array([random.choice(10, p=row) for row in truth])
    given = (truth**0.8 / (truth**0.8).sum(axis=1, keepdims=True)) * 0.9 + 0.01
    found = fit(given[:2000], labels[:2000])
    assert found is not None
    fitted = calibrated(torch.from_numpy(given[2000:]), *found).numpy()
    before, after = (calibration_error(reliability(each, labels[2000:])) for each in (given[2000:], fitted))
    assert before > 0.05
    assert after < before / 2
    np.testing.assert_array_equal(np.argsort(fitted), np.argsort(given[2000:]))
    np.testing.assert_allclose(fitted.sum(axis=1), 1)


def test_from_labels_that_are_all_answered_or_none_by_more_than_chance_nothing_is_fitted() -> None:
    random = np.random.default_rng(0)
    given = torch.from_numpy(random.normal(0, 4, (2000, 10))).softmax(dim=-1).numpy()
    assert fit(given, given.argmax(axis=1)) is None
    assert fit(given, random.integers(0, 10, 2000)) is None


@pytest.mark.parametrize(("temperature", "floor"), [(0.5, 0.0), (1.0, 0.1), (3.0, 0.01)])
def test_the_map_keeps_zeros_ones_and_float32(temperature: float, floor: float) -> None:
    given = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5 - 1e-7, 1e-7]])
    fitted = calibrated(given, temperature, floor)
    assert fitted.isfinite().all()
    assert fitted.argmax(dim=-1).tolist() == [0, 0]
    assert fitted[0, 0] > 0.9


def test_calibration_error_is_the_mean_distance_by_bin() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    bins = reliability(probabilities, np.array([0, 1, 0, 0]))
    assert [(each.images, each.right) for each in bins] == [(2, 0.5), (2, 0.5)]
    assert calibration_error(bins) == pytest.approx((2 * 0.1 + 2 * 0.4) / 4)


def test_an_export_with_enough_labels_is_fitted_for_every_precision_and_says_so(
    checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    version, int8 = exported(checkpoint, labelled, tmp_path / "fitted", precision="fp32,int8")
    (own,) = exported(checkpoint, labelled, tmp_path / "own", calibrate=False)

    provenance = Provenance.from_json((version / "provenance.json").read_text())
    calibration = provenance.calibration
    assert calibration is not None
    assert Provenance.from_json((int8 / "provenance.json").read_text()).calibration == calibration
    assert calibration.calibration_error < calibration.calibration_error_before
    assert calibration.false_refusals == pytest.approx(0.05, abs=0.01)
    report = json.loads((version / "report.json").read_text())["confidence"]
    assert sum(each["images"] for each in report["after"]) == 200
    assert "calibration error" in (version / "report.txt").read_text()
    assert Provenance.from_json((own / "provenance.json").read_text()).calibration is None

    images = np.load(version / "reference.npz")["images"]
    fitted, raw = (
        onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).run(
            None, {"images": images}
        )
        for folder in (version, own)
    )
    for ours, theirs in zip(fitted, raw, strict=True):  # the answer and both heads
        np.testing.assert_array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    classifier = JointClassifier(load_checkpoint(checkpoint), TINY)
    classifier.fitted = calibration.temperature, calibration.floor
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images))
    for ours, pytorchs in zip(fitted, expected, strict=True):
        np.testing.assert_allclose(ours, pytorchs.numpy(), atol=1e-5)
    assert np.median(fitted[0].max(axis=1)) < np.median(raw[0].max(axis=1))


def test_what_is_fitted_to_is_neither_judged_on_nor_quantized_with(labelled: Path) -> None:
    judged, quantized, rest = load_samples(labelled, TINY, 200, label_names=LABELS, calibrates=True)
    assert quantized is not None
    assert rest is not None
    assert len(rest) == 600 - 200 - 64
    seen = {each.tobytes() for each in (*judged.images, *quantized.images)}
    assert not seen & {prepare(rest, index, TINY).tobytes() for index in range(len(rest))}


def test_labels_count_by_name_whatever_their_order(labelled: Path, tmp_path: Path) -> None:
    images = ParquetImages([labelled / "test.parquet"])
    encoded_images = [images.encoded(index) for index in range(len(images))]
    labels = [(images.label(index) + 1) % 3 for index in range(len(images))]
    write_parquet(tmp_path / "test.parquet", encoded_images, labels, (LABELS[2], *LABELS[:2]))
    ours, _, _ = load_samples(labelled, TINY, 200, label_names=LABELS, calibrates=False)
    theirs, _, rest = load_samples(tmp_path, TINY, 200, label_names=LABELS, calibrates=False)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert rest is not None
    assert rest.label_names == LABELS


def test_labels_that_the_model_does_not_know_leave_its_probabilities(
    checkpoint: Path, labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = ParquetImages([labelled / "test.parquet"])
    encoded_images = [images.encoded(index) for index in range(len(images))]
    labels = np.random.default_rng(0).integers(0, 3, len(images)).tolist()
    write_parquet(tmp_path / "test.parquet", encoded_images, labels, ("cat", "dog", "owl"))
    (version,) = exported(checkpoint, tmp_path, tmp_path / "models")
    assert "first class is 'red', the data's is 'cat': classes are compared by index" in caplog.text
    assert "to which no temperature from 0.2 to 10 fits: the probabilities are not calibrated" in caplog.text
    assert Provenance.from_json((version / "provenance.json").read_text()).calibration is None
    with pytest.raises(DataError, match="check the labels, add harder images, or leave --calibrate out"):
        exported(checkpoint, tmp_path, tmp_path / "models", calibrate=True)


def test_too_many_damaged_images_to_fit_to_are_refused(labelled: Path, tmp_path: Path, checkpoint: Path) -> None:
    images = ParquetImages([labelled / "test.parquet"])
    judged = set(range(0, 600, 3))  # 200 of 600, evenly
    damaged = [images.encoded(index)[: 9999 if index in judged else 100] for index in range(600)]
    write_parquet(tmp_path / "test.parquet", damaged, [images.label(index) for index in range(600)], LABELS)
    with pytest.raises(DataError, match=r"5 of 400 images are damaged, such as .*: repair or remove them"):
        exported(checkpoint, tmp_path, tmp_path / "models")


def test_without_enough_labels_probabilities_stay_the_models_own(
    checkpoint: Path, pictures: Path, colours_data: Path, tmp_path: Path
) -> None:
    (version,) = exported(checkpoint, colours_data, tmp_path / "models", parity_images=8)
    assert Provenance.from_json((version / "provenance.json").read_text()).calibration is None
    for images, count in ((colours_data, 40), (pictures, 0)):
        with pytest.raises(DataError, match=rf"has {count} labelled images.*256 are needed.*leave --calibrate out"):
            exported(checkpoint, images, tmp_path / "models", parity_images=8, calibrate=True)


def test_entropy_is_in_bits() -> None:
    np.testing.assert_allclose(entropy_bits(np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)), [0, 1])


def test_nothing_is_fitted_to_images_that_a_model_was_trained_on(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes((labelled / "test.parquet").read_bytes())
    _, _, rest = load_samples(tmp_path, TINY, 64, label_names=LABELS, calibrates=False)
    assert rest is None
