"""Accuracy of a model through PyTorch, ONNX Runtime, Triton and HTTP, and how often these and its variants differ."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from rich.progress import track

from benchmark.answers import Pixels, Probabilities, ask_http, ask_onnx, ask_pytorch, ask_triton, onnx_session
from benchmark.config import AccuracyConfig
from benchmark.images import labelled_images
from benchmark.outcome import console
from benchmark.repository import onnx_file
from benchmark.results import Figure, Result
from benchmark.server import addresses
from deit.errors import BenchmarkError, DataError
from deit.preprocessing import Preprocessing
from deit.repository.models import ModelVersion, find_model, read_version
from export.joint import JointClassifier
from training.images import LabelledImages, prepare
from training.opening import open_model
from training.real_labels import real_labels

CHUNK = 512
"""Images in memory at once: 77 MB of pixels at 224."""


@dataclass(frozen=True)
class Asker:
    """One way to run one model. HTTP takes the images as files, the others as pixels."""

    model: ModelVersion
    way: str
    ask: Callable[..., Probabilities]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model and its answers, in one way."""

    model: ModelVersion
    way: str
    probabilities: Probabilities


@dataclass(frozen=True, kw_only=True)
class Judged:
    """All answers.

    Attributes:
        indices: of the evaluated images in the data set; undecodable ones are left out.
        asked: first the model itself in its first way, which the others are compared with.
    """

    images: LabelledImages
    indices: tuple[int, ...]
    asked: tuple[Asked, ...]
    results: tuple[Result, ...]


def measure_accuracy(config: AccuracyConfig) -> Judged:
    """A result for each way and each variant.

    Raises:
        BenchmarkError, DataError, CheckpointError: a way, a variant, the data or the checkpoint is missing.
    """
    images = labelled_images(config.data)
    repository = config.serve or config.model_repository
    model = read_version(find_model(repository, config.model))
    preprocessing = model.preprocessing
    if len(model.labels) != len(images.label_names):
        raise BenchmarkError(
            f"{config.model} has {len(model.labels)} classes, but {config.data} has {len(images.label_names)}"
        )
    variants = [read_version(find_model(repository, name)) for name in config.variant]
    if different := [each.name for each in variants if each.preprocessing != preprocessing]:
        raise BenchmarkError(f"{', '.join(different)} preprocesses images differently from {model.name}")

    indices: list[int] = []
    with addresses(config) as (url, triton_url):
        askers = [each for one in (model, *variants) for each in ways_of_asking(config, one, model, url, triton_url)]
        if not askers:
            raise BenchmarkError(
                f"{config.model} is not an ONNX file that ONNX Runtime can run: give --way triton or http"
            )
        found: list[list[Probabilities]] = [[] for _ in askers]
        count = min(config.count or len(images), len(images))
        for start in track(range(0, count, CHUNK), description="judging", console=console, transient=True):
            pixels, readable = prepared(images, preprocessing, range(start, min(start + CHUNK, count)))
            if not readable:
                continue
            uploads = [images.encoded(index) for index in readable]
            for asker, answers in zip(askers, found, strict=True):
                answers.append(asker.ask(uploads if asker.way == "http" else pixels))
            indices += readable
    if not indices:
        raise DataError(f"none of the first {count} images of {config.data} can be decoded")
    asked = [
        Asked(model=asker.model, way=asker.way, probabilities=np.concatenate(answers))
        for asker, answers in zip(askers, found, strict=True)
    ]
    truth = np.zeros((len(indices), len(model.labels)), bool)
    truth[np.arange(len(indices)), [images.label(index) for index in indices]] = True
    real = real_labels(images)[indices].numpy() if config.real else None

    reference = asked[0].probabilities
    results = tuple(
        Result(
            kind="accuracy",
            model=each.model.name,
            precision=each.model.precision,
            conditions={
                "way": each.way,
                "data": config.data.name,
                "count": len(indices),
                "reference": f"{asked[0].model.name} {asked[0].way}",
            },
            figures={
                **hits(each.probabilities, truth),
                **(
                    {}
                    if real is None
                    else {f"real_{name}": value for name, value in hits(each.probabilities, real).items()}
                ),
                "disagreement": Figure(value=disagreement(each.probabilities, reference), unit="share"),
                "max_difference": Figure(value=float(np.abs(each.probabilities - reference).max()), unit="probability"),
            },
        )
        for each in asked
    )
    return Judged(images=images, indices=tuple(indices), asked=tuple(asked), results=results)


def hits(probabilities: Probabilities, truth: npt.NDArray[np.bool_]) -> dict[str, Figure]:
    """Top-1 and top-5: share of the images with a true class first, or among the first five.

    Args:
        truth: (N, classes); images without a true class, which ReaL has, do not count.
    """
    counted = truth.any(axis=1)
    best = np.argsort(-probabilities[counted], axis=1, kind="stable")[:, :5]
    right = np.take_along_axis(truth[counted], best, axis=1)
    return {
        "top1": Figure(value=float(right[:, 0].mean()), unit="share"),
        "top5": Figure(value=float(right.any(axis=1).mean()), unit="share"),
    }


def disagreement(left: Probabilities, right: Probabilities) -> float:
    """Share of the images on which two disagree."""
    return float((left.argmax(axis=1) != right.argmax(axis=1)).mean())


def prepared(images: LabelledImages, preprocessing: Preprocessing, indices: range) -> tuple[Pixels, list[int]]:
    """Model inputs of the images, and the indices of those that can be decoded."""
    size = preprocessing.image_size
    pixels, readable = [np.empty((0, size, size, 3), np.uint8)], []
    for index in indices:
        try:
            pixels.append(prepare(images, index, preprocessing)[None])
        except DataError:
            continue
        readable.append(index)
    return np.concatenate(pixels), readable


def ways_of_asking(
    config: AccuracyConfig, model: ModelVersion, judged: ModelVersion, url: str, triton_url: str
) -> list[Asker]:
    """The requested ways that this model has: a variant has no PyTorch model, and perhaps no ONNX file."""
    askers = []
    for way in config.way:
        if way == "onnx" and (graph := onnx_file(model)) is not None:
            askers.append(Asker(model, way, partial(ask_onnx, onnx_session(graph))))
        elif way == "triton":
            askers.append(Asker(model, way, partial(ask_triton, triton_url, model.name)))
        elif way == "http":
            askers.append(Asker(model, way, partial(ask_http, url, model.name, len(model.labels))))
        elif way == "pytorch" and model is judged:
            classifier = in_pytorch(config, model.preprocessing)
            askers.append(Asker(model, way, partial(ask_pytorch, classifier)))
    return askers


def in_pytorch(config: AccuracyConfig, preprocessing: Preprocessing) -> JointClassifier:
    """The checkpoint in PyTorch, with the graph's normalisation and read-out."""
    assert config.checkpoint is not None  # AccuracyConfig checks it
    trained = open_model(config.checkpoint, "--checkpoint", architecture=config.architecture)
    return JointClassifier(trained.model, preprocessing).eval()
