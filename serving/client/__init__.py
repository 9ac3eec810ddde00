"""Clients of a running server: `Client` and `AsyncClient` for Python, and `deit classify`."""

from serving.client.answers import Classification, ClientError, Heads, Prediction, Refused, Tokens, Unreachable
from serving.client.clients import DEFAULT_URL, AsyncClient, Client

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Classification",
    "Client",
    "ClientError",
    "Heads",
    "Prediction",
    "Refused",
    "Tokens",
    "Unreachable",
]
