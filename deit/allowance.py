"""How many cores and how much memory this process may use, within the limits of its container or service.

A container sees all cores of its machine, but its control group limits its time on them. A program that starts a thread
or process for each visible core starts too many, such as 65 decoders on 64 cores with a quota of two.

Imports nothing of this project: the backends for Triton get a copy.
"""

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/"), *, visible: int | None = None) -> int:
    """Cores that this process may keep busy, at least 1.

    Those that it may run on, or fewer if a control group's quota is smaller, rounded down. With more threads the kernel
    stops them all for the rest of each 100 ms.

    Args:
        root: where proc/ and sys/ are.
        visible: the number of cores that it may run on; None to ask the kernel.
    """
    visible = len(os.sched_getaffinity(0)) if visible is None else visible
    quotas = [quota for group in _groups(root, "cpu") if (quota := _cores_of(group)) is not None]
    return max(1, int(min([visible, *quotas])))


def usable_memory_bytes(root: Path = Path("/")) -> int | None:
    """The smallest memory limit of the control groups that hold this process; None without one."""
    limits = []
    for group in _groups(root, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            text = _read(group / file)
            if text is not None and text.isdecimal() and int(text) < 2**60:  # version 1 writes a huge number for none
                limits.append(int(text))
    return min(limits, default=None)


def _cores_of(group: Path) -> float | None:
    version_2 = (_read(group / "cpu.max") or "").split()  # "QUOTA PERIOD" in microseconds, QUOTA "max" for none
    version_1 = [_read(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]  # -1 for none
    for values in (version_2, version_1):
        if len(values) == 2 and all(value.isdecimal() and int(value) > 0 for value in values):
            return int(values[0]) / int(values[1])
    return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that hold this process, those above included, of versions 1 and 2.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files and, for version 1,
    https://docs.kernel.org/scheduler/sched-bwc.html. In a container the paths of /proc/self/cgroup may be the host's,
    and then the group is the folder that is mounted.
    """
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        folder = top / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each == top or top in each.parents)


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
