"""The graph that looks inside a model."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from timm.layers import Attention

from deit.errors import RepositoryError
from deit.preprocessing import Preprocessing
from deit.repository.config import read_config
from export.config import ExportConfig
from export.explained import ExplainedClassifier, rollout
from export.joint import JointClassifier
from export.pipeline import export_models
from tests.training.conftest import TINY, TINY_ARGS
from training.checkpoint import load_checkpoint
from training.model import Normalize, create_model

IMAGES = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def timms(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each block, (blocks, N, tokens, tokens), and the final tokens: from timm's own forward."""
    seen: list[torch.Tensor] = []

    def look(module: Attention, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        queries, keys, _ = module.qkv(inputs[0]).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen.append((queries @ keys.transpose(-2, -1) * module.scale).softmax(dim=-1).mean(dim=1))

    hooks = [each.register_forward_hook(look) for each in model.modules() if isinstance(each, Attention)]
    with torch.inference_mode():
        tokens = model.forward_features(Normalize(TINY)(images.permute(0, 3, 1, 2)))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen), tokens


def test_relevance_is_the_papers_rollout_and_features_are_what_the_heads_read(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    attentions, tokens = timms(model, IMAGES)
    identity = torch.eye(attentions.shape[-1])
    whole = identity  # as the paper writes it: every block's whole matrix, from the first to the last
    for attention in attentions:
        whole = (0.5 * attention + 0.5 * identity) @ whole
    explained = ExplainedClassifier(JointClassifier(model, TINY)).eval()
    with torch.inference_mode():
        found = dict(zip(explained.output_names, explained(IMAGES), strict=True))
        expected = JointClassifier(model, TINY)(IMAGES)
    torch.testing.assert_close(found["class_relevance"].flatten(1), whole[:, 0, 2:])
    torch.testing.assert_close(found["distillation_relevance"].flatten(1), whole[:, 1, 2:])
    torch.testing.assert_close(found["class_features"], tokens[:, 0])
    torch.testing.assert_close(found["distillation_features"], tokens[:, 1])
    torch.testing.assert_close(found["probabilities"], expected[0])


def test_a_token_that_attends_to_one_patch_is_traced_to_it() -> None:
    """Three tokens: in both blocks the first attends to the third alone, which attends to itself."""
    attention = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(rollout([attention, attention[:, :1]]), torch.tensor([[[0.25, 0.0, 0.75]]]))


def test_a_model_with_one_head_has_one_map() -> None:
    model = create_model(
        "deit_tiny_patch16_224", num_classes=3, image_size=16, drop_path=0, model_args=TINY_ARGS
    ).eval()
    explained = ExplainedClassifier(JointClassifier(model, TINY))
    assert explained.output_names == ("probabilities", "class_relevance", "class_features")
    with torch.inference_mode():
        probabilities, relevance, features = explained(IMAGES)
        torch.testing.assert_close(probabilities, JointClassifier(model, TINY)(IMAGES)[0])
    assert (relevance.shape, features.shape) == ((5, 4, 4), (5, 24))


def test_a_network_without_tokens_is_refused() -> None:
    arguments = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
    model = create_model("resnet18", num_classes=3, image_size=16, drop_path=0, model_args=arguments).eval()
    preprocessing = Preprocessing(
        image_size=16, crop_pct=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    with pytest.raises(RepositoryError, match="--explain needs a ViT built as DeiT is, .* this ResNet is not"):
        ExplainedClassifier(JointClassifier(model, preprocessing))


@pytest.mark.parametrize("norm", ["qk_norm", "fc_norm"])
def test_a_vit_with_further_norms_is_refused(norm: str) -> None:
    arguments = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, norm: True}
    model = create_model("vit_tiny_patch16_224", num_classes=3, image_size=16, drop_path=0, model_args=arguments).eval()
    with pytest.raises(RepositoryError, match="this VisionTransformer is not: leave --explain out"):
        ExplainedClassifier(JointClassifier(model, TINY))


def test_an_export_publishes_it_as_a_model_of_its_own(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        checkpoint=str(checkpoint),
        images=pictures,
        repository=tmp_path,
        name="tiny",
        engine="onnxruntime",
        parity_images=40,
        explain=True,
    )
    _, explaining = export_models(config)
    assert explaining == tmp_path / "tiny_explain" / "1"
    session = onnxruntime.InferenceSession(explaining / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = [each.name for each in session.get_outputs()]
    explained = ExplainedClassifier(JointClassifier(load_checkpoint(checkpoint), TINY)).eval()
    with torch.inference_mode():
        expected = explained(IMAGES)
    for name, ours, theirs in zip(outputs, session.run(None, {"images": IMAGES.numpy()}), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, err_msg=name)
    shapes = {each.name: list(each.dims) for each in read_config(tmp_path / "tiny_explain" / "config.pbtxt").output}
    assert (shapes["class_relevance"], shapes["distillation_features"]) == ([4, 4], [24])
    assert len(read_config(tmp_path / "tiny" / "config.pbtxt").output) == 3  # the served model is as it was


def test_a_plan_cannot_explain(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--explain runs on ONNX Runtime"):
        ExportConfig(checkpoint="x", images=tmp_path, engine="tensorrt", explain=True)
