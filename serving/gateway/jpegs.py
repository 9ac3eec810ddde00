"""JPEGs that Triton decodes, if it has the model for that (deit/jpeg_step.py): their bytes are sent unchanged.

What that model leaves, and all that is not surely a plain JPEG, goes the usual way: decoder.py decodes or refuses it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deit.preprocessing import Preprocessing
from serving.gateway.models import ServedModel
from serving.gateway.uploads import Upload

MOST_BYTES = 32 * 2**20
"""Total size of the files in one request; a gRPC message may have twice as much (connection.py)."""


@dataclass(frozen=True, eq=False)
class Jpeg:
    """A file for Triton, and what it is made into.

    Attributes:
        largest_batch: images that the model takes at once.
    """

    content: bytes
    preprocessing: Preprocessing
    largest_batch: int


ModelImage = npt.NDArray[np.uint8] | Jpeg
"""What is sent to Triton: pixels (H, W, 3), or a file."""


def bytes_of_files(images: Iterable[ModelImage]) -> int:
    return sum(len(each.content) for each in images if isinstance(each, Jpeg))


class LeftToGateway(Exception):
    """Triton did not decode the file; it may be damaged or unusual, or the decoder there died."""


def jpeg_of(upload: Upload, model: ServedModel, max_pixels: int) -> Jpeg | None:
    """The upload for Triton to decode; None if its header shows that Triton should not.

    Args:
        max_pixels: more than that only the gateway's decoders take, at a fraction of their size.
    """
    if not model.decodes_jpegs or len(upload.content) > MOST_BYTES:
        return None
    header = upload.header
    if header.format != "JPEG" or header.first_scan is None or not 0 < (header.pixels or 0) <= max_pixels:
        return None
    return Jpeg(upload.content, model.preprocessing, model.largest_batch)
