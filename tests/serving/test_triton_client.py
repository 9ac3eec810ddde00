"""Triton's errors in the gateway's terms. Codes and texts are those of Triton 2.51."""

import pytest
from tritonclient.utils import InferenceServerException

from serving.gateway.errors import DeadlineExceeded, Internal, NotReady, Overloaded
from serving.gateway.triton_client import problem_of


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
    error = InferenceServerException(message, status=f"StatusCode.{status}")
    ours = problem_of(error)
    assert type(ours) is problem
    assert message not in ours.detail, "Triton's words are for the log, not for the caller"
