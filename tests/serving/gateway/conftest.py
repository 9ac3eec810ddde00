"""A client of the server, and a model that `deit export` made, for what an export alone knows."""

import httpx
import pytest

from tests.export.conftest import checkpoint, labelled

__all__ = ["checkpoint", "labelled"]


@pytest.fixture(scope="module")
def client(server):
    # The server closes idle connections after 5 s: a request must not meet that.
    early = httpx.Limits(keepalive_expiry=2)
    with httpx.Client(base_url=server.url, timeout=60, limits=early) as client:
        yield client
