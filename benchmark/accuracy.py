"""How often a model is right through each way of asking it, and how often ways and variants answer differently."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmark.accuracy_command import AccuracyConfig
from benchmark.answers import Pixels, Probabilities, ask_http, ask_onnx, ask_pytorch, ask_triton
from benchmark.images import labelled_images
from benchmark.options import addresses
from benchmark.repository import RepositoryModel, read_model
from benchmark.results import Environment, Figure, Record
from deit.errors import BenchmarkError, DataError
from deit.preprocessing import Preprocessing, resize_and_crop
from export.config import ExportConfig
from export.joint import JointClassifier
from export.source import load_source
from training.images import LabelledImages, decode
from training.real_labels import real_labels


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model and what it said, in one way."""

    model: RepositoryModel
    way: str
    probabilities: Probabilities


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Everything that was found.

    Attributes:
        indices: of the images that were judged, in the data set; undecodable ones are left out.
        asked: first the model itself in its first way, which the others are compared with.
    """

    images: LabelledImages
    indices: tuple[int, ...]
    asked: tuple[Asked, ...]
    records: tuple[Record, ...]


def measure_accuracy(config: AccuracyConfig, environment: Environment, *, command: str) -> Judged:
    """A record for each way and each variant.

    Raises:
        BenchmarkError, DataError, CheckpointError: a way, a variant, the data or the checkpoint is not there.
    """
    images = labelled_images(config.data)
    model = read_model(config.serve or config.model_repository, config.model)
    preprocessing = Preprocessing.from_json(model.preprocessing)
    if len(model.label_names) != len(images.label_names):
        raise BenchmarkError(
            f"{config.model} decides among {len(model.label_names)} classes, {config.data} has "
            f"{len(images.label_names)}"
        )
    pixels, indices = prepared(images, preprocessing, min(config.count or len(images), len(images)))
    truth = np.zeros((len(indices), len(model.label_names)), bool)
    truth[np.arange(len(indices)), [images.label(index) for index in indices]] = True
    real = real_labels(images)[list(indices)].numpy() if config.real else None

    asked = []
    variants = [read_model(config.serve or config.model_repository, name) for name in config.variant]
    with addresses(config) as (url, triton_url):
        for each in (model, *variants):
            if each.preprocessing != model.preprocessing:
                raise BenchmarkError(f"{each.name} prepares images in another way than {model.name}")
            for way in config.way:
                if way == "onnx" and each.onnx_file is not None:
                    found = ask_onnx(each.onnx_file, pixels)
                elif way == "triton":
                    found = ask_triton(triton_url, each.name, pixels)
                elif way == "http":
                    uploads = [images.encoded(index) for index in indices]
                    found = ask_http(url, each.name, uploads, len(model.label_names))
                elif way == "pytorch" and each is model:
                    found = ask_pytorch(trained(config, preprocessing), pixels)
                else:
                    continue
                asked.append(Asked(model=each, way=way, probabilities=found))

    reference = asked[0].probabilities
    records = tuple(
        Record(
            kind="accuracy",
            model=each.model.name,
            precision=each.model.precision,
            command=command,
            environment=environment,
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
    return Judged(images=images, indices=indices, asked=tuple(asked), records=records)


def hits(probabilities: Probabilities, truth: npt.NDArray[np.bool_]) -> dict[str, Figure]:
    """Share of the images whose best and whose five best classes hold a true one.

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
    """Share of the images that two decide differently."""
    return float((left.argmax(axis=1) != right.argmax(axis=1)).mean())


def prepared(images: LabelledImages, preprocessing: Preprocessing, count: int) -> tuple[Pixels, tuple[int, ...]]:
    """Model inputs of the first `count` images, and the indices of those that can be decoded."""
    pixels, indices = [], []
    for index in range(count):
        try:
            pixels.append(resize_and_crop(decode(images, index), preprocessing))
        except DataError:
            continue
        indices.append(index)
    if not pixels:
        raise DataError(f"none of the first {count} images can be decoded")
    return np.stack(pixels), tuple(indices)


def trained(config: AccuracyConfig, preprocessing: Preprocessing) -> JointClassifier:
    """The checkpoint in PyTorch, with the graph's normalisation and read-out."""
    labels = "imagenet-1k" if config.architecture is not None else None
    source = load_source(
        ExportConfig(images=config.data, checkpoint=config.checkpoint, architecture=config.architecture, labels=labels)
    )
    return JointClassifier(source.model, preprocessing).eval()
