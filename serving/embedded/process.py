"""A running `tritonserver`: starts it as a child, reads its log, and stops it."""

import contextlib
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deit.errors import ServingError
from serving.embedded.command_line import EXIT_TIMEOUT_S

logger = logging.getLogger(__name__)
triton_logger = logging.getLogger("triton")

KEPT_LINES = 500

# Triton has hundreds of threads, and the kernel lists children by thread: a count takes 1.3 ms of the event loop's
# time. Stubs come when a model is loaded, and one that died stays listed.
COUNT_CHILDREN_EVERY_S = 1.0

# `2026-01-31T12:00:00Z E 42 file.cc:7] "text"` of Triton, `E0131 12:00:00.123456 42 file.cc:7] text` of its Python stub
LOG_LINE = re.compile(r"(?:\S+Z (?P<triton>[IWEF]) \d+|(?P<stub>[IWEF])\d{4} \S+ \d+) \S+\] +(?P<text>.*)")
LEVELS = {"I": logging.DEBUG, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}

# What a Triton with GPU support says at warning and error level on a machine without a GPU.
HARMLESS = (
    "Unable to allocate pinned system memory",
    "failed to allocate pinned system memory",
    "CudaDriverHelper has not been initialized",
    "DCGM unable to start",
)


@dataclass(frozen=True)
class Ailment:
    """Attributes:
    reason: what is wrong.
    may_pass: it may recover by itself; else Triton must be restarted.
    """

    reason: str
    may_pass: bool


class TritonProcess:
    """A `tritonserver` and its Python stubs, in a separate process group.

    Ctrl-C in a terminal therefore reaches only the launcher, which stops Triton after the gateway has finished. When
    the launcher is killed, the kernel kills Triton (with_parent.py).
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # For the kernel the parent is the thread that forks: when that thread ends, Triton is killed.
        assert threading.current_thread() is threading.main_thread(), "start Triton from the main thread"
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._errors: list[str] = []
        self._is_stopping = False
        self._suspects: set[int] = set()
        self._children: list[int] = []
        self._counted_s = -math.inf
        wrapper = Path(__file__).with_name("with_parent.py")
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(wrapper), str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read_output, name="triton-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> int:
        """Block until Triton has ended; its exit status, negative for a signal."""
        return self._process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether it exited without being stopped."""
        return not self._is_stopping and self._process.poll() is not None

    def ailment(self) -> "Ailment | None":
        """A failure of Triton or a stub that the kernel shows and Triton's own health does not. Call it repeatedly.

        A stub that exited normally has not failed: its model was unloaded. Neither has one that Triton ended: it is
        gone by the next call.
        """
        suspects, self._suspects = self._suspects, set()
        if time.monotonic() - self._counted_s > COUNT_CHILDREN_EVERY_S:
            self._children, self._counted_s = children_of(self.pid), time.monotonic()
        for pid in [self.pid, *self._children]:
            state, exit_code = state_of(pid)
            if state in "Tt":
                return Ailment(f"the process {pid} of Triton is stopped", may_pass=True)
            if state == "Z" and exit_code and pid != self.pid:
                self._suspects.add(pid)
                if pid not in suspects:
                    continue
                signal_number = exit_code & 0x7F  # as waitpid has it
                by = f"signal {signal_number}" if signal_number else f"status {exit_code >> 8}"
                return Ailment(f"the process {pid}, which ran a model, ended with {by}", may_pass=False)
        return None

    def end_reason(self) -> str | None:
        """Triton's own reason if it exited without being stopped; may wait a second for its last output."""
        if not self.has_ended:
            return None
        self._reader.join(timeout=1)  # the last lines may still be in the pipe
        reasons = self.errors() or [line for line in self._lines if line.strip()][-3:]
        return f"Triton ended with status {self._process.poll()}: {'; '.join(reasons) or 'it said nothing'}"

    def errors(self) -> list[str]:
        """The errors in its log, each once."""
        return list(dict.fromkeys(self._errors))

    def raise_if_ended(self) -> None:
        """Raises ServingError with Triton's own reason if it exited without being stopped."""
        if (reason := self.end_reason()) is not None:
            raise ServingError(reason)

    def stop(self, grace_s: float = EXIT_TIMEOUT_S + 5) -> None:
        """Let Triton unload its models and end; kill it, stubs included, after the grace or on Ctrl-C."""
        self._is_stopping = True
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            logger.warning("Triton did not exit within %.0f s; killing it", grace_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill Triton and the rest of its process group at once."""
        self._is_stopping = True
        with contextlib.suppress(ProcessLookupError):  # nothing is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._hear(line.rstrip())

    def _hear(self, line: str) -> None:
        self._lines.append(line)
        match = LOG_LINE.match(line)
        if match is None:  # tables, tracebacks, `error: creating server: ...`
            triton_logger.debug("%s", line)
            return
        level, text = LEVELS[match["triton"] or match["stub"]], unquoted(match["text"])
        if text.startswith(HARMLESS):
            level = logging.DEBUG
        triton_logger.log(level, "%s", text)
        if level >= logging.ERROR:
            self._errors.append(text.splitlines()[0])


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it ends meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # this thread alone does
                found += map(int, read_at_once(task / "children").split())
    return found


def state_of(pid: int) -> tuple[str, int]:
    """The letter of its state and, of a zombie, its exit code (proc_pid_stat(5), fields 3 and 52)."""
    try:
        fields = read_at_once(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[49])


def read_at_once(path: Path) -> str:
    """A small file of /proc, in a third of the time that a file object takes; it is read ten times a second."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 2**16).decode(errors="replace")
    finally:
        os.close(descriptor)


def unquoted(text: str) -> str:
    """The message of a log line; Triton writes most as a JSON string."""
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text
