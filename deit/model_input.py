"""From the bytes of an image file to the pixels that a model reads, as the server does it by default.

Evaluation, export, `deit classify-dataset` and the accuracy benchmark call this, so their results hold for the server.
"""

import numpy as np
import numpy.typing as npt

from deit.picture_header import Header
from deit.pictures import PictureLimits, read_picture
from deit.preprocessing import Preprocessing, resize_and_crop


def model_input(
    content: bytes, preprocessing: Preprocessing, limits: PictureLimits, *, header: Header | None = None
) -> npt.NDArray[np.uint8]:
    """uint8 (image_size, image_size, 3), RGB. Raises PictureError as `read_picture` does."""
    picture = read_picture(content, limits, header=header, shorter_px=preprocessing.resize_px)
    return resize_and_crop(picture.image, preprocessing, full_size=picture.full_size)
