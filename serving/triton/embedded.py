"""The embedded Triton from settings to a running process."""

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deit.errors import ServingError
from serving.settings import TritonPorts
from serving.triton.options import LOOPBACK, triton_options
from serving.triton.process import TritonProcess
from serving.triton.repository import model_names
from serving.triton.run_folder import remove_shared_memory, run_folder, shared_memory_prefix
from serving.triton.wheel import find_wheel

logger = logging.getLogger(__name__)


class EmbeddedTriton:
    """The Triton of this run, over its restarts."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment
        self.process = TritonProcess(command, environment)

    def restart(self) -> None:
        """End whatever is left of the process, in any state, and start another; it loads the models anew."""
        self.process.kill()
        remove_shared_memory()
        self.process = TritonProcess(self._command, self._environment)


@contextmanager
def embedded_triton(model_repository: Path, ports: TritonPorts) -> Iterator[EmbeddedTriton]:
    """A Triton that is loading the models; it is stopped when the block ends.

    Raises:
        ServingError, RepositoryError: it cannot be started here, and why.
    """
    wheel = find_wheel()
    names = model_names(model_repository)
    for flag, port in ports.by_flag().items():
        check_port_is_free(port, flag)
    with run_folder() as folder:
        wheel.assemble_backends(folder / "backends")
        # Links, model by model: Triton would also load `.name.abc`, which a killed export leaves behind. And it puts
        # the path of a model on a command line without quotes, where a space breaks it (Triton 2.51).
        repository = folder / "models"
        repository.mkdir()
        for name in names:
            (repository / name).symlink_to((model_repository / name).absolute())
        options = triton_options(
            wheel.version,
            model_repository=repository,
            backend_directory=folder / "backends",
            shared_memory_prefix=shared_memory_prefix(),
            ports=ports,
        )
        logger.info(
            "starting Triton %d.%d (release 24.10) with %s; it lacks the security fixes since October 2024 "
            "and therefore listens on loopback only",
            *wheel.version,
            ", ".join(names),
        )
        triton = EmbeddedTriton([str(wheel.binary), *options], wheel.environment())
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
