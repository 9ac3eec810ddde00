"""The processor of this machine and the commit of these sources, to record with results."""

import platform
import subprocess
from pathlib import Path


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
