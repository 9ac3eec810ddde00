"""A small model in a repository, pictures, and `deit serve` as a process."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deit.labels import LABELS_FILE, write_labels
from deit.model import (
    CLASS_PROBABILITIES,
    DISTILLATION_PROBABILITIES,
    IMAGES,
    PREPROCESSING_PARAMETER,
    PROBABILITIES,
)
from deit.ports import free_ports
from deit.preprocessing import Preprocessing
from deit.repository.layout import CONFIG_FILE, ONNX_FILE
from tests.conftest import REPOSITORY_ROOT

MODEL = "tiny"
IMAGE_SIZE = 32
LABELS = ("airplane", "car: blue", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HALF = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing(image_size=IMAGE_SIZE, crop_pct=0.875, interpolation="bicubic", mean=HALF, std=HALF)

ZOOMED = replace(PREPROCESSING, crop_pct=0.5)

# Many tests look at the gateway's process or its gauges; by default there are several where there are many cores.
ONE_GATEWAY = {"DEIT_GATEWAYS": "1"}

# The machine may be busy with training.
START_TIMEOUT_S = 200


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, `tiny`, in the format that `deit export` writes. The folder's name has a space, as folders do."""
    repository = tmp_path_factory.mktemp("model repository")
    write_model(repository / MODEL)
    return repository


