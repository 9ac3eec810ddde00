"""Which of several Tritons is asked, and what is asked of another one: servers on loopback that speak Triton's gRPC."""

import asyncio
import contextlib
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferResponse
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from deit.model import PROBABILITIES
from serving.gateway.admission import Admission
from serving.gateway.classification import Classifier
from serving.gateway.deadline import Deadline
from serving.gateway.decoder import Decoder
from serving.gateway.errors import NotReady, Overloaded
from serving.gateway.following import look_up
from serving.gateway.joining import Joiner
from serving.gateway.metrics import Metrics
from serving.gateway.models import ServedModel
from serving.gateway.question import Question
from serving.gateway.record import RequestRecord
from serving.gateway.shadow import Shadow
from serving.gateway.tritons import Triton, Tritons
from serving.gateway.uploads import Upload
from serving.settings.decoding import Decoding
from serving.settings.limits import Limits
from tests.conftest import encoded, photograph
from tests.serving.conftest import PREPROCESSING

MODEL = ServedModel(
    name="tiny",
    versions=("1",),
    labels=("a", "b"),
    has_heads=False,
    preprocessing=PREPROCESSING,
    provenance=None,
    largest_batch=8,
    is_on_gpu=False,
)
NEWER = replace(MODEL, versions=("2",), preprocessing=replace(PREPROCESSING, image_size=48))
PICTURE = Upload(filename="", content=encoded(photograph(64, 48), "PNG"))
QUESTION = Question(model="tiny", version=None, top_k=1, min_probability=None, with_heads=False, with_pixels=False)


class Scripted(GRPCInferenceServiceServicer):
    """Answers, or fails in one way; knows the shapes that it was asked with."""

    def __init__(self, failure=None):
        self.failure = failure
        self.shapes = []

    async def ModelInfer(self, request, context):  # noqa: N802
        self.shapes.append(tuple(request.inputs[0].shape))
        if self.failure is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.failure)
        response = ModelInferResponse(model_name=request.model_name, model_version=request.model_version)
        response.outputs.add(name=PROBABILITIES, datatype="FP32", shape=(1, 2))
        response.raw_output_contents.append(np.array([0.75, 0.25], np.float32).tobytes())
        return response


def asked(*scripted, models, times):
    """Ask `times` about a picture, of these Tritons that serve these models; each outcome, a version or a Problem."""

    async def ask():
        async with contextlib.AsyncExitStack() as stack:
            members = []
            for each, model in zip(scripted, models, strict=True):
                server = grpc.aio.server()
                add_GRPCInferenceServiceServicer_to_server(each, server)
                port = server.add_insecure_port("127.0.0.1:0")
                await server.start()
                stack.push_async_callback(server.stop, None)
                members.append(Triton(f"127.0.0.1:{port}", {model.name: model}))
                stack.push_async_callback(members[-1].client.close)
            decoder = Decoder(Decoding(processes=1), Limits(), lambda: None)
            await decoder.start()
            stack.callback(decoder.close)
            admission = Admission(Limits())
            shadow = Shadow(admission, Metrics({}, admission))
            classifier = Classifier(
                Tritons(lambda _: None, *members),
                decoder,
                Joiner(1, lambda *_: None),
                shadow,
                max_pixels=1,
                count_jpeg=print,
            )
            outcomes = []
            for _ in range(times):
                deadline = Deadline(allowed_s=30, at_s=time.monotonic() + 30)
                record = RequestRecord(request_id="x", started_s=time.monotonic())
                try:
                    answer = await classifier.answer(PICTURE, QUESTION, deadline=deadline, record=record)
                    outcomes.append(answer.version)
                except (NotReady, Overloaded) as problem:
                    outcomes.append(type(problem))
            return outcomes

    return asyncio.run(ask())


def test_each_is_asked_in_turn():
    one, other = Scripted(), Scripted()
    assert asked(one, other, models=[MODEL, MODEL], times=10) == ["1"] * 10
    assert len(one.shapes) == len(other.shapes) == 5


def test_what_a_full_queue_refused_goes_to_no_other_queue():
    one, other = Scripted("[request id: 1] Exceeds maximum queue size"), Scripted()
    outcomes = asked(one, other, models=[MODEL, MODEL], times=10)
    assert sorted(map(str, outcomes)) == sorted(map(str, ["1"] * 5 + [Overloaded] * 5))
    assert len(one.shapes) == len(other.shapes) == 5, "nothing was asked twice"


@pytest.mark.parametrize(
    "failure", ["Server is stopping, scheduler for model has stopped accepting new requests", "Socket closed"]
)
def test_what_a_lost_triton_did_not_answer_is_asked_once_elsewhere(failure):
    one, other = Scripted(failure), Scripted()
    assert asked(one, other, models=[MODEL, MODEL], times=10) == ["1"] * 10
    assert len(other.shapes) == 10
    assert asked(Scripted(failure), models=[MODEL], times=2) == [NotReady] * 2
    one, other = Scripted(failure), Scripted(failure)
    assert asked(one, other, models=[MODEL, MODEL], times=1) == [NotReady]
    assert len(one.shapes) == len(other.shapes) == 1


def test_another_that_serves_another_version_gets_pixels_of_its_own():
    one, other = Scripted("Socket closed"), Scripted()
    assert asked(one, other, models=[MODEL, NEWER], times=4) == ["2"] * 4
    assert set(one.shapes) == {(1, 32, 32, 3)}
    assert set(other.shapes) == {(1, 48, 48, 3)}


def test_a_name_and_a_list_are_looked_up():
    found = asyncio.run(look_up(["127.0.0.1:1", "127.0.0.2:1", "[::1]:2", "no-such-name.invalid:1"]))
    assert found == {"127.0.0.1:1", "127.0.0.2:1", "[::1]:2"}
