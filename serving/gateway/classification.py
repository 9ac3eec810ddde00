"""From an uploaded image to the prediction: decode, run the model, pick the best classes, compare the heads."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from deit.preprocessing import Preprocessing
from serving.gateway.capture import Capture, Captured
from serving.gateway.deadline import Deadline
from serving.gateway.decoder import Decoder
from serving.gateway.decoder_handle import ModelInput
from serving.gateway.errors import DeadlineExceeded, InvalidParameter, MalformedRequest, NotReady
from serving.gateway.inside import look_inside
from serving.gateway.joining import Joiner
from serving.gateway.jpegs import LeftToGateway, jpeg_of
from serving.gateway.models import ServedModel
from serving.gateway.png import as_png
from serving.gateway.question import Question
from serving.gateway.record import ImageRecord, RequestRecord
from serving.gateway.schemas import HeadsBody, ImageAnswer, PredictionBody
from serving.gateway.shadow import Shadow, ShadowImage
from serving.gateway.triton_client import ModelOutput, Probabilities, VersionChanged
from serving.gateway.tritons import Tritons
from serving.gateway.uploads import ReadyPixels, Upload

MOST_CLASSES = 1000
"""Classes of a model that metrics count one by one; those with a higher index are counted together."""

OTHERS = "others"


@dataclass(frozen=True)
class AnsweredImage:
    """An image and the model's answer.

    Attributes:
        pixels: uint8 (H, W, 3), the model's input; None if Triton decoded the picture.
        stages_s: seconds by stage.
    """

    model: ServedModel
    pixels: npt.NDArray[np.uint8] | None
    answer: ModelOutput
    stages_s: dict[str, float]


@dataclass(frozen=True, eq=False)
class Classifier:
    """Classifies images, each one separately.

    Args:
        max_pixels: of an image that is decoded whole.
        count_jpeg: called for each JPEG that Triton was asked to decode, with whether it did.
    """

    tritons: Tritons
    decoder: Decoder
    joiner: Joiner
    shadow: Shadow
    max_pixels: int
    count_jpeg: Callable[[bool], None]
    capture: Capture | None = None

    async def answer(
        self, upload: Upload, question: Question, *, deadline: Deadline, record: RequestRecord
    ) -> ImageAnswer:
        """The answer for one image.

        Raises:
            Problem: the image is refused, or the model does not answer in time.
        """
        asked = await self.output(upload, question, deadline=deadline, record=record)
        answer, labels = asked.answer, asked.model.labels
        top_k = min(question.top_k, len(labels))
        heads = None if answer.heads is None else compare(*answer.heads, labels, top_k)
        predictions = best(answer.probabilities, labels, top_k)
        abstained = None
        if question.min_probability is not None:
            predictions = [each for each in predictions if each.probability >= question.min_probability]
            abstained = not predictions
        if question.abstains and asked.model.can_abstain:  # another version may have come meanwhile
            abstained = bool(abstained) or asked.model.is_unfamiliar(answer.probabilities)
            predictions = [] if abstained else predictions
        inside = None
        if question.explainer is not None:
            assert asked.pixels is not None
            began_s = time.monotonic()
            inside = await look_inside(
                self.tritons, question.explainer, asked.model, asked.pixels, deadline=deadline, record=record
            )
            asked.stages_s["explain"] = time.monotonic() - began_s
        return ImageAnswer(
            version=answer.version,
            predictions=predictions,
            abstained=abstained,
            heads=heads,
            explanation=await inside.heat_maps() if inside and question.with_explanation else None,
            embedding=inside.embedding() if inside and question.with_embedding else None,
            pixels=await as_png(asked.pixels) if question.with_pixels and asked.pixels is not None else None,
        )

    async def output(
        self, image: Upload | ReadyPixels, question: Question, *, deadline: Deadline, record: RequestRecord
    ) -> AnsweredImage:
        """The model's output for one image, over all classes. Raises as `answer` does."""
        asked = await self._ask(image, question, deadline=deadline, record=record)
        answer, labels, heads = asked.answer, asked.model.labels, asked.answer.heads
        index = int(answer.probabilities.argmax())
        record.images.append(
            ImageRecord(
                version=answer.version,
                stages_s=asked.stages_s,
                best_label=labels[index] if index < MOST_CLASSES else OTHERS,
                confidence=float(answer.probabilities[index]),
                heads_agree=None if heads is None else bool(heads[0].argmax() == heads[1].argmax()),
            )
        )
        if self.capture is not None and isinstance(image, Upload) and self.capture.takes(record.request_id):
            name, version = asked.model.name, answer.version
            self.capture.keep(Captured(image, record.request_id, name, version, labels, answer.probabilities))
        if question.shadow is not None and isinstance(image, Upload):
            self.shadow.begin(self._shadow_image(image, asked, question.shadow, deadline.allowed_s, record.request_id))
        return asked

    def _shadow_image(
        self, image: Upload, answered: AnsweredImage, candidate: ServedModel, allowed_s: float, request_id: str
    ) -> ShadowImage:
        """Runs the candidate on an image that the model has answered; with the same pixels if it takes the same."""
        assert answered.pixels is not None
        pixels, reads_the_same = answered.pixels, candidate.preprocessing == answered.model.preprocessing
        question = Question(
            model=candidate.name,
            version=candidate.version,
            top_k=1,
            min_probability=None,
            with_heads=False,
            with_pixels=False,
        )

        async def ask() -> tuple[ModelOutput, float]:
            found = await self._ask(
                image,
                question,
                deadline=Deadline(allowed_s=allowed_s, at_s=time.monotonic() + allowed_s),
                record=RequestRecord(request_id=request_id, started_s=time.monotonic()),
                prepared=(candidate.preprocessing, ModelInput(pixels, {})) if reads_the_same else None,
            )
            return found.answer, found.stages_s["model"]

        return ShadowImage(
            model=answered.model,
            answer=answered.answer,
            candidate=candidate,
            bytes=len(image.content) + pixels.nbytes,
            is_possible=lambda: reads_the_same or self.decoder.idle > 1,  # one stays free for a caller
            ask=ask,
        )

    async def _ask(
        self,
        image: Upload | ReadyPixels,
        question: Question,
        *,
        deadline: Deadline,
        record: RequestRecord,
        prepared: tuple[Preprocessing, ModelInput] | None = None,
    ) -> AnsweredImage:
        """Decode the image for what a Triton serves, and ask a Triton that serves exactly that.

        If that one is lost, stops, or serves another version by now, the image is sent once more, to another Triton if
        there is one. After a full queue's refusal no other queue is tried, because that makes an overload worse.

        Args:
            prepared: the pixels, and for which preprocessing they were made.
        """
        asked_s, failed, failures = time.monotonic(), None, 0
        # What else is done with the pixels needs them here.
        may_leave_decoding = not (question.explainer or question.with_pixels or question.shadow or prepared)
        while True:
            try:
                model = await self.tritons.model(question.model, question.version, besides=failed)
            except NotReady:
                if not question.is_canary or record.canary is None or record.canary.model != question.model:
                    raise
                # The canary has just ended, or does not answer; the served version of the same model does.
                record.canary = replace(record.canary, answers=False)
                question = replace(question, version=None, is_canary=False)
                failed, failures = None, 0
                continue
            if question.with_heads and not model.has_heads:
                raise InvalidParameter(f"the model {model.name} has one head; leave heads out")
            jpeg, pixels, stages_s = None, None, {}
            if may_leave_decoding and isinstance(image, Upload):
                jpeg = jpeg_of(image, model, self.max_pixels)
            if jpeg is None:
                if prepared is None or prepared[0] != model.preprocessing:
                    prepared = model.preprocessing, await self._pixels(image, model, deadline)
                    record.trace_stages(prepared[1].stages_s)
                    asked_s = time.monotonic()
                pixels, stages_s = prepared[1].pixels, prepared[1].stages_s
            to_send = pixels if jpeg is None else jpeg
            assert to_send is not None
            triton = self.tritons.pick(model, besides=failed)
            if triton is None:  # what it serves has changed while the image was decoded
                continue
            try:
                with record.model_call(model.name) as headers:
                    answer = await self.joiner.classify(
                        triton.client,
                        model,
                        to_send,
                        version=question.version or model.version,
                        timeout_s=deadline.remaining_s(),
                        request_id=record.request_id,
                        with_heads=question.with_heads,
                        headers=headers,
                    )
            except LeftToGateway:
                self.count_jpeg(False)
                may_leave_decoding = False
                continue
            except NotReady as problem:
                failures += 1
                if failures == 2:
                    raise
                failed = None if isinstance(problem, VersionChanged) else triton  # what it serves is read again
                continue
            if jpeg is not None:
                self.count_jpeg(True)
            return AnsweredImage(model, pixels, answer, {**stages_s, "model": time.monotonic() - asked_s})

    async def _pixels(self, image: Upload | ReadyPixels, model: ServedModel, deadline: Deadline) -> ModelInput:
        if isinstance(image, ReadyPixels):
            if image.pixels.shape != model.input_shape:
                raise InvalidParameter(f"pixels for the model {model.name} have the shape {list(model.input_shape)}")
            return ModelInput(image.pixels, {})
        if not image.content:
            raise MalformedRequest("the body is empty; send an image in JPEG, PNG, WebP or AVIF")
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await self.decoder.model_input(image.content, model.preprocessing, header=image.header)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the image was not decoded {deadline.allowed_s:g} s after the request began"
            ) from error


