"""Which images travel to a model in one request, and that each caller gets its own answer."""

import asyncio
import re
from dataclasses import replace

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferResponse
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, PROBABILITIES
from serving.gateway.errors import DeadlineExceeded, Internal, Overloaded
from serving.gateway.joining import Joiner
from serving.gateway.triton_client import TritonClient
from tests.serving.gateway.test_cross_talk import assert_nothing_is_mixed_up
from tests.serving.gateway.test_tritons import MODEL as ON_PROCESSOR

MODEL = replace(ON_PROCESSOR, has_heads=True, largest_batch=128, is_on_gpu=True)
FULL_QUEUE = "[request id: 1] Exceeds maximum queue size"
WITH_NAN = 255
"""An image of this value has an answer that is not a number."""


class Echo(GRPCInferenceServiceServicer):
    """Holds each request until it may answer, with the value of each image; knows what each request held."""

    def __init__(self):
        self.requests = asyncio.Queue()
        self.may_answer = asyncio.Event()
        self.given_up = asyncio.Event()
        self.failure = None

    async def ModelInfer(self, request, context):  # noqa: N802
        count = request.inputs[0].shape[0]
        values = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(count, -1)[:, 0]
        await self.requests.put((values.tolist(), request))
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        if self.failure is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.failure)
        response = ModelInferResponse(model_name=request.model_name, model_version=request.model_version)
        rows = np.stack([values / 255, 1 - values / 255], axis=1).astype(np.float32)
        rows[values == WITH_NAN] = np.nan
        for output in request.outputs:
            response.outputs.add(name=output.name, datatype="FP32", shape=(count, 2))
            response.raw_output_contents.append(rows.tobytes())
        return response

    async def arrived(self, count=1):
        """The values of the images in the next requests; simultaneous requests arrive in any order."""
        return sorted([(await self.requests.get())[0] for _ in range(count)])


def with_echo(scenario, *, images_per_request=None, model=MODEL):
    """Run scenario(ask, triton), where ask(value, ...) is a task that asks for the answer to an image of this value."""

    async def run():
        triton, server = Echo(), grpc.aio.server()
        add_GRPCInferenceServiceServicer_to_server(triton, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client, joiner = TritonClient(f"127.0.0.1:{port}"), Joiner(images_per_request, lambda *_: None)

        def ask(value, *, timeout_s=20.0, with_heads=False):
            pixels = np.full((8, 8, 3), value, np.uint8)
            request = {"version": "1", "timeout_s": timeout_s, "request_id": str(value), "with_heads": with_heads}
            return asyncio.create_task(joiner.classify(client, model, pixels, **request, headers={}))

        try:
            async with asyncio.timeout(30):
                await scenario(ask, triton)
        finally:
            await client.close()
            await server.stop(None)

    asyncio.run(run())


def value_of(output):
    return round(float(output.probabilities[0]) * 255)


@pytest.fixture
def patient(monkeypatch):
    """Images wait for each other for ever, until the test lets them go."""
    monkeypatch.setattr("serving.gateway.joining.LONGEST_WAIT_S", 3600)


@pytest.mark.usefixtures("patient")
def test_a_lone_image_is_sent_at_once():
    async def scenario(ask, triton):
        triton.may_answer.set()
        for value in (1, 2):
            assert value_of(await ask(value)) == value
            assert await triton.arrived() == [[value]]

    with_echo(scenario)


@pytest.mark.usefixtures("patient")
def test_images_that_come_meanwhile_travel_together_and_each_gets_its_own_answer():
    async def scenario(ask, triton):
        first = ask(1)
        assert await triton.arrived() == [[1]]
        others = [ask(value) for value in (2, 3, 4)]
        await asyncio.sleep(0)
        triton.may_answer.set()
        assert [value_of(output) for output in await asyncio.gather(first, *others)] == [1, 2, 3, 4]
        assert await triton.arrived() == [[2, 3, 4]]

    with_echo(scenario)


def test_they_do_not_wait_for_the_answer_that_is_under_way():
    async def scenario(ask, triton):
        first = ask(1)
        assert await triton.arrived() == [[1]]
        second = ask(2)
        assert await triton.arrived() == [[2]]
        assert not first.done()
        triton.may_answer.set()
        await asyncio.gather(first, second)

    with_echo(scenario)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("images_per_request", "model"), [(4, MODEL), (64, replace(MODEL, largest_batch=4))], ids=["option", "model"]
)
def test_a_full_request_goes_at_once(images_per_request, model):
    async def scenario(ask, triton):
        tasks = [ask(value) for value in range(9)]
        assert await triton.arrived(3) == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
        triton.may_answer.set()
        assert [value_of(output) for output in await asyncio.gather(*tasks)] == list(range(9))

    with_echo(scenario, images_per_request=images_per_request, model=model)


@pytest.mark.parametrize(
    ("images_per_request", "model", "limit"),
    [
        (None, MODEL, 32),
        (None, replace(MODEL, is_on_gpu=False), 1),
        (None, replace(MODEL, largest_batch=8), 8),
        (16, replace(MODEL, is_on_gpu=False), 16),
        (1, MODEL, 1),
    ],
)
def test_only_on_a_gpu_do_images_travel_together_by_default(images_per_request, model, limit):
    assert Joiner(images_per_request, lambda *_: None).limit(model) == limit


