"""Paths and methods that are nearly right."""

import pytest

from tests.conftest import encoded, photograph
from tests.serving.raw_http import exchange, status


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/models", "/models/tiny", "/metrics", "/static/app.js"])
def test_head_is_get_without_a_body(client, path):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # which counts itself
        assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize(("path", "code"), [("/classify", 405), ("/nope", 404), ("/problems/nope", 404)])
def test_head_of_what_get_does_not_give_is_refused_without_a_body(client, path, code):
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (code, b"")


def test_the_connection_goes_on_after_a_head(server):
    requests = b"HEAD /models HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    head, get = exchange(server.url, requests).split(b"HTTP/1.1 ")[1:]
    assert head.startswith(b"200 ")
    assert head.endswith(b"\r\n\r\n")
    assert get.endswith(b'{"status":"alive"}')


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/classify/", "../classify"),
        ("/models/tiny/?a=b", "../tiny?a=b"),
        ("//evil.example/", "../evil.example"),
        ("/%5Cevil.example/", "../%5Cevil.example"),
        ("/a%0d%0aSet-Cookie:%20b/", "../a%0D%0ASet-Cookie%3A%20b"),
    ],
)
def test_a_slash_too_many_leads_to_the_path_without_it_on_the_same_server(server, path, location):
    answer = exchange(server.url, b"GET %s HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n" % path.encode())
    assert status(answer) == 307
    headers = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert b"location: " + location.encode() in headers
    assert not any(header.lower().startswith(b"set-cookie") for header in headers)


def test_a_redirect_is_followed_to_the_answer(client):
    assert client.get("/models/tiny/", follow_redirects=True).json() == client.get("/models/tiny").json()


@pytest.mark.parametrize("path", ["/classify%0A", "/hf%0A"])
def test_a_line_feed_after_a_path_passes_by_no_limit(client, path):
    """The router takes it for the path without; so must what admits and counts."""
    answer = client.post(path, content=encoded(photograph(60, 50)))
    assert answer.status_code == 200, answer.text
