"""How this project talks to any Triton, embedded or external: gRPC, never the HTTP port."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deit.errors import ServingError
from deit.options import named

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0
POLL_EVERY_S = 0.1
POLL_TIMEOUT_S = 1.0

# tritonclient drops its own defaults when any option is given, so the message sizes stand here too. The largest message
# of ours is the images of one request, 64 x 512 x 512 x 3 = 50 MB, or the labels of a model.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # gRPC's back-off of up to two minutes would keep the gateway unready long after Triton is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A retry on UNAVAILABLE would also repeat "queue full" and make an overload worse. The gateway
    # decides what to retry, and where (classification.py).
    ("grpc.enable_retries", 0),
    # HTTP_PROXY is meant for the web, not for a neighbour.
    ("grpc.enable_http_proxy", 0),
]


def connect(url: str) -> InferenceServerClient:
    """A blocking client, for the time before the gateway runs."""
    return InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)


def addresses_of(urls: str) -> list[str]:
    """`--triton-url` one by one: HOST:PORT, separated by commas."""
    return list(filter(None, map(str.strip, urls.split(","))))


def wait_until_ready(urls: Sequence[str], *, timeout_s: float, raise_if_in_vain: Callable[[], None]) -> str:
    """Wait until one of these Tritons has loaded its models; returns its address.

    Args:
        urls: HOST:PORT of each.
        raise_if_in_vain: called between attempts; raises when waiting is pointless.

    Raises:
        ServingError: not ready in time.
    """
    started = time.monotonic()
    next_progress_s = PROGRESS_EVERY_S
    listed = " or ".join(urls)
    with contextlib.ExitStack() as stack:
        clients = {url: stack.enter_context(connect(url)) for url in urls}
        while (ready := next((url for url, client in clients.items() if _is_ready(client)), None)) is None:
            raise_if_in_vain()
            waited_s = time.monotonic() - started
            if waited_s > timeout_s:
                raise ServingError(
                    f"the Triton at {listed} was not ready after {timeout_s:.0f} s; "
                    f"raise {named('--start-timeout-s')} if it builds engines, or look for its errors in the log"
                )
            if waited_s > next_progress_s:
                logger.info("waiting for Triton at %s to load the models (%.0f s)", listed, waited_s)
                next_progress_s += PROGRESS_EVERY_S
            time.sleep(POLL_EVERY_S)
    logger.info("Triton is ready after %.1f s", time.monotonic() - started)
    return ready


def _is_ready(client: InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready(client_timeout=POLL_TIMEOUT_S))
    except InferenceServerException:  # not listening yet
        return False
