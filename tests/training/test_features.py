import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from deit.errors import TrainingError
from tests.training.conftest import TINY, TINY_ARGS, tiny_student
from tests.training.test_distillation import loss_of
from training.distillation import Objective
from training.features import Generator, Taps, ViTKD, generation_loss, logits_and_features, mimicking_loss
from training.model import Teacher, create_model

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
PUBLISHED = {"mimic": (0, 1), "generate": (-1,), "point": "ffn", "mask_ratio": 0.5, "reduction": "sum"}
WEIGHTS = {"mimic_weight": 3e-5, "generate_weight": 3e-6}


def transformer(architecture: str = "deit_tiny_patch16_224", image_size: int = 16, **changes: object) -> nn.Module:
    arguments = {**TINY_ARGS, **changes}
    return create_model(architecture, num_classes=3, image_size=image_size, drop_path=0, model_args=arguments)


def wide_teacher(**changes: object) -> nn.Module:
    """As the published teachers: another width and depth, LayerScale, no position for the class token."""
    return transformer("deit3_small_patch16_224", **{"embed_dim": 36, "depth": 3, "init_values": 0.5, **changes})


def vitkd(student: nn.Module, teacher: nn.Module, **changes: object) -> ViTKD:
    return ViTKD(student, teacher, **{**PUBLISHED, **WEIGHTS, **changes})


def objective(student: nn.Module, teacher: nn.Module, **changes: object) -> Objective:
    loss = "nkd" if student.num_prefix_tokens == 2 else "none"
    return Objective(student, loss_of(loss), vitkd(student, teacher, **changes))


def loss_with(objective: Objective, teacher: Teacher) -> Tensor:
    return objective(IMAGES, LABELS, *teacher.with_features(IMAGES, objective.features.taps))


def frozen(model: nn.Module) -> Teacher:
    return Teacher("wide", model, TINY, TINY)


# ------------------------------------------------------------------------------------------------- where features are


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [transformer, tiny_student, wide_teacher])
def test_one_pass_gives_the_models_own_logits_and_its_residual_stream(make: object, training: bool) -> None:
    model = make().train(training)
    for block in model.blocks:
        block.drop_path1 = block.drop_path2 = nn.Dropout(0.3)
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)
    torch.manual_seed(0)
    expected = model(IMAGES)
    torch.manual_seed(0)
    output, stream = model.forward_intermediates(IMAGES, output_fmt="NLC")
    torch.manual_seed(0)
    logits, features = logits_and_features(model, IMAGES, Taps(blocks=(0, 1, -2, -1), point="ffn"))
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    prefix = model.num_prefix_tokens
    for ours, theirs in zip(features, (*stream[:2], stream[-2], output[:, prefix:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert features[0].shape == (4, 16, model.embed_dim)


def test_the_attentions_output_is_what_the_second_half_of_the_block_reads() -> None:
    model = tiny_student().eval()
    read: list[Tensor] = []
    model.blocks[1].norm2.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    _, (attended, output) = logits_and_features(model, IMAGES, Taps(blocks=(1, -1), point="mha"))
    torch.testing.assert_close(attended, read[0][:, 2:], rtol=0, atol=0)
    torch.testing.assert_close(output, model.forward_features(IMAGES)[:, 2:], rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------ the terms

OURS = (torch.tensor([[[1.0, 2.0]], [[0.0, 1.0]]]), torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]]]))
THEIRS = (torch.tensor([[[0.0, 2.0]], [[0.0, 4.0]]]), torch.tensor([[[3.0, 2.0]], [[1.0, 0.0]]]))


def test_mimicking_sums_blocks_tokens_and_channels_and_averages_images() -> None:
    # 1 + 9 in the first block, 4 + 1 in the second; two images; eight numbers
    assert mimicking_loss(OURS, THEIRS, "sum").item() == pytest.approx(15 / 2)
    assert mimicking_loss(OURS, THEIRS, "mean").item() == pytest.approx(15 / 8)


def test_generation_counts_masked_tokens_alone() -> None:
    generated = torch.tensor([[[1.0, 0.0], [5.0, 5.0], [0.0, 2.0]]])
    theirs = torch.zeros(1, 3, 2)
    masked = torch.tensor([[True, False, True]])
    # 1 + 4 over one image, divided by the mask ratio; four masked numbers
    assert generation_loss(generated, theirs, masked, 0.5, "sum").item() == pytest.approx(5 / 0.5)
    assert generation_loss(generated, theirs, masked, 0.5, "mean").item() == pytest.approx(5 / 4)


