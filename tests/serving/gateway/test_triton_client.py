"""Triton's errors in the gateway's terms. Codes and texts are those of Triton 2.51."""

import asyncio

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from serving.gateway.errors import DeadlineExceeded, Internal, NotReady, Overloaded
from serving.gateway.model_request import with_images
from serving.gateway.triton_client import TritonClient, VersionChanged, problem_of


@pytest.mark.parametrize(
    ("status", "message", "problem"),
    [
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded),
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "failed to connect to all addresses", NotReady),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting new requests", NotReady),
        ("NOT_FOUND", "Request for unknown model: 'tiny' is not found", VersionChanged),
        ("UNAVAILABLE", "Request for unknown model: 'tiny' version 2 is not at ready state", VersionChanged),
        ("CANCELLED", "CANCELLED", NotReady),
        ("INTERNAL", "Stub process 'tiny_0_0' is not healthy.", NotReady),
        ("INTERNAL", "onnxruntime: out of memory", Internal),
        ("INVALID_ARGUMENT", "unexpected shape for input 'images'", Internal),
    ],
)
def test_a_triton_error_becomes_one_of_ours(status, message, problem):
    nothing = grpc.aio.Metadata()
    ours = problem_of(grpc.aio.AioRpcError(grpc.StatusCode[status], nothing, nothing, details=message), "tiny")
    assert type(ours) is problem
    assert message not in ours.detail, "Triton's words are for the log, not for the caller"


class SlowTriton(GRPCInferenceServiceServicer):
    """Takes requests and never answers; knows what was asked and what was given up."""

    def __init__(self):
        self.timeouts_us = []
        self.arrived = asyncio.Event()
        self.given_up = asyncio.Event()

    async def ModelInfer(self, request, context):  # noqa: N802
        self.timeouts_us.append(request.parameters["timeout"].int64_param)
        self.arrived.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.given_up.set()
            raise


def with_slow_triton(ask):
    """Run ask(client, triton, pixels) against a Triton that does not answer."""

    async def run():
        triton, server = SlowTriton(), grpc.aio.server()
        add_GRPCInferenceServiceServicer_to_server(triton, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = TritonClient(f"127.0.0.1:{port}")
        try:
            async with asyncio.timeout(30):
                await ask(client, triton, np.zeros((8, 8, 3), np.uint8))
        finally:
            await client.close()
            await server.stop(None)

    asyncio.run(run())


def test_a_request_that_is_cancelled_is_given_up_in_triton():
    async def ask(client, triton, pixels):
        asking = asyncio.create_task(client.classify("tiny", pixels, version="1", timeout_s=20))
        await triton.arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await triton.given_up.wait()

    with_slow_triton(ask)


def test_calls_to_a_lost_model_end_at_once_and_others_go_on():
    async def ask(client, triton, pixels):
        lost = asyncio.create_task(client.classify("lost", pixels, version="1", timeout_s=20))
        other = asyncio.create_task(client.classify("other", pixels, version="1", timeout_s=20))
        await triton.arrived.wait()
        client.abandon("lost")
        with pytest.raises(NotReady):
            await lost
        assert not other.done()
        other.cancel()

    with_slow_triton(ask)


def test_the_deadline_reaches_tritons_queue_and_ends_the_call():
    async def ask(client, triton, pixels):
        async with asyncio.TaskGroup() as group:  # the connection may take its time to open
            opening = group.create_task(client.classify("tiny", pixels, version="1", timeout_s=20))
            await triton.arrived.wait()
            opening.cancel()
        await triton.given_up.wait()
        triton.given_up.clear()
        with pytest.raises(DeadlineExceeded):
            await client.classify("tiny", pixels, version="1", timeout_s=0.5)
        assert triton.timeouts_us[1:] == [500_000]
        await triton.given_up.wait()

    with_slow_triton(ask)


@pytest.mark.parametrize("side", [1, 6, 7, 74, 224])  # lengths of 1, 2 and 3 bytes
def test_a_message_is_what_protobuf_would_write(side):
    images = [np.full((side, side, 3), value, np.uint8) for value in (1, 2)]
    request = ModelInferRequest(model_name="tiny", id="7")
    message = with_images(request, [image[:, ::-1] for image in images])  # not as they lie in memory
    request.raw_input_contents.append(np.stack(images).tobytes())
    assert ModelInferRequest.FromString(message) == request


class OtherVersion(GRPCInferenceServiceServicer):
    """Answers with a version that nobody asked for, as a server that ignores `model_version` would."""

    async def ModelInfer(self, request, context):  # noqa: N802
        return ModelInferResponse(model_name=request.model_name, model_version="2")


def test_an_answer_of_another_version_is_refused():
    async def ask() -> None:
        server = grpc.aio.server()
        add_GRPCInferenceServiceServicer_to_server(OtherVersion(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        changes = []
        client = TritonClient(f"127.0.0.1:{port}", on_version_changed=lambda: changes.append(1))
        with pytest.raises(VersionChanged, match="version 2 answered for version 1"):
            await client.classify("tiny", np.zeros((2, 2, 3), np.uint8), version="1", timeout_s=10)
        assert changes == [1]
        await client.close()
        await server.stop(None)

    asyncio.run(ask())
