from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from deit.errors import CheckpointError
from tests.training.conftest import TINY, TINY_ARGS, tiny_student
from training.checkpoint import save_checkpoint
from training.initial import load_initial
from training.model import create_model, head_logits

LABELS = ("red", "green", "blue")


def tiny(
    architecture: str = "deit_tiny_distilled_patch16_224", image_size: int = 16, num_classes: int = 3
) -> nn.Module:
    return create_model(architecture, num_classes=num_classes, image_size=image_size, drop_path=0, model_args=TINY_ARGS)


@pytest.fixture
def distilled(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "distilled", tiny_student(), label_names=LABELS, preprocessing=TINY, deit={})
    return tmp_path / "distilled"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    model = tiny("deit_tiny_patch16_224")
    save_checkpoint(tmp_path / "plain", model, label_names=LABELS, preprocessing=TINY, deit={})
    return tmp_path / "plain"


def test_weights_in_half_precision_start_a_model_in_single_precision(tmp_path: Path) -> None:
    given = tiny("deit_tiny_patch16_224", image_size=32)
    half = {name: tensor.half() for name, tensor in given.state_dict().items()}
    torch.save({"model": half}, tmp_path / "half.pth")
    model = tiny()  # smaller, with a distillation token: positions are resized and joined
    changes = load_initial(model, str(tmp_path / "half.pth"), label_names=LABELS, antialias=False)
    assert any("resized from 8 x 8 to 4 x 4 patches" in change for change in changes)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.state_dict()["blocks.0.mlp.fc1.weight"], half["blocks.0.mlp.fc1.weight"].float())


OFFICIAL = [  # https://github.com/facebookresearch/deit/blob/main/README_deit.md
    ("deit_tiny_patch16_224", 192, 197),
    ("deit_small_patch16_224", 384, 197),
    ("deit_base_patch16_224", 768, 197),
    ("deit_base_patch16_384", 768, 577),
    ("deit_tiny_distilled_patch16_224", 192, 198),
    ("deit_small_distilled_patch16_224", 384, 198),
    ("deit_base_distilled_patch16_224", 768, 198),
    ("deit_base_distilled_patch16_384", 768, 578),
]