@pytest.mark.parametrize(("width", "mimic", "generate"), [(384, 4.52, 0.226), (768, 9.03, 0.452), (1024, 12.04, 0.602)])
def test_the_published_weights_as_weights_of_means(width: int, mimic: float, generate: float) -> None:
    """docs/training.md lists them; they hold while half of an even number of tokens is masked."""
    ours, theirs = torch.randn(2, 1, 196, width), torch.randn(2, 1, 196, width)
    masked = (torch.arange(196) % 2 == 0)[None]
    pairs = (
        (3e-5, mimic, *(mimicking_loss(tuple(ours), tuple(theirs), form) for form in ("sum", "mean"))),
        (3e-6, generate, *(generation_loss(ours[0], theirs[0], masked, 0.5, form) for form in ("sum", "mean"))),
    )
    for published, expected, by_sum, by_mean in pairs:
        assert (published * by_sum / by_mean).item() == pytest.approx(expected, rel=2e-3)  # expected is rounded


@pytest.mark.parametrize(("side", "mask_ratio", "masked"), [(3, 0.5, 5), (4, 0.5, 8), (3, 0.3, 3), (3, 1.0, 9)])
def test_an_image_keeps_the_whole_tokens_that_the_mask_ratio_leaves(side: int, mask_ratio: float, masked: int) -> None:
    torch.manual_seed(0)
    generator = Generator(6, 8, (side, side), mask_ratio)
    tokens, is_masked = generator(torch.randn(20, side * side, 6))
    assert tokens.shape == (20, side * side, 8)
    assert is_masked.sum(dim=1).tolist() == [masked] * 20
    assert mask_ratio == 1 or len({tuple(row) for row in is_masked.tolist()}) > 10  # each image has its own


def test_a_masked_token_is_known_from_its_neighbours_alone() -> None:
    torch.manual_seed(0)
    generator = Generator(8, 8, (4, 4), 0.5)
    tokens = torch.randn(1, 16, 8)
    outcomes = []
    for change in (0.0, 9.0):
        torch.manual_seed(1)
        _, masked = generator(tokens)
        torch.manual_seed(1)
        outcomes.append(generator(tokens + change * masked[..., None])[0])
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


def test_the_generators_grid_is_in_the_order_of_the_patches() -> None:
    """A convolution that passes its centre through leaves every token where it was."""
    generator = Generator(2, 2, (3, 3), 0.5)
    for convolution in (generator.convolutions[0], generator.convolutions[2]):
        nn.init.zeros_(convolution.bias)
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[:, :, 1, 1] = torch.eye(2)
    tokens = torch.rand(5, 9, 2)
    generated, masked = generator(tokens)
    torch.testing.assert_close(generated, tokens * ~masked[..., None])


def test_the_whole_loss_is_the_weighted_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    student, teacher = tiny_student(), wide_teacher()
    loss = vitkd(student, teacher, mimic_weight=2.0, generate_weight=3.0, reduction="mean")
    _, ours = logits_and_features(student.eval(), IMAGES, loss.taps)
    _, theirs = frozen(teacher).with_features(IMAGES, loss.taps)
    torch.manual_seed(1)
    total = loss(ours, theirs)
    torch.manual_seed(1)
    generated, masked = loss.generators[0](ours[2])
    projected = tuple(align(tokens) for align, tokens in zip(loss.aligns, ours[:2], strict=True))
    expected = 2 * mimicking_loss(projected, theirs[:2], "mean") + 3 * generation_loss(
        generated, theirs[2], masked, 0.5, "mean"
    )
    torch.testing.assert_close(total, expected)


# ------------------------------------------------------------------------------------------------------ what is learned


