"""Runs a program that the kernel kills when its parent dies: `python -IS with_parent.py PARENT_PID PROGRAM ...`

Popen's `preexec_fn` would do the same, but runs Python between fork and exec of a process with threads, where it may
deadlock. SIGKILL, because it works on a Triton in any state; its Python stubs notice within two seconds, exit, and
remove their shared memory. Some do not: a stub that waits for a lock held by the killed Triton waits forever. So a
guard kills the rest of the process group. Linux only; the setting survives exec. Imports only the standard library.
"""

import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

STUBS_END_S = 3.0
"""Time for a stub to notice and clean up."""


def main(parent_pid: int, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before the setting held
        sys.exit(1)
    start_guard(os.getpid())
    os.execv(command[0], command)


def start_guard(leader_pid: int) -> None:
    """A process of this group that kills the group, itself included, once the leader has ended.

    Not the leader's child, because the children of a Triton are the models that it runs.
    """
    leader = os.pidfd_open(leader_pid)
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):  # a reader of the leader's output waits for its end
                os.dup2(null, stream)
            os.closerange(3, leader)  # so that the leader's ports are free when it has ended
            os.closerange(leader + 1, os.sysconf("SC_OPEN_MAX"))
            select.select([leader], [], [])
            time.sleep(STUBS_END_S)
            os.killpg(leader_pid, signal.SIGKILL)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(leader)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
