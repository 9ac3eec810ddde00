"""The gate: the comparison on real images that a variant must pass to enter a model repository.

A variant runs on the engine that will serve it and is compared with PyTorch in float32, on images that its calibration
did not see.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from export.engines import Infer
from export.joint import JointClassifier

Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

BATCH_SIZES = (1, 7)  # and the largest: the graph must not have taken the example's batch for a constant
SMALLEST_CROWD = 32
REFERENCE_BATCH = 32
NEIGHBOURS = 8
"""Images that run both alone and inside a batch."""

# A row of probabilities adds up to 1 in float32, the type of the outputs in every precision.
LARGEST_SUM_ERROR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The limits for a precision.

    Attributes:
        agreement: smallest share of images that keep PyTorch's top-1 class.
        difference: largest difference of a probability from PyTorch's; None: any.
        neighbours: largest difference of a probability that the other images of a batch may cause.
        top1_loss: largest loss of top-1 on labelled images.
    """

    agreement: float
    difference: float | None
    neighbours: float
    top1_loss: float


# fp32: float32 on both sides; engines fuse operators, which moves the last bits, while a wrong transpose, a missing
# normalisation or averaged logits move probabilities by more than 1e-2.
# neighbours: in half precision another batch size uses another kernel, which rounds sums at other places.
THRESHOLDS = {
    "fp32": Thresholds(agreement=1.0, difference=1e-5, neighbours=1e-5, top1_loss=0.0),
    "fp16": Thresholds(agreement=0.995, difference=None, neighbours=5e-3, top1_loss=0.005),
    "bf16": Thresholds(agreement=0.995, difference=None, neighbours=2e-2, top1_loss=0.005),
    "int8": Thresholds(agreement=0.97, difference=None, neighbours=5e-3, top1_loss=0.005),
}

# On CPUs the sums of an image are the same in every batch, so only scales that are computed for each batch let
# neighbours in. GPUs use another kernel for another batch, which sums in another order. The last bit of a float32 then
# decides some roundings to int8, and one such step is a hundred thousand times as large. With the inputs of every
# QuantizeLinear of DeiT-Ti moved by 6e-8, 1e-6 and 1e-4 of their value, the probabilities of 64 photographs moved by up
# to 0.056, 0.090 and 0.089: as much as int8 itself costs (0.13), however small the cause. On an H200 it was 0.05.
# `quantization.GPU_METHODS` has no scales that are computed for each batch.
INT8_NEIGHBOURS_ON_GPU = 1e-1


def thresholds(precision: str, *, on_gpu: bool = False) -> Thresholds:
    """The limits for `precision` on CPUs or on a GPU."""
    allowed = THRESHOLDS[precision]
    return replace(allowed, neighbours=INT8_NEIGHBOURS_ON_GPU) if on_gpu and precision == "int8" else allowed


