"""SIGTERM under load: every request that a client has sent on an open connection is answered."""

import random
import signal
import threading
import time

import httpx
import pytest

from tests.conftest import encoded, photograph
from tests.serving.conftest import is_alive

CLIENTS = 8


class Client:
    """Asks on one connection, without pause, until the server says that it closes it."""

    def __init__(self, url, content):
        self._client = httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=1))
        self._content = content
        self.statuses = []
        self.failure = None
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def join(self):
        self._thread.join()
        self._client.close()

    def _ask(self):
        while True:
            try:
                answer = self._client.post("/classify", content=self._content)
            except httpx.TransportError as error:
                self.failure = error
                return
            self.statuses.append(answer.status_code)
            if answer.headers.get("connection") == "close":
                return


def assert_nothing_is_lost(deit_serve, model_repository, seed):
    server = deit_serve("--model-repository", model_repository, "--max-wait-s=60").wait_until_ready()
    children = server.children()
    clients = [Client(server.url, encoded(photograph(400, 300, seed=index))) for index in range(CLIENTS)]
    try:
        while not all(client.statuses for client in clients):  # each has its connection
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 0.3))
    finally:
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join()
    assert [client.failure for client in clients] == [None] * CLIENTS
    # 503: it came after the second in which requests that are on their way are still taken on
    assert {status for client in clients for status in client.statuses} <= {200, 503}
    assert server.wait() == 0
    assert "Traceback" not in server.output
    assert not any(map(is_alive, children))


@pytest.mark.parametrize("runs", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_no_accepted_request_is_lost(deit_serve, model_repository, runs):
    for seed in range(runs):
        assert_nothing_is_lost(deit_serve, model_repository, seed)
