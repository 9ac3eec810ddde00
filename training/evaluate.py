"""Accuracy of a model, of each read-out that it offers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from training.model import Normalize, head_logits


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    normalize: Normalize,
    device: torch.device,
    on_batch: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
    """Top-1 and top-5 by read-out, in 0..1, such as {"joint_top1": 0.81, "joint_top5": 0.97, "class_top1": …}.

    Read-outs: "class" always; for a distilled model also "distillation" and "joint", the mean of both softmaxes (paper
    section 4, "Classification with our approach: joint classifiers"). In float32 whatever the training ran in.

    Args:
        batches: uint8 images (N, 3, H, W) with class indices (N,).
        on_batch: called with the number of images of each batch, for a progress bar.
    """
    was_training = model.training
    model.eval()
    correct: dict[str, int] = {}
    total = 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        class_logits, distillation_logits = head_logits(model, normalize(images))
        scores = {"class": class_logits.softmax(dim=-1)}
        if distillation_logits is not None:
            scores["distillation"] = distillation_logits.softmax(dim=-1)
            scores["joint"] = (scores["class"] + scores["distillation"]) / 2
        for readout, probabilities in scores.items():
            best = probabilities.topk(min(5, probabilities.shape[1]), dim=-1).indices == labels[:, None]
            for k in (1, 5):
                key = f"{readout}_top{k}"
                correct[key] = correct.get(key, 0) + int(best[:, :k].sum())
        total += len(labels)
        on_batch(len(labels))
    model.train(was_training)
    return {key: count / total for key, count in correct.items()}
