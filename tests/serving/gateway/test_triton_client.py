"""Triton's errors in the gateway's terms. Codes and texts are those of Triton 2.51."""

import asyncio

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from serving.gateway.errors import DeadlineExceeded, Internal, NotReady, Overloaded
from serving.gateway.triton_client import TritonClient, problem_of


@pytest.mark.parametrize(
    ("status", "message", "problem"),
    [
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded),
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "failed to connect to all addresses", NotReady),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting new requests", NotReady),
        ("NOT_FOUND", "Request for unknown model: 'tiny' is not found", NotReady),
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
        asking = asyncio.create_task(client.classify("tiny", pixels, timeout_s=20))
        await triton.arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await triton.given_up.wait()

    with_slow_triton(ask)


def test_calls_to_a_lost_model_end_at_once_and_others_go_on():
    async def ask(client, triton, pixels):
        lost = asyncio.create_task(client.classify("lost", pixels, timeout_s=20))
        other = asyncio.create_task(client.classify("other", pixels, timeout_s=20))
        await triton.arrived.wait()
        client.abandon("lost")
        with pytest.raises(NotReady):
            await lost
        assert not other.done()
        other.cancel()

    with_slow_triton(ask)


def test_the_deadline_reaches_tritons_queue_and_ends_the_call():
    async def ask(client, triton, pixels):
        with pytest.raises(DeadlineExceeded):
            await client.classify("tiny", pixels, timeout_s=0.5)
        assert triton.timeouts_us == [500_000]
        await triton.given_up.wait()

    with_slow_triton(ask)


class CountingTriton(GRPCInferenceServiceServicer):
    """Refuses every request, and knows how many there were."""

    def __init__(self):
        self.asked = 0

    async def ModelInfer(self, request, context):  # noqa: N802
        self.asked += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


def test_every_address_of_a_name_is_asked_in_turn():
    """Such as of a headless Service, or of several containers."""

    async def ask() -> list[int]:
        tritons, ports = [CountingTriton(), CountingTriton()], []
        servers = [grpc.aio.server() for _ in tritons]
        for triton, server in zip(tritons, servers, strict=True):
            add_GRPCInferenceServiceServicer_to_server(triton, server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
        client = TritonClient(f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}")
        deadline = asyncio.get_running_loop().time() + 30
        while not all(triton.asked for triton in tritons):  # both are connected
            assert asyncio.get_running_loop().time() < deadline
            with pytest.raises(Overloaded):
                await client.classify("tiny", np.zeros((2, 2, 3), np.uint8), timeout_s=10)
        before = [triton.asked for triton in tritons]
        for _ in range(20):
            with pytest.raises(Overloaded):
                await client.classify("tiny", np.zeros((2, 2, 3), np.uint8), timeout_s=10)
        await client.close()
        for server in servers:
            await server.stop(None)
        return [triton.asked - asked for triton, asked in zip(tritons, before, strict=True)]

    assert asyncio.run(ask()) == [10, 10]