@pytest.fixture(scope="session")
def shadowed_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` as above, and `zoomed`, which answers differently and crops more: as a shadow it has images decoded again.

    Served with SHADOWED.
    """
    repository = tmp_path_factory.mktemp("shadowed models")
    write_model(repository / MODEL)
    write_model(repository / "zoomed", seed=7)
    (repository / "zoomed" / CONFIG_FILE).write_text(config_pbtxt("zoomed", preprocessing=ZOOMED))
    return repository


SHADOWED = f"--shadow={MODEL}=zoomed:50"


def shadow_outcomes(url: str) -> dict[str, float]:
    """How many images a shadow was to answer, by what became of them."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text
    return {
        outcome: float(count)
        for outcome, count in re.findall(r'^deit_shadow_images_total{.*outcome="(\w+)".*} (\S+)$', lines, re.MULTILINE)
    }


def write_model(folder: Path, *, seed: int = 0, versions: int = 1) -> None:
    """A model with this many versions, all of them served; each version answers differently."""
    for version in range(1, versions + 1):
        write_version(folder / str(version), seed=seed + version - 1)
    write_labels(folder / LABELS_FILE, LABELS)
    (folder / CONFIG_FILE).write_text(config_pbtxt(folder.name, versions=versions))


def write_version(folder: Path, *, seed: int) -> None:
    folder.mkdir(parents=True)
    onnx.save(two_headed_classifier(seed), folder / ONNX_FILE)


def two_headed_classifier(seed: int, image_size: int = IMAGE_SIZE) -> onnx.ModelProto:
    """uint8 pixels, mean of 4 x 4 squares, a linear layer for each head, softmax, mean of both."""
    rng = np.random.default_rng(seed)
    features = 3 * (image_size // 4) ** 2
    constants = {
        "scale": np.float32(1 / 255),
        "half": np.float32(0.5),
        **{f"weights_{head}": rng.normal(size=(features, len(LABELS))).astype(np.float32) for head in "cd"},
    }
    nodes = [
        helper.make_node("Cast", [IMAGES], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["channels_first"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weights_c"], ["class_logits"]),
        helper.make_node("Gemm", ["features", "weights_d"], ["distillation_logits"]),
        helper.make_node("Softmax", ["class_logits"], [CLASS_PROBABILITIES]),
        helper.make_node("Softmax", ["distillation_logits"], [DISTILLATION_PROBABILITIES]),
        helper.make_node("Add", [CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], [PROBABILITIES]),
    ]
    images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", image_size, image_size, 3])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(LABELS)])
        for name in (PROBABILITIES, CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES)
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "two heads", [images], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def config_pbtxt(
    name: str, *, versions: int = 1, policy: str | None = None, preprocessing: Preprocessing = PREPROCESSING
) -> str:
    size = preprocessing.image_size
    outputs = "\n".join(
        f'output {{ name: "{output}" data_type: TYPE_FP32 dims: [ {len(LABELS)} ] label_filename: "{LABELS_FILE}" }}'
        for output in (PROBABILITIES, CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES)
    )
    parameters = {"intra_op_thread_count": "1", PREPROCESSING_PARAMETER: preprocessing.to_json()}
    written_parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}'
        for key, value in parameters.items()
    )
    return f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
version_policy {{ {policy or f"latest {{ num_versions: {versions} }}"} }}
input {{ name: "{IMAGES}" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }}
{outputs}
dynamic_batching {{
  max_queue_delay_microseconds: 2000
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: 10000000
    allow_timeout_override: true
    max_queue_size: 64
  }}
}}
instance_group {{ kind: KIND_AUTO count: 1 }}
{written_parameters}
"""


@pytest.fixture(scope="session")
def photographs(shared_data: Path) -> list[bytes]:
    """64 ImageNet photographs as JPEG."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(shared_data / "imagenet" / "sample500.parquet", columns=["image"])
    rows = table.slice(0, 64).to_pylist()
    return [row["image"]["bytes"] for row in rows]


class Shown(Protocol):
    """A server whose words explain a failure."""

    url: str

    @property
    def last_lines(self) -> str: ...


OPEN: set[Shown] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the servers of the test said last."""
    report = yield
    if report.failed:
        report.sections += [(f"last lines of the server at {each.url}", each.last_lines) for each in OPEN]
    return report


class DeitServe:
    """A `deit serve` process on free ports; `url` is set once it is ready."""

    def __init__(self, arguments: list[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deit", "serve", *arguments],
            cwd=REPOSITORY_ROOT,
            env={**os.environ, **ONE_GATEWAY, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        OPEN.add(self)
        self.url = ""
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request on a connection of its own; the time is for a busy machine."""
        return httpx.request(method, self.url + path, timeout=60, **options)

    get = partialmethod(ask, "GET")
    post = partialmethod(ask, "POST")

    def wait_until_ready(self) -> "DeitServe":
        assert self._is_ready.wait(START_TIMEOUT_S), f"not ready:\n{self.output}"
        assert self.url, f"ended with {self.process.wait()}:\n{self.output}"
        return self

    def wait(self) -> int:
        """The exit status."""
        status = self.process.wait(START_TIMEOUT_S)
        self._reader.join(START_TIMEOUT_S)
        return status

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def last_lines(self) -> str:
        return "".join(self.lines[-40:])

    def close(self) -> None:
        """Killed, because Triton takes seconds to stop; test_lifecycle.py holds that nothing is left behind."""
        self.process.kill()
        self.wait()
        OPEN.discard(self)

    def children(self) -> list[int]:
        """Triton and its Python stubs; they have a process group of their own."""
        return descendants(self.process.pid)

    def pid_of(self, program: str) -> int:
        """The first of its processes that runs a program of this name, which may be cut off at its end."""
        children = self.children()
        return next(pid for pid, name in zip(children, commands(children), strict=True) if name.startswith(program))

    def decoders(self) -> list[int]:
        """The processes that decode images."""
        return self.running(b"serving.gateway.decoder_process")

    def running(self, module: bytes) -> list[int]:
        """Its processes that run this module of Python."""
        return [pid for pid in self.children() if module in read_proc(f"{pid}/cmdline")]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line)
                if match := re.match(r"Ready: (\S+)|.*\"address\": \"(http[^\"]+)\"", line):
                    self.url = match[1] or match[2]
                    self._is_ready.set()
        self._is_ready.set()


@contextlib.contextmanager
def running(*arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[DeitServe]:
    grpc, metrics = free_ports(2)
    ports = ["--port=0"]
    if not any(str(argument).startswith("--triton-url") for argument in arguments):
        ports += [f"--triton-grpc-port={grpc}", f"--triton-metrics-port={metrics}"]
    server = DeitServe([*ports, *map(str, arguments)], environment)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def deit_triton(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`deit triton` as a process, killed at the end; a failure shows what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deit", "triton", *map(str, arguments)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        sys.stderr.write(process.communicate()[1])


def read_proc(path: str) -> bytes:
    """A file of /proc, empty when its process or thread has ended: both may at any moment."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path("/proc", path).read_bytes()
    return b""


def descendants(pid: int) -> list[int]:
    """The processes below this one."""
    found = [pid]
    for each in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{each}/task").iterdir():
                found += map(int, read_proc(f"{each}/task/{thread.name}/children").split())
    return found[1:]


@pytest.fixture
def deit_serve() -> Iterator[Callable[..., DeitServe]]:
    """deit_serve(*arguments, environment={}) -> a process of one test; later arguments win over the free ports."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **named: stack.enter_context(running(*arguments, **named))


@pytest.fixture(scope="session")
def server(model_repository: Path) -> Iterator[DeitServe]:
    """One ready `deit serve` for all tests that only ask."""
    with running(
        "--model-repository",
        model_repository,
        "--max-body-bytes=2000000",
        "--max-image-pixels=1000000",
        "--max-wait-s=60",  # the machine may be busy with training
        "--request-timeout-s=60",
        "--keep-alive-s=5",  # for tests that read until the server closes
    ) as process:
        yield process.wait_until_ready()


def eventually(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Poll until the condition holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """The process runs; a zombie does not."""
    state = read_proc(f"{pid}/stat").rpartition(b")")[2].split()
    return bool(state) and state[0] not in (b"Z", b"X")


def commands(pids: list[int]) -> list[str]:
    """The program of each process, without its folder; empty for one that has ended."""
    return [read_proc(f"{pid}/cmdline").split(b"\0")[0].rpartition(b"/")[2].decode() for pid in pids]


def shared_regions(pid: int) -> set[str]:
    """The memory for pixels that this process shares with another, by the name of the file that is gone."""
    return set(re.findall(r"/dev/shm/(deit-pixels-\S+) \(deleted\)", Path(f"/proc/{pid}/maps").read_text()))


def shared_memory(server: DeitServe) -> set[Path]:
    """The regions of this server's Triton; other processes of the machine have theirs."""
    return set(Path("/dev/shm").glob(f"deit-triton-{server.process.pid}-*"))


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]
