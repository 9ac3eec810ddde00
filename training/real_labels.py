"""ReaL labels: the classes that annotators found in ImageNet's validation images (arXiv:2006.07159), as shipped by
timm."""

import json
from importlib.resources import files

import torch
from torch import Tensor

from deit.errors import DataError
from training.file_images import VALIDATION_NAME
from training.images import LabelledImages


def real_labels(images: LabelledImages) -> Tensor:
    """Whether ReaL finds a class in an image, bool (images, 1000); an image it finds nothing in has no true class.

    Raises:
        DataError: an image is not named as ImageNet's validation images are, or the data has other classes.
    """
    if len(images.label_names) != 1000:
        raise DataError(f"ReaL labels are for ImageNet's 1000 classes, the data has {len(images.label_names)}")
    classes = json.loads(files("timm.data").joinpath("_info", "imagenet_real_labels.json").read_text())
    truth = torch.zeros(len(images), 1000, dtype=torch.bool)
    for index in range(len(images)):
        match = VALIDATION_NAME.search(images.file_name(index))
        if match is None or not 1 <= int(match[1]) <= len(classes):
            raise DataError(
                f"{images.source(index)} is not named ILSVRC2012_val_00000001 and so on, which identifies the image "
                "that ReaL labels"
            )
        truth[index, classes[int(match[1]) - 1]] = True
    return truth
