"""Each peer's own environment, from its locked requirements."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from deit.errors import BenchmarkError

REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "peers"


def environment(peer: str, folder: Path) -> Path:
    """The `bin` folder of the peer's environment below `folder`, created if it is missing or its requirements changed.

    Raises:
        BenchmarkError: the packages cannot be installed; the message ends with pip's last lines.
    """
    requirements = REQUIREMENTS / f"{peer}.txt"
    if not requirements.is_file():
        raise BenchmarkError(f"{requirements} is missing: measure peers from a checkout of the project")
    home = folder / peer
    mark = home / "ready"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text() == digest:
        return home / "bin"
    shutil.rmtree(home, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(home)])
    _run(
        [
            *(str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--requirement", str(requirements)),
        ]
    )
    mark.write_text(digest)
    return home / "bin"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BenchmarkError(f"{' '.join(command[:4])} … failed: {' '.join(words[-3:])}")
