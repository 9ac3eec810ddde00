"""From an uploaded image to the answer: decode, ask the model, pick the best classes, compare the heads."""

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.gateway.deadline import Deadline
from serving.gateway.decoder import Decoder
from serving.gateway.errors import DeadlineExceeded, MalformedRequest
from serving.gateway.models import ServedModel
from serving.gateway.pixels import as_png
from serving.gateway.record import ImageRecord, RequestRecord
from serving.gateway.schemas import HeadsBody, ImageAnswer, PredictionBody
from serving.gateway.triton_client import Probabilities, TritonClient


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a request wants to know of each of its images; checked against the model."""

    model: ServedModel
    version: str
    top_k: int
    min_probability: float | None
    with_heads: bool
    with_pixels: bool


class Classifier:
    """Answers questions about images, each image on its own."""

    def __init__(self, client: TritonClient, decoder: Decoder) -> None:
        self._client = client
        self._decoder = decoder

    async def answer(
        self, content: bytes, question: Question, *, deadline: Deadline, record: RequestRecord
    ) -> ImageAnswer:
        """The answer for one image.

        Raises:
            Problem: the image is refused, or the model gives no answer in time.
        """
        if not content:
            raise MalformedRequest("the body holds no bytes; send an image in JPEG, PNG or WebP")
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                prepared = await self._decoder.model_input(content, question.model.preprocessing)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the image was not decoded {deadline.allowed_s:g} s after the request began"
            ) from error
        record.trace_stages(prepared.stages_s)
        asked_s = time.monotonic()
        with record.model_call(question.model.name) as headers:
            answer = await self._client.classify(
                question.model.name,
                prepared.pixels,
                timeout_s=deadline.remaining_s(),
                request_id=record.request_id,
                version=question.version,
                with_heads=question.with_heads,
                headers=headers,
            )
        stages_s = {**prepared.stages_s, "model": time.monotonic() - asked_s}
        heads = None if answer.heads is None else compare(*answer.heads, question)
        heads_agree = None if heads is None else heads.agree
        record.images.append(ImageRecord(version=answer.version, stages_s=stages_s, heads_agree=heads_agree))
        predictions = best(answer.probabilities, question.model.labels, question.top_k)
        abstained = None
        if question.min_probability is not None:
            predictions = [each for each in predictions if each.probability >= question.min_probability]
            abstained = not predictions
        return ImageAnswer(
            version=answer.version,
            predictions=predictions,
            abstained=abstained,
            heads=heads,
            pixels=await as_png(prepared.pixels) if question.with_pixels else None,
        )


def best(probabilities: Probabilities, labels: tuple[str, ...], count: int) -> list[PredictionBody]:
    """The `count` most probable classes, best first; of equals the lower index."""
    candidates = np.flatnonzero(probabilities >= np.partition(probabilities, -count)[-count])
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")][:count].tolist()
    return [PredictionBody(index=i, label=labels[i], probability=float(probabilities[i])) for i in order]


def compare(class_head: Probabilities, distillation_head: Probabilities, question: Question) -> HeadsBody:
    return HeadsBody.model_validate(
        {
            "class": best(class_head, question.model.labels, question.top_k),
            "distillation": best(distillation_head, question.model.labels, question.top_k),
            "agree": bool(class_head.argmax() == distillation_head.argmax()),
            "jensen_shannon_divergence": jensen_shannon_divergence(class_head, distillation_head),
        }
    )


def jensen_shannon_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """How far two distributions are apart, in bits: 0 for equal ones, 1 for those that share no class.

    The mean of both Kullback-Leibler divergences from their mixture (Lin 1991, IEEE Trans. Inf. Theory 37(1)).
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    mixture = (p + q) / 2
    bits = [np.sum(each[each > 0] * np.log2(each[each > 0] / mixture[each > 0])) for each in (p, q)]
    return float(np.clip(np.mean(bits), 0, 1))  # rounding may leave the range by 1e-16
