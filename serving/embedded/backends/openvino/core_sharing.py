"""How model instances share the cores: one that runs alone takes all, those that run together take a share each.

An instance is a process. On two cores, two instances with one thread each give the highest throughput, but a single
request would leave a core idle; two with two threads each get in each other's way under load. OpenVINO fixes a model's
threads when it compiles the model, but oneTBB, which runs them, can be limited to fewer at any time, and the others
then do the work of the missing threads: the output is bit-identical.
"""

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

# oneTBB's class `global_control` (https://oneapi-spec.uxlfoundation.org/specifications/oneapi/latest/elements/onetbb/),
# which has no counterpart in C or Python: its constructor and destructor call these.
CREATE = "_ZN3tbb6detail2r16createERNS0_2d114global_controlE"
DESTROY = "_ZN3tbb6detail2r17destroyERNS0_2d114global_controlE"

MAX_ALLOWED_PARALLELISM = 0
"""`global_control::parameter` of that name: the threads that may compute, the caller included."""


def load_onetbb() -> Path | None:
    """Load the oneTBB of the package `tbb`, which OpenVINO then uses in place of its own; None if there is none.

    OpenVINO's own (2021.13) lets a thread that may not compute spin, which takes up to half of the other's time:
    https://github.com/uxlfoundation/oneTBB/issues/1417. Call this before OpenVINO is imported, which loads its own.
    """
    try:
        files = metadata.files("tbb") or []
        library = next(Path(file.locate()).resolve() for file in files if file.name == "libtbb.so.12")
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except (metadata.PackageNotFoundError, StopIteration, OSError):
        return None
    return library


class GlobalControl(ctypes.Structure):
    """The fields of oneTBB's `global_control`, in their order."""

    _fields_ = (("value", ctypes.c_size_t), ("reserved", ctypes.c_ssize_t), ("parameter", ctypes.c_int))


class SharedCores:
    """The cores as one instance takes them, batch by batch.

    Every instance that computes holds a shared lock of a file that all open; the kernel frees that of a killed one.

    Args:
        library: the oneTBB that OpenVINO uses.
        file: one for all instances; made if it is not there.
        share: threads of an instance that does not compute alone.

    Raises:
        OSError, AttributeError: this is not the oneTBB known here.
    """

    def __init__(self, library: Path, file: Path, share: int) -> None:
        tbb = ctypes.CDLL(str(library))
        self._create, self._destroy = tbb[CREATE], tbb[DESTROY]
        self._file = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)  # until the process ends
        self._share = share

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Compute while the block runs."""
        try:
            if self._is_alone():
                yield
                return
            control = GlobalControl(self._share, 0, MAX_ALLOWED_PARALLELISM)
            self._create(ctypes.byref(control))
            try:
                yield
            finally:
                self._destroy(ctypes.byref(control))
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _is_alone(self) -> bool:
        """Whether no other instance computes, of those that began earlier."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)
