"""Processor time and memory of a server on this machine: every process of it, found by the port that it listens on."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil

from benchmark.load import Load
from deit.errors import BenchmarkError

Seen = TypeVar("Seen")

GONE = (psutil.NoSuchProcess, psutil.ZombieProcess)

GATEWAY = "deit"
"""What `Use.cpu_s` calls the processes of the gateway: `deit serve`, and each of several gateways."""


@dataclass(frozen=True)
class Use:
    """What a server's processes have used until now.

    Attributes:
        cpu_s: seconds of processor time, by program: GATEWAY, "tritonserver", the stubs of its backends.
        memory_mib: resident, with shared pages divided among those that share them (PSS).
    """

    cpu_s: dict[str, float]
    memory_mib: float

    @property
    def total_cpu_s(self) -> float:
        return sum(self.cpu_s.values())


class ServerProcesses:
    def __init__(self, root: psutil.Process) -> None:
        self._root = root

    @classmethod
    def of(cls, pid: int) -> "ServerProcesses":
        """The server whose first process is `pid`."""
        return cls(psutil.Process(pid))

    @classmethod
    def listening_at(cls, url: str) -> "ServerProcesses":
        """The server whose address is `url`.

        Raises:
            BenchmarkError: no process of this user listens there.
        """
        port = urlsplit(url).port or 80
        pids = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1] == port and connection.pid
        ]
        if not pids:
            raise BenchmarkError(
                f"no process of this user listens on port {port} of this machine: start the server here, as "
                "the same user"
            )
        process = psutil.Process(min(pids))
        # A worker that listens belongs to the process that started it.
        while (parent := process.parent()) is not None and _is_same_command(parent, process):
            process = parent
        return cls(process)

    def use(self) -> Use:
        cpu_s: dict[str, float] = {}
        memory = 0
        for process in [self._root, *self._root.children(recursive=True)]:
            with contextlib.suppress(*GONE):
                times, name = process.cpu_times(), _program(process)
                cpu_s[name] = cpu_s.get(name, 0) + times.user + times.system
                memory += process.memory_full_info().pss
        return Use(cpu_s, memory / 2**20)


def watched(
    loop: Coroutine[Any, Any, Load], look: Callable[[], Seen], *, warm_up_s: float, seconds: float
) -> tuple[Load, Seen, Seen]:
    """Run a load; also what `look` gives when its measured window begins and when it ends."""

    async def run() -> tuple[Load, Seen, Seen]:
        task = asyncio.create_task(loop)
        await asyncio.sleep(warm_up_s)
        before = look()
        await asyncio.sleep(seconds)
        after = look()
        return await task, before, after

    return asyncio.run(run())


def _program(process: psutil.Process) -> str:
    """A short name: of the script where an interpreter runs one, else of the executable."""
    command = process.cmdline()
    if "serving.gateway_process" in command:
        return GATEWAY
    for word in command[:3]:
        name = word.rpartition("/")[2]
        if name and not name.startswith(("python", "-")):
            return name.removesuffix(".py")
    return process.name()


def _is_same_command(parent: psutil.Process, child: psutil.Process) -> bool:
    try:
        return parent.exe() == child.exe() and parent.cmdline()[1:3] == child.cmdline()[1:3]
    except (*GONE, psutil.AccessDenied):
        return False
