"""Proof that the graph answers as PyTorch does, on real images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image, ImageOps

from deit.errors import DataError
from deit.model import IMAGES
from deit.preprocessing import Preprocessing, resize_and_crop
from export.joint import JointClassifier
from training.images import IMAGE_SUFFIXES, ParquetImages, decode, open_images

# float32 on both sides; ONNX Runtime fuses operators, which moves the last bits. A wrong transpose, a missing
# normalisation or averaged logits move probabilities by more than 1e-2.
LARGEST_DIFFERENCE = 1e-5

BATCH_SIZES = (1, 7, 32)  # the graph must not have taken the example's batch for a constant


@dataclass(frozen=True)
class Parity:
    """What the comparison found: the largest difference of any output, and how many images keep their first answer."""

    images: int
    max_difference: float
    same_top1: int

    @property
    def holds(self) -> bool:
        return self.max_difference < LARGEST_DIFFERENCE and self.same_top1 == self.images


def compare(classifier: JointClassifier, onnx_file: Path, images: npt.NDArray[np.uint8]) -> Parity:
    """Run both on `images` (N, H, W, 3) in batches of different sizes and compare every output."""
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    max_difference, same_top1, start = 0.0, 0, 0
    while start < len(images):
        for batch_size in BATCH_SIZES:
            batch = images[start : start + batch_size]
            if not len(batch):
                break
            graph_outputs = session.run(list(classifier.output_names), {IMAGES: batch})
            with torch.inference_mode():
                torch_outputs = [output.numpy() for output in classifier(torch.from_numpy(batch))]
            for ours, reference in zip(graph_outputs, torch_outputs, strict=True):
                # NaN would pass a comparison; the maximum of an array that holds one is NaN, which no threshold admits
                max_difference = float(np.maximum(max_difference, np.abs(ours - reference).max()))
            same_top1 += int((graph_outputs[0].argmax(axis=1) == torch_outputs[0].argmax(axis=1)).sum())
            start += len(batch)
    return Parity(images=len(images), max_difference=max_difference, same_top1=same_top1)


def load_images(path: Path, preprocessing: Preprocessing, count: int) -> npt.NDArray[np.uint8]:
    """The first `count` images, ready for the model: uint8 (count, H, W, 3).

    Args:
        path: a data set, of which the test split is taken, a parquet file, or a folder with image files.

    Raises:
        DataError: there are no images, or fewer than `count`.
    """
    if path.is_dir() and (files := sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)):
        pictures = [_open(file) for file in files[:count]]
    else:
        split = ParquetImages([path]) if path.is_file() else open_images(path, "test")
        pictures = [decode(split, index) for index in range(min(count, len(split)))]
    if len(pictures) < count:
        raise DataError(
            f"{path} has {len(pictures)} images, {count} are asked for: add images, or lower --parity-images"
        )
    return np.stack([resize_and_crop(picture, preprocessing) for picture in pictures])


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file} cannot be decoded: {error}") from error
