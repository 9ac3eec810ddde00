"""Whose address a request came from, as proxies in front tell it, and as callers would like to have it told."""

import json

import pytest

from serving.gateway.client_address import client_address, networks
from tests.serving.conftest import eventually

NEAR = networks("10.0.0.0/8, fd00::/8")


def scope(peer, *forwarded):
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    return {"type": "http", "client": None if peer is None else (peer, 1234), "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "client"),
    [
        ("203.0.113.9", [], NEAR, "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], NEAR, "203.0.113.9"),  # who is not trusted is not believed
        ("10.0.0.1", ["198.51.100.1"], (), "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], NEAR, "198.51.100.1"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1, 10.9.9.9"], NEAR, "198.51.100.1"),  # what the caller wrote comes first
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], NEAR, "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.1, nonsense"], NEAR, "10.0.0.1"),
        ("fd00::1", ["2001:db8::5"], NEAR, "2001:db8::5"),
        (None, ["198.51.100.1"], NEAR, ""),
    ],
)
def test_the_nearest_address_that_is_no_trusted_proxy(peer, forwarded, trusted, client):
    assert client_address(scope(peer, *forwarded), trusted) == client


def lines(server):
    """Each of them: a program reads them all."""
    return [json.loads(line) for line in server.lines]


def test_the_log_names_the_client(deit_serve, model_repository):
    server = deit_serve(
        "--model-repository", model_repository, "--log-format=json", "--trusted-proxies=127.0.0.0/8"
    ).wait_until_ready()
    header = {"X-Forwarded-For": "1.2.3.4, 198.51.100.7"}
    assert server.get("/models", headers=header).status_code == 200
    assert server.post("/classify", content=b"x", headers=header).status_code == 415
    for said in ("GET /models 200", "POST /classify 415"):
        eventually(lambda said=said: any(line["event"] == said for line in lines(server)))
        (line,) = [line for line in lines(server) if line["event"] == said]
        assert line["client"] == "198.51.100.7"