@pytest.mark.parametrize("make", [transformer, tiny_student])
@pytest.mark.parametrize("teacher_is_distilled", [True, False])
def test_gradients_reach_the_student_and_all_that_serves_the_loss_and_never_the_teacher(
    make: object, teacher_is_distilled: bool
) -> None:
    network = tiny_student() if teacher_is_distilled else wide_teacher()
    teacher, ours = frozen(network), objective(make().train(), network)
    loss_with(ours, teacher).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
    parts = [ours.features.generators[0].mask_token, ours.features.generators[0].convolutions[0].weight]
    if not teacher_is_distilled:  # of the same width, which needs no projection
        parts += [align.weight for align in (*ours.features.aligns, ours.features.generators[0].align)]
    assert all(part.grad.abs().sum() > 0 for part in parts)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_nothing_is_learned_that_the_asked_terms_do_not_need() -> None:
    student, teacher = transformer(), wide_teacher()
    assert [name for name, _ in vitkd(student, teacher, generate=()).named_parameters()] == [
        f"aligns.{place}.{part}" for place in (0, 1) for part in ("weight", "bias")
    ]
    alone = vitkd(student, teacher, mimic=()).named_parameters()
    assert {name.removeprefix("generators.0.").partition(".")[0] for name, _ in alone} == {
        *("mask_token", "align", "convolutions")
    }
    assert not list(vitkd(student, transformer(), generate=()).parameters())


def test_the_optimiser_decays_the_mask_token_and_not_the_students_tokens() -> None:
    ours = objective(tiny_student(), wide_teacher())
    optimizer = create_optimizer_v2(ours, opt="adamw", lr=1e-3, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    decayed = {
        names[id(parameter)]
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["weight_decay"] > 0
    }
    assert {"features.generators.0.mask_token", "features.aligns.0.weight", "student.head.weight"} <= decayed
    tokens = {f"student.{name}" for name in ("cls_token", "dist_token", "pos_embed")}
    assert not decayed & {*tokens, "features.aligns.0.bias", "student.norm.weight"}


def test_student_and_loss_compile_to_one_graph() -> None:
    student, network = tiny_student(), wide_teacher()
    ours, teacher = objective(student, network), frozen(network)
    torch.manual_seed(0)
    expected = loss_with(ours, teacher)
    ours.compile(backend="eager", fullgraph=True)
    torch.manual_seed(0)
    torch.testing.assert_close(loss_with(ours, teacher), expected)


def test_losses_are_taken_in_float32_under_autocast() -> None:
    ours, teacher = objective(tiny_student(), network := wide_teacher()), frozen(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_with(ours, teacher).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- unfit pairs


def convnet() -> nn.Module:
    return create_model("resnet18", num_classes=3, image_size=32, drop_path=0, model_args={"channels": [8] * 4})


@pytest.mark.parametrize(
    ("student", "teacher", "changes", "finding"),
    [
        (transformer, convnet, {}, "the teacher resnet18 is not a vision transformer .* --distillation nkd"),
        (convnet, transformer, {}, "the student resnet18 is not a vision transformer"),
        (
            transformer,
            lambda: wide_teacher(image_size=24),
            {},
            "has 4 x 4 patches, the teacher deit3_small_patch16_224 6 x 6: give --teacher-image-size 16",
        ),
        (
            transformer,
            lambda: wide_teacher(patch_size=8),
            {},
            "4 x 4 patches, the teacher deit3_small_patch16_224 2 x 2: give --teacher-image-size 32",
        ),
        (transformer, wide_teacher, {"mimic": (2,)}, "the student deit_tiny_patch16_224 has no block 2, but 2 blocks"),
        (lambda: transformer(depth=4), wide_teacher, {"mimic": (-4,)}, "the teacher .* has no block -4, but 3"),
        (transformer, wide_teacher, {"mask_ratio": 1e-20}, "masks none"),
        (lambda: transformer(patch_drop_rate=0.2), wide_teacher, {}, "drops patches"),
    ],
)
def test_a_pair_that_does_not_fit_is_told(student: object, teacher: object, changes: dict, finding: str) -> None:
    with pytest.raises(TrainingError, match=finding):
        vitkd(student(), teacher(), **changes)


def test_a_student_may_be_less_deep_than_its_teacher() -> None:
    network = wide_teacher()
    loss = vitkd(transformer(), network, mimic=(0, -2))
    _, features = frozen(network).with_features(IMAGES, loss.taps)
    assert isinstance(network, VisionTransformer)
    stream = network.forward_intermediates(IMAGES, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(features[1], stream[1], rtol=0, atol=0)
