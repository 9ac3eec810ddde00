from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Attention

from deit.errors import TrainingError
from deit.preprocessing import Preprocessing
from tests.training.conftest import TINY, tiny_student
from training.checkpoint import save_checkpoint
from training.model import Normalize, Teacher, choose_attention, create_model, head_logits, load_teacher

IMAGENET = Preprocessing(
    image_size=16, crop_pct=1.0, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
HALF = Preprocessing(image_size=24, crop_pct=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("architecture", "image_size", "parameters"),
    [  # computed from the paper's table 1
        ("deit_tiny_patch16_224", 224, 5_717_416),
        ("deit_tiny_distilled_patch16_224", 224, 5_910_800),
        ("deit_small_patch16_224", 224, 22_050_664),
        ("deit_small_distilled_patch16_224", 224, 22_436_432),
        ("deit_base_patch16_224", 224, 86_567_656),
        ("deit_base_distilled_patch16_224", 224, 87_338_192),
        ("deit_base_patch16_384", 384, 86_859_496),
        ("deit_base_distilled_patch16_224", 384, 87_630_032),
    ],
)
def test_parameter_counts_are_the_papers(architecture: str, image_size: int, parameters: int) -> None:
    meta = {"device": "meta"}  # shapes without memory
    model = create_model(architecture, num_classes=1000, image_size=image_size, drop_path=0, model_args=meta)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_class_token_starts_as_in_deit() -> None:
    torch.manual_seed(0)
    assert 0.01 < tiny_student().cls_token.std() < 0.03  # timm starts from 1e-6


def test_head_logits_average_to_timms_own_forward() -> None:
    model = tiny_student().eval()
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        class_logits, distillation_logits = head_logits(model, images)
        torch.testing.assert_close((class_logits + distillation_logits) / 2, model(images))


@pytest.mark.parametrize(
    ("architecture", "arguments", "finding"),
    [
        ("deit_huge", {}, "has no model 'deit_huge'"),
        ("resnet18", {"patch_size": 4}, "timm cannot make resnet18"),
        ("resnet18", {"in_chans": 1}, "cannot read RGB images of 16 x 16 pixels"),
        ("deit_tiny_patch16_224", {"in_chans": 1}, "cannot read RGB images of 16 x 16 pixels"),
        ("deit_tiny_patch16_224", {"img_size": 32}, "cannot read RGB images of 16 x 16 pixels"),
        ("deit_tiny_patch16_224", {"patch_size": 7}, r"patches of 7 x 7 .* give --image-size 14 or 21"),
    ],
)
def test_what_timm_cannot_make_is_named(architecture: str, arguments: dict[str, int], finding: str) -> None:
    with pytest.raises(TrainingError, match=finding):
        create_model(architecture, num_classes=3, image_size=16, drop_path=0, model_args=arguments)


def test_a_teacher_sees_its_own_statistics_and_resolution() -> None:
    seen = []

    class Witness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean(dim=(2, 3))

    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    Teacher("witness", Witness(), HALF, student=IMAGENET)(Normalize(IMAGENET)(pixels))
    expected = torch.nn.functional.interpolate(Normalize(HALF)(pixels), size=(24, 24), mode="bicubic")
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)  # normalised twice in float32


def test_a_teacher_stays_frozen_and_in_evaluation_mode() -> None:
    convnet = create_model("resnet18", num_classes=3, image_size=24, drop_path=0, model_args={"channels": [8] * 4})
    teacher = Teacher("convnet", convnet, HALF, student=IMAGENET)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    logits = teacher(torch.randn(4, 3, 16, 16))
    assert not logits.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


@pytest.fixture
def colours_teacher(tmp_path: Path) -> str:
    folder = tmp_path / "teacher"
    save_checkpoint(folder, tiny_student(), label_names=("red", "gr\u00fcn", "blue"), preprocessing=TINY, deit={})
    return str(folder)


def test_a_teacher_that_lacks_a_class_is_refused(colours_teacher: str) -> None:
    with pytest.raises(TrainingError, match="lacks the data's yellow: take a teacher whose"):
        load_teacher(colours_teacher, label_names=("red", "yellow"), student=IMAGENET)
    with pytest.raises(TrainingError, match="the data has 2 classes named red, and .* answers by name"):
        load_teacher(colours_teacher, label_names=("red", "red"), student=IMAGENET)


def test_a_teacher_of_more_classes_answers_for_those_of_the_student_by_name(colours_teacher: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    whole = load_teacher(colours_teacher, label_names=("red", "gr\u00fcn", "blue"), student=IMAGENET)(images)
    for names in (("blue", "red"), ("blue", "red", "gru\u0308n")):
        some = load_teacher(colours_teacher, label_names=names, student=IMAGENET)
        torch.testing.assert_close(some(images), whole[:, [2, 0, 1][: len(names)]])


def test_a_teacher_of_imagenet_without_names_is_asked_by_wordnet_ids(tmp_path: Path) -> None:
    teacher = timm.create_model("resnet18", channels=(8, 8, 8, 8), layers=(1, 1, 1, 1)).eval()
    save_checkpoint(tmp_path / "teacher", teacher, label_names=(), preprocessing=IMAGENET, deit={})
    images = torch.randn(2, 3, 64, 64)
    hen_and_tench = load_teacher(
        str(tmp_path / "teacher"), label_names=("n01514859", "n01440764"), student=IMAGENET, image_size=64
    )
    torch.testing.assert_close(hen_and_tench(images), teacher(images)[:, [8, 0]])
    with pytest.raises(TrainingError, match="has 1000 classes without names, but the data has 2"):
        load_teacher(str(tmp_path / "teacher"), label_names=("hen", "tench"), student=IMAGENET)


def test_a_teacher_works_at_another_resolution_when_asked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "vit", tiny_student(), label_names=("a", "b", "c"), preprocessing=TINY, deit={})
    convnet = create_model("resnet18", num_classes=3, image_size=16, drop_path=0, model_args={"channels": [8] * 4})
    save_checkpoint(tmp_path / "convnet", convnet, label_names=("a", "b", "c"), preprocessing=TINY, deit={})
    for name in ("vit", "convnet"):
        teacher = load_teacher(str(tmp_path / name), label_names=("a", "b", "c"), student=IMAGENET, image_size=32)
        assert teacher(torch.randn(2, 3, 32, 32)).shape == (2, 3)
        assert teacher(torch.randn(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(("precision", "fused"), [(torch.bfloat16, False), (torch.float32, True)])
def test_attention_in_bf16_on_a_cpu_is_computed_apart_and_gives_the_same(precision: torch.dtype, fused: bool) -> None:
    torch.manual_seed(0)
    model = create_model(
        "deit_tiny_distilled_patch16_224", num_classes=5, image_size=32, drop_path=0, model_args={"depth": 2}
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        choose_attention(model, torch.device("cpu"), precision)
        assert {module.fused_attn for module in model.modules() if isinstance(module, Attention)} == {fused}
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)  # sums in another order