def test_one_image_in_a_request_means_one():
    async def scenario(ask, triton):
        tasks = [ask(value) for value in range(5)]
        assert await triton.arrived(5) == [[0], [1], [2], [3], [4]]
        triton.may_answer.set()
        await asyncio.gather(*tasks)

    with_echo(scenario, images_per_request=1)


@pytest.mark.usefixtures("patient")
def test_a_failed_request_fails_its_images_alone():
    async def scenario(ask, triton):
        first = ask(1)
        await triton.arrived()
        failing = [ask(value) for value in (2, 3)]
        await asyncio.sleep(0)
        triton.may_answer.set()
        assert value_of(await first) == 1
        triton.may_answer.clear()
        assert await triton.arrived() == [[2, 3]]
        later = ask(4)
        await asyncio.sleep(0)
        triton.failure = FULL_QUEUE
        triton.may_answer.set()
        problems = await asyncio.gather(*failing, return_exceptions=True)
        assert [type(problem) for problem in problems] == [Overloaded, Overloaded]
        assert problems[0] is not problems[1], "each gets a Retry-After of its own"
        triton.failure = None
        assert value_of(await later) == 4

    with_echo(scenario)


@pytest.mark.usefixtures("patient")
def test_an_answer_that_is_not_a_number_fails_its_image_alone():
    async def scenario(ask, triton):
        tasks = [ask(value) for value in (1, 2, WITH_NAN)]
        await triton.arrived()
        triton.may_answer.set()
        first, second, broken = await asyncio.gather(*tasks, return_exceptions=True)
        assert [value_of(first), value_of(second)] == [1, 2]
        assert isinstance(broken, Internal)

    with_echo(scenario)


@pytest.mark.usefixtures("patient")
def test_who_leaves_takes_nobody_along():
    async def scenario(ask, triton):
        tasks = [ask(value) for value in range(4)]
        assert await triton.arrived(2) == [[0], [1, 2, 3]]
        tasks[2].cancel()
        triton.may_answer.set()
        outputs = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outputs.pop(2), asyncio.CancelledError)
        assert [value_of(output) for output in outputs] == [0, 1, 3]

    with_echo(scenario, images_per_request=3)


@pytest.mark.usefixtures("patient")
def test_an_image_whose_caller_left_before_the_request_went_stays_behind():
    async def scenario(ask, triton):
        first, second, third = ask(1), ask(2), ask(3)
        assert await triton.arrived() == [[1]]
        second.cancel()
        triton.may_answer.set()
        await asyncio.gather(first, third)
        assert await triton.arrived() == [[3]]

    with_echo(scenario)


@pytest.mark.usefixtures("patient")
def test_a_request_that_all_have_left_is_given_up_in_triton():
    async def scenario(ask, triton):
        tasks = [ask(value) for value in range(3)]
        assert await triton.arrived(2) == [[0], [1, 2]]
        for task in tasks[1:]:
            task.cancel()
        await triton.given_up.wait()
        triton.may_answer.set()
        assert value_of(await tasks[0]) == 0

    with_echo(scenario, images_per_request=2)


@pytest.mark.usefixtures("patient")
def test_each_image_keeps_its_deadline_and_triton_gets_the_latest():
    async def scenario(ask, triton):
        first, hurried, patient = ask(1), ask(2, timeout_s=0.5), ask(3, timeout_s=15)
        requests = [await triton.requests.get() for _ in range(2)]
        values, request = max(requests, key=lambda each: len(each[0]))
        assert values == [2, 3]
        assert 14e6 < request.parameters["timeout"].int64_param <= 15e6
        with pytest.raises(DeadlineExceeded):
            await hurried
        triton.may_answer.set()
        assert [value_of(await first), value_of(await patient)] == [1, 3]

    with_echo(scenario, images_per_request=2)


@pytest.mark.usefixtures("patient")
def test_images_for_both_heads_travel_apart():
    async def scenario(ask, triton):
        plain, both = ask(1), ask(2, with_heads=True)
        outputs = {}
        for _ in range(2):
            values, request = await triton.requests.get()
            outputs[values[0]] = [output.name for output in request.outputs]
        assert outputs == {
            1: [PROBABILITIES],
            2: [PROBABILITIES, CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES],
        }
        triton.may_answer.set()
        assert (await plain).heads is None
        assert [round(float(head[0]) * 255) for head in (await both).heads] == [2, 2]

    with_echo(scenario)


def test_no_answer_of_a_joined_request_belongs_to_another_image(server, deit_serve, model_repository):
    """With a real Triton: the server's own, behind a gateway that joins images."""
    port = next(
        re.findall(r"--triton-grpc-port=(\d+)", argument) for argument in server.process.args if "grpc" in argument
    )
    gateway = deit_serve(
        f"--triton-url=127.0.0.1:{port[0]}",
        *("--images-per-request=8", "--decoders=2", "--max-wait-s=60", "--request-timeout-s=60"),
    ).wait_until_ready()
    crowd = assert_nothing_is_mixed_up(gateway, model_repository, 300)
    assert crowd.refused == 0
    page = gateway.get("/metrics").text
    requests, images = (
        float(re.search(rf'^deit_model_request_images_{what}{{model="tiny"}} (\S+)$', page, re.MULTILINE)[1])
        for what in ("count", "sum")
    )
    assert images >= len(crowd.served)
    assert requests < images
