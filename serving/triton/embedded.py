"""The embedded Triton from settings to a running process."""

import logging
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deit.errors import ServingError
from deit.repository.models import model_names
from serving.settings import TritonPorts
from serving.triton.options import CONTROL_HEADER, LOOPBACK, triton_options
from serving.triton.process import TritonProcess
from serving.triton.run_folder import remove_shared_memory, run_folder, shared_memory_prefix
from serving.triton.snapshot import Offer, Snapshot
from serving.triton.wheel import find_wheel

logger = logging.getLogger(__name__)


class EmbeddedTriton:
    """The Triton of this run, over its restarts.

    Attributes:
        snapshot: the model repository as this Triton sees it.
        offers: what of each model it was shown last.
        control_headers: what it asks of whoever loads models; empty when nobody may.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        snapshot: Snapshot,
        offers: dict[str, Offer],
        control_headers: dict[str, str],
    ) -> None:
        self._command = command
        self._environment = environment
        self.snapshot = snapshot
        self.offers = offers
        self.control_headers = control_headers
        self.process = TritonProcess(command, environment)

    def restart(self) -> None:
        """End whatever is left of the process, in any state, and start another; it loads the models anew."""
        self.process.kill()
        remove_shared_memory()
        self.process = TritonProcess(self._command, self._environment)


@contextmanager
def embedded_triton(
    model_repository: Path,
    ports: TritonPorts,
    *,
    host: str = LOOPBACK,
    allow_reload: bool = False,
    traces_url: str | None = None,
) -> Iterator[EmbeddedTriton]:
    """A Triton that is loading the models; it is stopped when the block ends.

    Raises:
        ServingError, RepositoryError: it cannot be started here, and why.
    """
    wheel = find_wheel()
    model_names(model_repository)  # before anything is made
    for flag, port in ports.by_flag().items():
        check_port_is_free(port, flag)
    with run_folder() as folder:
        wheel.assemble_backends(folder / "backends")
        # Triton would also load `.name.abc`, which a killed export leaves behind. And it puts the path of a model on a
        # command line without quotes, where a space breaks it (Triton 2.51).
        snapshot = Snapshot(model_repository, folder / "models")
        snapshot.folder.mkdir()
        offers = snapshot.offers()
        for name, offer in offers.items():
            snapshot.show(name, offer, offer.versions)
        control_key = secrets.token_urlsafe(32) if allow_reload else None
        options = triton_options(
            wheel.version,
            model_repository=snapshot.folder,
            backend_directory=folder / "backends",
            shared_memory_prefix=shared_memory_prefix(),
            ports=ports,
            host=host,
            control_key=control_key,
            traces_url=traces_url,
        )
        logger.info(
            "starting Triton %d.%d (release 24.10) with %s; it lacks the security fixes since October 2024 and %s",
            *wheel.version,
            ", ".join(offers),
            "therefore listens on loopback only" if host == LOOPBACK else f"listens on {host} as you asked",
        )
        headers = {} if control_key is None else {f"triton-grpc-protocol-{CONTROL_HEADER}": control_key}
        triton = EmbeddedTriton([str(wheel.binary), *options], wheel.environment(), snapshot, offers, headers)
        try:
            yield triton
        finally:
            triton.process.stop()


def check_port_is_free(port: int, flag: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ServingError(
                f"port {port} on {LOOPBACK} cannot be used by Triton ({error.strerror}); choose another with {flag}"
            ) from error
