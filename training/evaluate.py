"""How often a model is right, of each read-out that it offers, and how often its read-outs differ.

Read-outs: "class" always; for a distilled model also "distillation", "joint", the mean of both softmaxes (paper
section 4, "Classification with our approach: joint classifiers"), and "joint_logit", the mean of both logits, which is
what DeiT's and timm's code answer with.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.data import CorruptImages
from training.model import Normalize, Teacher, head_logits
from training.processes import Processes

LABEL, TEACHER = "label", "teacher"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Exact over all images and processes.

    Attributes:
        images: counted, without those that cannot be decoded.
        accuracy: in 0..1 by read-out, such as {"joint_top1": 0.81, "class_top5": …}; with ReaL labels also
            {"joint_real_top1": …}, over the images that have such labels.
        deciders: what decides on an image: the label, the teacher if there is one, and each read-out.
        disagreement: share of the images on which two deciders differ, (deciders, deciders).
    """

    images: int
    accuracy: dict[str, float]
    deciders: tuple[str, ...]
    disagreement: tuple[tuple[float, ...], ...]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    normalize: Normalize,
    device: torch.device,
    *,
    corrupt: CorruptImages,
    processes: Processes = Processes(),  # noqa: B008  frozen
    teacher: Teacher | None = None,
    real: Tensor | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Evaluate in float32, whatever the training ran in.

    Args:
        batches: uint8 images (N, 3, H, W), class indices (N,) with -1 for an undecodable image, image indices (N,).
        real: the classes that ReaL finds in each image of the split, bool (images, classes).
        on_batch: called with the number of images of each batch, for a progress bar.
    """
    was_training = model.training
    model.eval()
    names: list[str] = []
    correct = real_correct = differ = torch.zeros(0, dtype=torch.int64, device=device)
    totals = torch.zeros(2, dtype=torch.int64, device=device)  # images, images with ReaL labels
    for images, labels, indices in batches:
        readable = labels >= 0
        corrupt.add(indices[~readable].tolist())
        images, labels = normalize(images[readable].to(device)), labels[readable].to(device)
        scores = readouts(model, images)
        decisions = {LABEL: labels}
        if teacher is not None:
            decisions[TEACHER] = teacher(images).argmax(dim=-1)
        decisions |= {name: logits.argmax(dim=-1) for name, logits in scores.items()}
        if not names:
            names = list(decisions)
            correct = torch.zeros(len(scores), 2, dtype=torch.int64, device=device)
            real_correct = torch.zeros_like(correct)
            differ = torch.zeros(len(names), len(names), dtype=torch.int64, device=device)

        stacked = torch.stack(list(decisions.values()))
        differ += (stacked[:, None] != stacked[None]).sum(dim=-1)
        truth = nn.functional.one_hot(labels, next(iter(scores.values())).shape[1]).bool()
        correct += _hits(scores, truth)
        totals[0] += len(labels)
        if real is not None:
            truth = real[indices[readable]].to(device)
            real_correct += _hits(scores, truth)
            totals[1] += truth.any(dim=-1).sum()
        on_batch(len(readable))
    model.train(was_training)

    for counts in (correct, real_correct, differ, totals):
        processes.sum(counts)
    count, real_count = totals.tolist()
    accuracy = {}
    for place, name in enumerate(scores):
        for column, k in enumerate((1, 5)):
            accuracy[f"{name}_top{k}"] = correct[place, column].item() / count
            if real is not None:
                accuracy[f"{name}_real_top{k}"] = real_correct[place, column].item() / max(real_count, 1)
    matrix = tuple(tuple(number / count for number in row) for row in differ.tolist())
    return Evaluation(images=count, accuracy=accuracy, deciders=tuple(names), disagreement=matrix)


def readouts(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each read-out answers for normalised images, (N, classes) each; only the order of the classes counts."""
    class_logits, distillation_logits = head_logits(model, images)
    if distillation_logits is None:
        return {"class": class_logits}
    return {
        "class": class_logits,
        "distillation": distillation_logits,
        "joint": joint_probabilities(class_logits, distillation_logits),
        "joint_logit": (class_logits + distillation_logits) / 2,
    }


def joint_probabilities(class_logits: Tensor, distillation_logits: Tensor) -> Tensor:
    """Mean of both heads' softmax, (N, classes)."""
    return (class_logits.softmax(dim=-1) + distillation_logits.softmax(dim=-1)) / 2


def _hits(scores: dict[str, Tensor], truth: Tensor) -> Tensor:
    """Images whose best and whose five best classes hold a true one, (read-outs, 2). truth: bool (N, classes)."""
    rows = []
    for logits in scores.values():
        hits = truth.gather(1, logits.topk(min(5, logits.shape[1]), dim=-1).indices)
        rows.append(torch.stack([hits[:, 0].sum(), hits.any(dim=-1).sum()]))
    return torch.stack(rows)
