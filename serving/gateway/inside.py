"""Explains predictions with a second model that `deit export --explain` publishes; other requests do not use it."""

import asyncio
import base64
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.model import CLASS_FEATURES, CLASS_RELEVANCE, DISTILLATION_FEATURES, DISTILLATION_RELEVANCE
from serving.gateway.deadline import Deadline
from serving.gateway.errors import Internal, NotReady
from serving.gateway.models import ServedModel
from serving.gateway.png import as_png
from serving.gateway.record import RequestRecord
from serving.gateway.schemas import ByToken
from serving.gateway.tritons import Tritons

PICTURE_SHARE = 0.4
"""How much of the greyscale image shows through a heat map."""

# From black over red to pale yellow, which also reads in print and for the colour-blind: five colours of matplotlib's
# colour map "inferno".
COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Inside:
    """Relevance and features, of the class token and then, if there is one, of the distillation token.

    Attributes:
        pixels: uint8 (H, W, 3), the model's input.
        relevance: shares of the patches, float32 (rows, columns).
        features: float32 (width,).
    """

    pixels: npt.NDArray[np.uint8]
    relevance: tuple[npt.NDArray[np.float32], ...]
    features: tuple[npt.NDArray[np.float32], ...]

    async def heat_maps(self) -> ByToken:
        # in a thread, for others wait meanwhile
        maps = [await asyncio.to_thread(heat_map, self.pixels, each) for each in self.relevance]
        return by_token([await as_png(each) for each in maps])

    def embedding(self) -> ByToken:
        return by_token([base64.b64encode(each.astype("<f4").tobytes()).decode() for each in self.features])


async def look_inside(
    tritons: Tritons,
    explainer: str,
    model: ServedModel,
    pixels: npt.NDArray[np.uint8],
    *,
    deadline: Deadline,
    record: RequestRecord,
) -> Inside:
    """Run `explainer` on the pixels that `model` has classified.

    Raises:
        NotReady: it does not answer, or explains another version by now.
        Problem: as for any question to a model.
    """
    asked = await tritons.model(explainer, None)
    triton = tritons.pick(asked) if asked.explains(model) else None
    if triton is None:
        raise NotReady(f"the model {explainer} currently explains another version of {model.name}")
    count = 2 if asked.has_heads else 1
    names = (CLASS_RELEVANCE, DISTILLATION_RELEVANCE)[:count] + (CLASS_FEATURES, DISTILLATION_FEATURES)[:count]
    with record.model_call(asked.name) as headers:
        response = await triton.client.call(
            asked.name,
            [pixels],
            names,
            version=asked.version,
            timeout_s=deadline.remaining_s(),
            request_id=record.request_id,
            headers=headers,
        )
    found = {
        output.name: np.frombuffer(content, np.float32).reshape(tuple(output.shape)[1:])
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if not all(np.isfinite(each).all() for each in found.values()):
        raise Internal("the model did not return a usable explanation")
    values = [found[name] for name in names]
    return Inside(pixels, tuple(values[:count]), tuple(values[count:]))


def by_token(texts: list[str]) -> ByToken:
    """Args: texts of the class token and, if there is one, of the distillation token."""
    return ByToken.model_validate(dict(zip(("class", "distillation"), texts, strict=False)))


def heat_map(pixels: npt.NDArray[np.uint8], relevance: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The image in grey under the relevance in colour, from the least (dark) to the greatest (bright).

    Args:
        pixels: (H, W, 3).
        relevance: (rows, columns), of any scale.
    """
    height, width = pixels.shape[:2]
    spread = float(np.ptp(relevance)) or 1.0
    scaled = Image.fromarray((relevance - relevance.min()) / spread).resize((width, height), Image.Resampling.BILINEAR)
    steps = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(np.asarray(scaled), steps, channel) for channel in COLOURS.T], axis=-1)
    blended: npt.NDArray[np.float64] = PICTURE_SHARE * (pixels @ GREY)[..., None] + (1 - PICTURE_SHARE) * colours
    return blended.round().astype(np.uint8)