def official_layout(width: int, positions: int) -> dict[str, torch.Tensor]:
    """Zeros under the names and shapes of a released file; each is one number in the file."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1000, width),
        "head.bias": (1000,),
    }
    if positions in (198, 578):
        shapes |= {"dist_token": (1, 1, width), "head_dist.weight": (1000, width), "head_dist.bias": (1000,)}
    for block in range(12):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.weight": (width,), f"blocks.{block}.{norm}.bias": (width,)}
        for layer, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes |= {f"blocks.{block}.{layer}.weight": (rows, columns), f"blocks.{block}.{layer}.bias": (rows,)}
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("architecture", "width", "positions"), OFFICIAL)
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_the_released_files_load_without_a_change(
    tmp_path: Path, architecture: str, width: int, positions: int
) -> None:
    torch.save({"model": official_layout(width, positions)}, tmp_path / "released.pth")
    size = 224 if positions < 500 else 384
    model = create_model(architecture, num_classes=1000, image_size=size, drop_path=0, model_args={"device": "meta"})
    assert load_initial(model, str(tmp_path / "released.pth"), label_names=("",) * 1000, antialias=False) == []


def test_the_released_weights_of_deit_ti_give_timms_logits(shared_data: Path) -> None:
    file = shared_data / "imagenet" / "deit_tiny_patch16_224.pth"
    model = create_model("deit_tiny_patch16_224", num_classes=1000, image_size=224, drop_path=0, model_args={}).eval()
    assert load_initial(model, str(file), label_names=("",) * 1000, antialias=False) == []
    reference = timm.create_model("deit_tiny_patch16_224", checkpoint_path=str(file)).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(images), reference(images))


@pytest.mark.parametrize("antialias", [False, True])
def test_both_prefix_positions_stay_and_the_grid_is_resized(distilled: Path, antialias: bool) -> None:
    model, source = tiny(image_size=24), tiny_student()
    load_initial(source, str(distilled), label_names=LABELS, antialias=False)
    (change,) = load_initial(model, str(distilled), label_names=LABELS, antialias=antialias)
    assert "from 4 x 4 to 6 x 6 patches" in change
    assert "2 prefix positions kept" in change
    assert torch.equal(model.pos_embed[:, :2], source.pos_embed[:, :2])
    grid = source.pos_embed[:, 2:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False, antialias=antialias)
    torch.testing.assert_close(model.pos_embed[:, 2:], expected.permute(0, 2, 3, 1).reshape(1, 36, -1))


def test_antialiasing_changes_the_positions_even_when_they_grow(distilled: Path) -> None:
    deits, timms = tiny(image_size=24), tiny(image_size=24)
    load_initial(deits, str(distilled), label_names=LABELS, antialias=False)
    load_initial(timms, str(distilled), label_names=LABELS, antialias=True)
    assert (deits.pos_embed - timms.pos_embed).abs().max() > 1e-4


def test_a_distilled_model_becomes_a_plain_one_on_purpose(distilled: Path) -> None:
    model = tiny("deit_tiny_patch16_224")
    (change,) = load_initial(model, str(distilled), label_names=LABELS, antialias=False)
    assert change == "the distillation token, its position and its head are left out: the model has none"
    source = tiny_student()
    load_initial(source, str(distilled), label_names=LABELS, antialias=False)
    assert torch.equal(model.pos_embed[:, :1], source.pos_embed[:, :1])
    assert torch.equal(model.pos_embed[:, 1:], source.pos_embed[:, 2:])


def test_a_plain_model_gets_a_new_distillation_token(plain: Path) -> None:
    model = tiny()
    token, position = model.dist_token.clone(), model.pos_embed[:, 1].clone()
    (change,) = load_initial(model, str(plain), label_names=LABELS, antialias=False)
    assert change == "the distillation token, its position and its head are newly initialised: the weights have none"
    assert torch.equal(model.dist_token, token)
    assert torch.equal(model.pos_embed[:, 1], position)


def test_the_last_blocks_of_a_deeper_model_are_left_out(plain: Path) -> None:
    depth = TINY_ARGS["depth"] - 1
    model = create_model(
        "deit_tiny_patch16_224", num_classes=3, image_size=16, drop_path=0, model_args={**TINY_ARGS, "depth": depth}
    )
    [change] = load_initial(model, str(plain), label_names=LABELS, antialias=False)
    assert change == f"the last 1 of {depth + 1} blocks are left out: the model has {depth}"
    weights = tiny("deit_tiny_patch16_224")
    load_initial(weights, str(plain), label_names=LABELS, antialias=False)
    given = weights.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in model.state_dict().items())


def test_weights_of_too_few_blocks_are_refused(plain: Path) -> None:
    deeper = create_model(
        "deit_tiny_patch16_224",
        num_classes=3,
        image_size=16,
        drop_path=0,
        model_args={**TINY_ARGS, "depth": TINY_ARGS["depth"] + 1},
    )
    with pytest.raises(CheckpointError, match=r"blocks\.\d+.* is missing"):
        load_initial(deeper, str(plain), label_names=LABELS, antialias=False)


def test_heads_of_another_number_of_classes_start_anew_and_the_rest_is_kept(distilled: Path) -> None:
    model, source = tiny(num_classes=7), tiny_student()
    changes = load_initial(model, str(distilled), label_names=tuple("abcdefg"), antialias=False)
    assert changes == [
        f"{head} is newly initialised: it decided among 3 classes, now among 7" for head in ("head", "head_dist")
    ]
    load_initial(source, str(distilled), label_names=LABELS, antialias=False)
    assert torch.equal(model.norm.weight, source.norm.weight)
    class_logits, _ = head_logits(model, torch.randn(1, 3, 16, 16))
    assert class_logits.shape == (1, 7)


def test_a_kept_head_of_other_classes_is_told(distilled: Path) -> None:
    (change,) = load_initial(tiny(), str(distilled), label_names=("cat", "dog", "cow"), antialias=False)
    assert change.startswith("the head is kept, though it was trained on other classes (red, …)")


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ({"model": official_layout(192, 197)}, "weights of another architecture"),
        ({"model": official_layout(192, 200)}, "200 positions, which with 1 prefix tokens are not a square grid"),
        ({"model": 3}, "does not hold a state dictionary"),
    ],
)
def test_weights_that_cannot_fit_are_refused(tmp_path: Path, content: dict[str, object], finding: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=finding):
        load_initial(tiny("deit_tiny_patch16_224"), str(tmp_path / "weights.pth"), label_names=LABELS, antialias=False)
