import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from deit.errors import DataError, TrainingError
from tests.conftest import COLOURS, encoded, photograph
from tests.training.conftest import TINY, tiny_student
from training.checkpoint import save_checkpoint
from training.data import CorruptImages
from training.evaluate import evaluate, joint_probabilities
from training.evaluate_checkpoint import evaluate_checkpoint
from training.evaluate_command import app
from training.evaluate_config import EvaluateConfig
from training.images import open_images
from training.model import Normalize, Teacher, create_model
from training.real_labels import real_labels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "checkpoint"
    torch.manual_seed(1)
    save_checkpoint(folder, tiny_student(), label_names=tuple(COLOURS), preprocessing=TINY, deit={})
    return folder


class Logits(nn.Module):
    """Answers image i of a batch with row i."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.rows[: len(images)]


def blank(labels: list[int]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    count = len(labels)
    return [(torch.zeros(count, 3, 16, 16, dtype=torch.uint8), torch.tensor(labels), torch.arange(count))]


def test_the_joint_read_outs_decide_differently() -> None:
    class_logits, distillation_logits = torch.tensor([[5.0, 4.0, 0.0]]), torch.tensor([[-3.0, 1.0, 1.2]])
    probabilities = joint_probabilities(class_logits, distillation_logits)
    torch.testing.assert_close(probabilities, torch.tensor([[0.3678, 0.3571, 0.2751]]), atol=5e-5, rtol=0)
    assert probabilities.argmax() == 0
    assert ((class_logits + distillation_logits) / 2).argmax() == 1


def test_top1_and_top5_and_disagreement_are_counted(colours_data: Path) -> None:
    model = Logits([[9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [0, 1, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4]])
    teacher = Teacher("teacher", Logits([[1, 0], [0, 1], [0, 1], [0, 1]]), TINY, student=TINY)
    corrupt = CorruptImages(open_images(colours_data, "test"), 0.1)
    batches = blank([0, 4, 1, 5])
    found = evaluate(model, batches, Normalize(TINY), CPU, corrupt=corrupt, teacher=teacher)
    assert found.accuracy == {"class_top1": 0.5, "class_top5": 0.75}
    assert found.deciders == ("label", "teacher", "class")
    assert found.disagreement == ((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))


def test_undecodable_images_count_for_nothing_but_are_told(colours_data: Path) -> None:
    corrupt = CorruptImages(open_images(colours_data, "test"), 0.1)
    found = evaluate(Logits([[1, 0], [1, 0]]), blank([0, -1, 1]), Normalize(TINY), CPU, corrupt=corrupt)
    assert (found.images, found.accuracy["class_top1"], corrupt.indices) == (2, 0.5, {1})


def test_real_labels_accept_any_class_that_is_there_and_leave_out_images_without_one(colours_data: Path) -> None:
    corrupt = CorruptImages(open_images(colours_data, "test"), 0.1)
    real = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    model = Logits([[0.0, 1, 0], [0, 1, 0], [0, 1, 0]])
    found = evaluate(model, blank([0, 1, 1]), Normalize(TINY), CPU, corrupt=corrupt, real=real)
    assert found.accuracy["class_real_top1"] == 0.5
    assert found.accuracy["class_top1"] == pytest.approx(2 / 3)


def imagenet_validation(folder: Path, names: list[str]) -> Path:
    for label in range(1000):
        (folder / "val" / f"n{label:08}").mkdir(parents=True)
    for name in names:
        (folder / "val" / "n00000000" / name).write_bytes(encoded(photograph(8, 8)))
    return folder


def test_real_labels_are_found_by_the_images_name(tmp_path: Path) -> None:
    names = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000003_n01.JPEG"]
    truth = real_labels(open_images(imagenet_validation(tmp_path, names), "test"))
    assert truth.shape == (2, 1000)
    assert truth[1].nonzero().flatten().tolist() == [230, 231]  # two shepherd dogs
    assert not truth[0].any()  # the first image has no ReaL label


def test_real_labels_are_refused_for_other_images(tmp_path: Path, colours_data: Path) -> None:
    with pytest.raises(DataError, match="the data has 3"):
        real_labels(open_images(colours_data, "test"))
    with pytest.raises(DataError, match=r"n00000000/dog\.jpeg is not named ILSVRC2012_val_00000001"):
        real_labels(open_images(imagenet_validation(tmp_path, ["dog.jpeg"]), "test"))


def test_the_command_tells_every_read_out_with_its_crop(checkpoint: Path, colours_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    arguments = ["--data", colours_data, "--checkpoint", checkpoint, "--teacher", checkpoint, "--output", output]
    done = CliRunner().invoke(app, [*map(str, arguments), "--workers", "0", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "48 images" in done.stdout
    assert "crop of 16 (crop_pct 1)" in done.stdout
    for readout in ("class token", "distillation token", "joint probability (paper)", "joint logit (DeiT's code)"):
        assert f"\n{readout}" in done.stdout
    report = json.loads(output.read_text())
    deciders = report["evaluation"]["deciders"]
    assert deciders == ["label", "teacher", "class", "distillation", "joint", "joint_logit"]
    # the teacher is the same model, answering with the mean of the logits
    assert report["evaluation"]["disagreement"][deciders.index("teacher")][deciders.index("joint_logit")] == 0


def test_a_weights_file_is_evaluated_as_the_architecture_it_is_given(tmp_path: Path) -> None:
    model = create_model("deit_tiny_patch16_224", num_classes=1000, image_size=224, drop_path=0, model_args={})
    torch.save({"model": model.state_dict()}, tmp_path / "released.pth")
    data = imagenet_validation(tmp_path / "data", ["ILSVRC2012_val_00000003.JPEG"])
    report = evaluate_checkpoint(
        EvaluateConfig(
            data=data,
            checkpoint=str(tmp_path / "released.pth"),
            architecture="deit_tiny_patch16_224",
            crop_pct=0.875,
            real=True,
            workers=0,
            device="cpu",
        )
    )
    assert report is not None
    assert (report.preprocessing.resize_px, report.preprocessing.image_size) == (256, 224)
    assert report.evaluation.accuracy.keys() == {"class_top1", "class_top5", "class_real_top1", "class_real_top5"}


def test_wrong_usage_is_named() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        EvaluateConfig(data=Path("data"), checkpoint="runs/x/checkpoint", crop_pct=1.5)


def test_data_of_another_number_of_classes_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = imagenet_validation(tmp_path, ["ILSVRC2012_val_00000003.JPEG"])
    with pytest.raises(TrainingError, match="has 3 classes, but .* has 1000"):
        evaluate_checkpoint(EvaluateConfig(data=data, checkpoint=str(checkpoint), device="cpu"))
