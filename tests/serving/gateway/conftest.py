"""A client of the server, and a model that `deit export` made, for what an export alone knows."""

import httpx
import pytest

from tests.export.conftest import checkpoint, labelled

__all__ = ["checkpoint", "labelled"]


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