@dataclass(frozen=True, kw_only=True)
class Reference:
    """PyTorch's outputs in float32, computed once for all variants, for the images and the extremes."""

    images: Images
    labels: npt.NDArray[np.int64] | None
    outputs: list[Probabilities]
    extremes: Images
    extreme_outputs: list[Probabilities]

    @property
    def top1(self) -> float | None:
        return _top1(self.outputs[0], self.labels)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the gate found for one variant on one engine.

    Attributes:
        precision, engine: the variant, and the engine that ran it.
        images: real images that were compared.
        max_difference: largest difference of any probability of any output from PyTorch's.
        agreement: share of the images that keep PyTorch's top-1 class.
        top1, reference_top1: on the same images; None without labels.
        neighbours: largest difference between an image computed alone and inside the largest batch.
        extremes: largest difference on an image all 0, all 255 and noise.
        failures: why it may not be published, in sentences; empty when it may.
    """

    precision: str
    engine: str
    images: int
    max_difference: float
    agreement: float
    top1: float | None
    reference_top1: float | None
    neighbours: float
    extremes: float
    failures: tuple[str, ...]


def reference(classifier: JointClassifier, images: Images, labels: npt.NDArray[np.int64] | None) -> Reference:
    """Run PyTorch on `images` (N, H, W, 3) and on extreme ones."""
    height, width = images.shape[1:3]
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    extremes = np.concatenate([np.full_like(noise, 0), np.full_like(noise, 255), noise])
    return Reference(
        images=images,
        labels=labels,
        outputs=_torch_outputs(classifier, images),
        extremes=extremes,
        extreme_outputs=_torch_outputs(classifier, extremes),
    )


def judge(
    run: Infer,
    expected: Reference,
    precision: str,
    engine: str,
    *,
    largest_batch: int = SMALLEST_CROWD,
    on_gpu: bool = False,
) -> Judgement:
    """Run the engine on everything that the gate checks, in batches of up to `largest_batch`, or 32 if that is more."""
    images, most = expected.images, max(largest_batch, SMALLEST_CROWD)
    outputs = _concatenated([run(images[part]) for part in _parts(len(images), (*BATCH_SIZES, most))])
    alone = _concatenated([run(image[None]) for image in images[:NEIGHBOURS]])
    crowd = np.resize(images, (most, *images.shape[1:]))  # repeats few images
    together = [output[: len(alone[0])] for output in run(crowd)]
    extremes = run(expected.extremes)
    found = Judgement(
        precision=precision,
        engine=engine,
        images=len(images),
        max_difference=_difference(outputs, expected.outputs),
        agreement=float((outputs[0].argmax(axis=1) == expected.outputs[0].argmax(axis=1)).mean()),
        top1=_top1(outputs[0], expected.labels),
        reference_top1=expected.top1,
        neighbours=_difference(alone, together),
        extremes=_difference(extremes, expected.extreme_outputs),
        failures=(),
    )
    is_distribution = all(
        np.isfinite(output).all() and (np.abs(output.sum(axis=1) - 1) < LARGEST_SUM_ERROR).all()
        for output in [*outputs, *extremes]
    )
    failures = list(_failures(found, thresholds(precision, on_gpu=on_gpu)))
    if not is_distribution:
        failures.append("some outputs are not probabilities that add up to 1")
    return Judgement(**{**found.__dict__, "failures": tuple(failures)})


def _failures(found: Judgement, allowed: Thresholds) -> Iterator[str]:
    # Written so that NaN, which is neither above nor below anything, fails.
    if not found.agreement >= allowed.agreement:
        changed = round((1 - found.agreement) * found.images)
        yield (
            f"{changed} of {found.images} images change their top-1 class: {found.agreement:.2%} agree, "
            f"{allowed.agreement:.2%} must"
        )
    if allowed.difference is not None and not max(found.max_difference, found.extremes) < allowed.difference:
        yield (
            f"probabilities differ from PyTorch's by up to {max(found.max_difference, found.extremes):.1e}, allowed is "
            f"{allowed.difference:.0e}"
        )
    if not np.isfinite(found.max_difference + found.extremes):
        yield "some probabilities are not finite"
    if not found.neighbours <= allowed.neighbours:
        yield (
            f"an image's answer depends on its neighbours in the batch, by up to {found.neighbours:.1e}; allowed is "
            f"{allowed.neighbours:.0e}"
        )
    if found.top1 is not None and found.reference_top1 is not None:
        loss = found.reference_top1 - found.top1
        if not loss <= allowed.top1_loss + 1e-9:
            yield f"top-1 falls by {100 * loss:.2f} points, allowed: {100 * allowed.top1_loss:.1f}"


def _parts(count: int, sizes: tuple[int, ...]) -> Iterator[slice]:
    """Batches of different sizes that together are all images."""
    start = 0
    while start < count:
        for size in sizes:
            if start < count:
                yield slice(start, start + size)
            start += size


def _torch_outputs(classifier: JointClassifier, images: Images) -> list[Probabilities]:
    with torch.inference_mode():
        return _concatenated(
            [
                [output.numpy() for output in classifier(torch.from_numpy(images[start : start + REFERENCE_BATCH]))]
                for start in range(0, len(images), REFERENCE_BATCH)
            ]
        )


def _concatenated(batches: list[list[Probabilities]]) -> list[Probabilities]:
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _difference(ours: list[Probabilities], theirs: list[Probabilities]) -> float:
    # np.max, unlike max, keeps a NaN
    return float(np.max([np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)]))


def _top1(probabilities: Probabilities, labels: npt.NDArray[np.int64] | None) -> float | None:
    return None if labels is None else float((probabilities.argmax(axis=1) == labels).mean())
