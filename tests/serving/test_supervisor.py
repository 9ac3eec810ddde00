"""`deit serve --gateways N`: one port, one page of metrics, and a gateway that ends is replaced."""

import os
import re
import signal
import socket
from dataclasses import fields

import httpx
import pytest

from serving.settings.decoding import Decoding
from serving.settings.limits import Limits
from serving.settings.serve import ServeSettings, gateways_for
from serving.settings.triton import TritonPorts, TritonSettings
from serving.supervisor import share_of
from tests.conftest import encoded, photograph
from tests.serving.conftest import eventually, is_alive, shared_regions

CONTENT = encoded(photograph(60, 50))


def ask(url: str) -> int:
    """On a connection of its own, so that the kernel chooses a gateway each time."""
    return httpx.post(f"{url}/classify", content=CONTENT, timeout=60).status_code


def answered(url: str) -> float:
    """The number of images that all gateways together report as answered."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    return sum(float(value) for value in re.findall(r"^deit_images_total\{.*\} (\S+)$", page, re.MULTILINE))


def gateways(server) -> list[int]:
    return server.running(b"serving.gateway_process")


def test_they_share_the_port_and_the_metrics_and_outlive_each_other(deit_serve, model_repository):
    server = deit_serve(
        *("--model-repository", model_repository, "--gateways=2", "--max-wait-s=60", "--shared-memory")
    ).wait_until_ready()
    assert ", 2 gateways" in server.output
    first, second = gateways(server)
    triton = server.pid_of("tritonserver")
    eventually(lambda: len(shared_regions(triton)) == 2)

    assert [ask(server.url) for _ in range(30)] == [200] * 30
    # whichever gateway answers, it counts for both; with 30 connections each has had some (chance of else: 2 in 10^9)
    assert [answered(server.url) for _ in range(6)] == [30] * 6

    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(set(gateways(server)) - {first}) == 2 and not is_alive(first))
    assert [ask(server.url) for _ in range(30)] == [200] * 30  # those on its socket wait for its successor
    assert answered(server.url) == 60
    assert second in gateways(server)
    assert "a gateway exited with status -9 and is being replaced" in server.output
    eventually(lambda: shared_regions(triton) == set().union(*map(shared_regions, gateways(server))))
    assert len(shared_regions(triton)) == 2, "Triton has dropped that of the dead one"

    left = server.children()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    with socket.create_server(("127.0.0.1", int(server.url.rpartition(":")[2]))):
        pass  # nobody holds the port
    eventually(lambda: not any(map(is_alive, left)))
    assert "Traceback" not in server.output


def test_a_gateway_that_cannot_start_is_an_error_with_its_reason(deit_serve, model_repository, tmp_path):
    server = deit_serve("--model-repository", model_repository, "--gateways=2", "--default-model=missing")
    assert server.wait() == 1
    assert "--default-model" in server.output


def test_what_all_may_do_is_shared_out():
    asked = ServeSettings(
        rate_limit=90.0, limits=Limits(max_in_flight_bytes=300 * 2**20), decoding=Decoding(processes=10), gateways=3
    )
    share = share_of(asked, 3, "127.0.0.1:8001")
    assert share.rate_limit == 90
    assert share.limits.max_in_flight_bytes == 100 * 2**20
    assert share.limits.max_in_flight_pixels == 100_000_000 // 3
    assert share.decoding.processes == 4
    untouched = {field.name for field in fields(asked)} - {"limits", "decoding", "gateways", "triton", "triton_url"}
    assert all(getattr(share, name) == getattr(asked, name) for name in untouched)


def test_a_port_of_triton_stays_with_its_parent():
    asked = ServeSettings(triton=TritonSettings(ports=TritonPorts(http=8100)), gateways=2)
    assert share_of(asked, 2, "127.0.0.1:8001").triton.ports.http is None


def test_a_limit_for_all_still_lets_the_largest_single_request_in():
    share = share_of(ServeSettings(), 64, "127.0.0.1:8001")
    assert share.limits.max_in_flight_bytes == share.limits.max_body_bytes
    assert share.limits.max_in_flight_pixels == share.limits.max_image_pixels


@pytest.mark.parametrize(
    ("cores", "memory_bytes", "expected"),
    [(1, None, 1), (2, None, 1), (8, None, 2), (16, None, 4), (128, None, 16), (16, 2 * 2**30, 4), (64, 2**30, 2)],
)
def test_their_number_follows_the_cores_and_the_memory(cores, memory_bytes, expected):
    assert gateways_for(cores, memory_bytes) == expected


def test_new_versions_on_command_need_one_gateway():
    assert ServeSettings(allow_reload=True).gateway_count == 1
    with pytest.raises(ValueError, match=r"--allow-reload .* is for one gateway, and --gateways .* is 2: drop either"):
        ServeSettings(allow_reload=True, gateways=2)
