"""Compares a model in Triton with PyTorch, on the images that `deit export` stored with each version.

Standard library only, because NVIDIA's image does not contain our packages.
"""

import ast
import contextlib
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REFERENCE_FILE = "reference.npz"
REPORT_FILE = "report.json"
IMAGES = "images"
ALONE = 4
"""Images that are asked alone as well as together."""

PORT = 18000
START_TIMEOUT_S = 900
ANSWER_TIMEOUT_S = 300
LARGEST_SUM_ERROR = 1e-4

Rows = list[list[float]]


class Refused(Exception):
    """A model that must not be served here; the message says why, and what to do."""


@dataclass(frozen=True)
class Reference:
    """What PyTorch answered, and how far an engine may be from it.

    Attributes:
        images: of each image its bytes, uint8 (H, W, 3).
        shape: (H, W, 3).
        outputs: by name, probabilities of each image.
        limits: the gate's for the precision, as `deit export` wrote them into the report.
    """

    images: list[bytes]
    shape: tuple[int, ...]
    outputs: dict[str, Rows]
    limits: dict[str, float | None]


def read_reference(version: Path) -> Reference:
    """Raises Refused when the version came without."""
    try:
        limits = json.loads((version / REPORT_FILE).read_text())["thresholds"]
        with zipfile.ZipFile(version / REFERENCE_FILE) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Refused(
            f"there is nothing to compare it with ({error}): publish it again with `deit export`, which writes "
            f"{REFERENCE_FILE} and {REPORT_FILE}"
        ) from error
    _, shape, content = arrays.pop(IMAGES)
    size = math.prod(shape[1:])
    return Reference(
        images=[content[start : start + size] for start in range(0, len(content), size)],
        shape=shape[1:],
        outputs={name: _rows(content, shape[1]) for name, (_, shape, content) in arrays.items()},
        limits=limits,
    )


def _array(npy: bytes) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape and content of a .npy file: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""
    length_bytes = 2 if npy[6] == 1 else 4
    start = 8 + length_bytes
    end = start + int.from_bytes(npy[8:start], "little")
    header = ast.literal_eval(npy[start:end].decode("latin1"))
    if header["fortran_order"] or header["descr"] not in ("|u1", "<f4"):
        raise ValueError(f"an array of {header['descr']} that `deit export` does not write")
    return header["descr"], header["shape"], npy[end:]


def _rows(content: bytes, width: int) -> Rows:
    values = array("f", content)
    if sys.byteorder == "big":
        values.byteswap()
    return [values[start : start + width].tolist() for start in range(0, len(values), width)]


@contextlib.contextmanager
def triton(repository: Path, command: Sequence[str]) -> Iterator[str]:
    """The address of a Triton that serves `repository` on loopback, as far as it can, until the end of the block.

    Raises:
        SystemExit: it does not start.
    """
    options = [
        f"--model-repository={repository}",
        *("--model-control-mode=none", "--exit-on-error=false", "--strict-readiness=false"),
        *("--disable-auto-complete-config", "--allow-grpc=false", "--allow-metrics=false"),
        *("--allow-http=true", "--http-address=127.0.0.1", f"--http-port={PORT}"),
        *("--allow-sagemaker=false", "--allow-vertex-ai=false"),
    ]
    url = f"http://127.0.0.1:{PORT}"
    process = subprocess.Popen([*command, *options], stdout=sys.stderr)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(f"{url}/v2/health/live"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} does not start; its log is above")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def compare(url: str, name: str, version: str, expected: Reference, max_batch_size: int) -> None:
    """Ask a model for all images together and for some alone. Raises Refused that says what differs."""
    if not _answers(f"{url}/v2/models/{name}/versions/{version}/ready"):
        raise Refused("Triton does not load it; its log says why")
    together: dict[str, Rows] = {output: [] for output in expected.outputs}
    for start in range(0, len(expected.images), max_batch_size):
        for output, rows in ask(url, name, version, expected, start, start + max_batch_size).items():
            together[output] += rows
    alone = [ask(url, name, version, expected, place, place + 1) for place in range(min(ALONE, len(expected.images)))]
    found = list(differences(expected, together))
    neighbours = max(
        _largest(answer[output], [together[output][place]]) for place, answer in enumerate(alone) for output in answer
    )
    allowed = expected.limits["neighbours"]
    if allowed is not None and not neighbours <= allowed:
        found.append(f"an image's answer depends on the others in its batch, by up to {neighbours:.1e}")
    if found:
        raise Refused("; ".join(found))


def differences(expected: Reference, found: dict[str, Rows]) -> Iterator[str]:
    """Sentences; none when the answers are within the gate's limits. NaN is within none."""
    rows = [row for output in found.values() for row in output]
    if not all(abs(sum(row) - 1) < LARGEST_SUM_ERROR for row in rows):
        yield "some outputs are not probabilities that add up to 1"
    count = len(expected.images)
    # The share is of hundreds of images and there are few here, and the engine that passed the gate agreed with PyTorch
    # on all of them.
    may_change = math.ceil((1 - (expected.limits["agreement"] or 0)) * count - 1e-9)
    first = next(iter(expected.outputs))
    changed = sum(_best(a) != _best(b) for a, b in zip(expected.outputs[first], found[first], strict=True))
    if changed > may_change:
        yield f"{changed} of {count} images change their top-1 class, {may_change} may"
    largest = max(_largest(expected.outputs[name], found[name]) for name in expected.outputs)
    allowed = expected.limits["difference"]
    if not math.isfinite(largest):
        yield "some probabilities are not numbers"
    elif allowed is not None and not largest < allowed:
        yield f"probabilities differ from PyTorch's by up to {largest:.1e}, allowed is {allowed:.0e}"


def ask(url: str, name: str, version: str, expected: Reference, start: int, end: int) -> dict[str, Rows]:
    """Probabilities of these images, by output, over Triton's binary HTTP protocol:
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
    """
    images = expected.images[start:end]
    content = b"".join(images)
    question = {
        "inputs": [
            {
                "name": IMAGES,
                "shape": [len(images), *expected.shape],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": len(content)},
            }
        ],
        "outputs": [{"name": output, "parameters": {"binary_data": True}} for output in expected.outputs],
    }
    header = json.dumps(question).encode()
    request = urllib.request.Request(
        f"{url}/v2/models/{name}/versions/{version}/infer",
        data=header + content,
        headers={"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))},
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            length = int(answer.headers["Inference-Header-Content-Length"])
            described, body = json.loads(answer.read(length)), answer.read()
    except urllib.error.HTTPError as error:
        raise Refused(f"it does not answer: {error.read().decode(errors='replace')[:500]}") from error
    found, place = {}, 0
    for output in described["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = _rows(body[place : place + size], output["shape"][1])
        place += size
    return found


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _best(row: list[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _largest(ours: Rows, theirs: Rows) -> float:
    found = [abs(a - b) for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True)]
    return math.nan if any(math.isnan(value) for value in found) else max(found)