def best(probabilities: Probabilities, labels: tuple[str, ...], count: int) -> list[PredictionBody]:
    """The `count` most probable classes, best first; ties go to the lower index."""
    candidates = np.flatnonzero(probabilities >= np.partition(probabilities, -count)[-count])
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")][:count].tolist()
    return [PredictionBody(index=i, label=labels[i], probability=float(probabilities[i])) for i in order]


def compare(
    class_head: Probabilities, distillation_head: Probabilities, labels: tuple[str, ...], top_k: int
) -> HeadsBody:
    return HeadsBody.model_validate(
        {
            "class": best(class_head, labels, top_k),
            "distillation": best(distillation_head, labels, top_k),
            "agree": bool(class_head.argmax() == distillation_head.argmax()),
            "jensen_shannon_divergence": jensen_shannon_divergence(class_head, distillation_head),
        }
    )


def jensen_shannon_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """How far apart two distributions are, in bits: 0 for equal ones, 1 for those that share no class.

    The mean of both Kullback-Leibler divergences from their mixture (Lin 1991, IEEE Trans. Inf. Theory 37(1)).
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    mixture = (p + q) / 2
    bits = [np.sum(each[each > 0] * np.log2(each[each > 0] / mixture[each > 0])) for each in (p, q)]
    return float(np.clip(np.mean(bits), 0, 1))  # rounding may leave the range by 1e-16
