"""How this project talks to any Triton, embedded or elsewhere: gRPC, never shared memory, never the HTTP port."""

import logging
import time
from collections.abc import Callable

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deit.errors import ServingError
from deit.options import named

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0
POLL_EVERY_S = 0.1
POLL_TIMEOUT_S = 1.0

# tritonclient drops its own defaults when any option is given, so the message sizes stand here too. The largest message
# of ours is one image, 384 x 384 x 3 = 442 kB, or the labels of a model.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # A name with several addresses, such as a headless Service of Kubernetes, is several Tritons: each takes its turn.
    ("grpc.lb_policy_name", "round_robin"),
    # gRPC's back-off of up to two minutes would keep the gateway unready long after Triton is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A retry on UNAVAILABLE would also repeat "queue full" and make an overload worse.
    ("grpc.enable_retries", 0),
    # HTTP_PROXY is meant for the web, not for a neighbour.
    ("grpc.enable_http_proxy", 0),
]


def connect(url: str) -> InferenceServerClient:
    """A blocking client, for the time before the gateway runs."""
    return InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)


def wait_until_ready(url: str, *, timeout_s: float, raise_if_in_vain: Callable[[], None]) -> None:
    """Return when the Triton at `url` has loaded every model.

    Args:
        raise_if_in_vain: called between attempts; raises when waiting is in vain.

    Raises:
        ServingError: not ready in time.
    """
    started = time.monotonic()
    next_progress_s = PROGRESS_EVERY_S
    with connect(url) as client:
        while not _is_ready(client):
            raise_if_in_vain()
            waited_s = time.monotonic() - started
            if waited_s > timeout_s:
                raise ServingError(
                    f"the Triton at {url} was not ready after {timeout_s:.0f} s; "
                    f"raise {named('--start-timeout-s')} if it builds engines, or look for its errors in the log"
                )
            if waited_s > next_progress_s:
                logger.info("waiting for Triton at %s to load the models (%.0f s)", url, waited_s)
                next_progress_s += PROGRESS_EVERY_S
            time.sleep(POLL_EVERY_S)
    logger.info("Triton is ready after %.1f s", time.monotonic() - started)


def _is_ready(client: InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready(client_timeout=POLL_TIMEOUT_S))
    except InferenceServerException:  # not listening yet
        return False
