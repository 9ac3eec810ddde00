"""Clients of a running server: `Client` and `AsyncClient` for Python, and `deit classify`."""

from serving.client.client import (
    DEFAULT_URL,
    KEY_VARIABLE,
    AsyncClient,
    Classification,
    Client,
    ClientError,
    Heads,
    Prediction,
    Refused,
    Unreachable,
)

__all__ = [
    "DEFAULT_URL",
    "KEY_VARIABLE",
    "AsyncClient",
    "Classification",
    "Client",
    "ClientError",
    "Heads",
    "Prediction",
    "Refused",
    "Unreachable",
]
