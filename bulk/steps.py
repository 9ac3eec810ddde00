"""Turns a part into its output file, by the gateway's rules, including its refusals."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bulk.model import Session, StoredModel
from bulk.results import write_part
from bulk.sources import Part, read_images
from deit.errors import PictureError
from deit.model_input import model_input
from deit.pictures import PictureLimits


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every part needs.

    Attributes:
        batch_size: number of images that the model computes at once.
    """

    images: str
    output: str
    model: StoredModel = field(repr=False)
    top_k: int
    batch_size: int
    max_image_pixels: int


@dataclass(frozen=True)
class Decoded:
    """A part as the model reads it.

    Attributes:
        pixels: uint8 (N, H, W, 3), zero where there is a problem.
        problems: why an image has no result, or None.
    """

    part: Part
    pixels: npt.NDArray[np.uint8]
    problems: list[str | None]


@dataclass(frozen=True)
class Done:
    """How many images of a part have a row now, and how many of these failed."""

    images: int
    problems: int


def decode(work: Work, part: Part) -> Decoded:
    """Raises DataError when the data set changed since its parts were found."""
    limits = PictureLimits(max_pixels=work.max_image_pixels)
    size = work.model.preprocessing.image_size
    pixels = np.zeros((len(part.names()), size, size, 3), np.uint8)
    problems: list[str | None] = []
    for place, content in enumerate(read_images(work.images, part)):
        if isinstance(content, OSError):
            problems.append(f"unreadable: {content}")
            continue
        try:
            pixels[place] = model_input(content, work.model.preprocessing, limits)
            problems.append(None)
        except PictureError as error:
            problems.append(f"{error.refusal}: {error}")
    return Decoded(part, pixels, problems)


def classify(work: Work, session: Session, decoded: Decoded) -> Done:
    """Write the file of the part."""
    rows = list(_rows(work, session, decoded))
    write_part(work.output, decoded.part.number, rows)
    return Done(len(rows), sum(problem is not None for problem in decoded.problems))


def _rows(work: Work, session: Session, decoded: Decoded) -> Iterator[dict[str, object]]:
    model = work.model
    origin = {"model": model.name, "version": model.version, "model_sha256": model.digest}
    starts = range(0, len(decoded.pixels), work.batch_size)
    probabilities = np.concatenate(
        [session.probabilities(decoded.pixels[start : start + work.batch_size]) for start in starts]
    )
    for name, row, problem in zip(decoded.part.names(), probabilities, decoded.problems, strict=True):
        if problem is not None:
            yield {"image": name, "problem": problem, **origin}
            continue
        best = np.argsort(-row, kind="stable")[: work.top_k]
        yield {
            "image": name,
            "index": int(best[0]),
            "label": model.labels[best[0]],
            "probability": float(row[best[0]]),
            "indices": best.tolist(),
            "probabilities": row[best].tolist(),
            **origin,
        }
