"""Becomes a program that the kernel kills when its parent ends: `python -IS with_parent.py PARENT_PID PROGRAM ...`

Popen's `preexec_fn` would do the same, but runs Python between fork and exec of a process with threads, where it may
deadlock. SIGKILL, because it works on a Triton in any state; its Python stubs notice within two seconds, end, and
remove their shared memory. Linux only; the setting survives exec. Imports nothing but the standard library.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent_pid: int, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before the setting held
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
