"""The machine: its processor, the cores that this process may use, and the commit of these sources."""

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CGROUPS_OF_THIS_PROCESS = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, memberships: Path = CGROUPS_OF_THIS_PROCESS) -> int:
    """How many cores this process may keep busy: those it may run on, or the whole ones of its cgroups' quotas where
    these are less, as with `docker run --cpus` and Kubernetes' limits. At least 1.

    More threads than that are stopped by the kernel for the rest of each 100 ms.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(cgroups, memberships)])))


def _quotas(cgroups: Path, memberships: Path) -> Iterator[float]:
    """Cores by the quota of each cgroup that the process is in and of those above it.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files (cpu.max) and, for version 1,
    https://docs.kernel.org/scheduler/sched-bwc.html. Inside a container the path may be the host's, of which only the
    root is seen.
    """
    for line in _text(memberships).splitlines():
        number, controllers, path = line.split(":", 2)
        root = cgroups if number == "0" else cgroups / "cpu"
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        inner = root / path.lstrip("/")
        for folder in [inner, *inner.parents]:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
            if number != "0":
                quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            if quota.strip().isdigit() and period.strip().isdigit():  # "max" and -1 are none
                yield int(quota) / int(period)
            if folder == root:
                break


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def processor() -> str:
    """The model's name, without frequency and marks."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].partition("@")[0]
            return " ".join(name.replace("(R)", "").replace("(TM)", "").split())
    return platform.machine()


def commit(*, besides: tuple[str, ...] = ()) -> tuple[str | None, bool]:
    """The commit of the sources (12 digits) and whether they have changed since; None outside a git checkout.

    Args:
        besides: files and folders whose changes do not count.
    """
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # git would look in the folders above
        return None, False

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(checkout), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    excluded = (f":!{path}" for path in besides)
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    return git("rev-parse", "--short=12", "HEAD"), bool(changes)
