"""A stack of gateways and Tritons over one repository, with versions that want other pixels, and load on it."""

import contextlib
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime

from deit.durable import write_file
from deit.errors import RepositoryError
from deit.labels import LABELS_FILE, write_labels
from deit.model import IMAGES, PROBABILITIES
from deit.preprocessing import Preprocessing, resize_and_crop
from deit.repository.candidates import try_candidate
from deit.repository.layout import CONFIG_FILE, ONNX_FILE
from tests.conftest import encoded, photograph
from tests.serving.conftest import HALF, LABELS, DeitServe, config_pbtxt, free_ports, running, two_headed_classifier

# By version. The third has the size of the first, so that nothing but the answer shows pixels of the wrong one.
PREPROCESSING = {
    version: Preprocessing(image_size=size, crop_pct=crop, interpolation="bicubic", mean=HALF, std=HALF)
    for version, size, crop in ((1, 32, 0.875), (2, 48, 0.6), (3, 32, 0.5))
}

PHOTOGRAPHS = [photograph(64, 48, seed=seed) for seed in range(6)]
PICTURES = [encoded(each, "PNG") for each in PHOTOGRAPHS]

# Batches of other sizes add up in another order; wrong pixels differ by far more.
SAME = 1e-4


class Repository:
    """One model with every version of PREPROCESSING, of which one is served."""

    def __init__(self, folder: Path, name: str = "tiny") -> None:
        self.folder, self.name = folder, name
        self.right: dict[tuple[int, str], np.ndarray] = {}
        for version, preprocessing in PREPROCESSING.items():
            graph = two_headed_classifier(version, preprocessing.image_size)
            file = folder / name / str(version) / ONNX_FILE
            file.parent.mkdir(parents=True)
            onnx.save(graph, file)
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            for index, picture in enumerate(PHOTOGRAPHS):
                pixels = resize_and_crop(picture, preprocessing)[None]
                self.right[index, str(version)] = session.run([PROBABILITIES], {IMAGES: pixels})[0][0]
        write_labels(folder / name / LABELS_FILE, LABELS)
        for version in reversed(PREPROCESSING):
            self.serve(version)

    def serve(self, version: int) -> None:
        """From the next start of a Triton on; the configuration changes whole, as `deit models rollback` does it."""
        policy = f"specific {{ versions: {version} }}"
        text = config_pbtxt(self.name, policy=policy, preprocessing=PREPROCESSING[version])
        text += f'parameters {{ key: "version" value {{ string_value: "{version}" }} }}\n'
        write_file(self.folder / self.name / str(version) / CONFIG_FILE, text)
        write_file(self.folder / self.name / CONFIG_FILE, text)
        self.served = version

    def canary(self, version: int) -> None:
        """On half of the requests, where Triton can run it next to the served one."""
        with contextlib.suppress(RepositoryError):
            try_candidate(self.folder, self.name, "canary", 50, number=version)


class TritonHere:
    """A `deit triton` that can be ended in any way and started again on its ports."""

    def __init__(self, repository: Path) -> None:
        self.grpc, self.metrics = free_ports(2)
        self._repository = repository
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        ports = [f"--triton-grpc-port={self.grpc}", f"--triton-metrics-port={self.metrics}"]
        command = [sys.executable, "-m", "deit", "triton", "--model-repository", str(self._repository), *ports]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    @property
    def runs(self) -> bool:
        return self._process is not None

    def end(self, number: signal.Signals) -> None:
        """Return when all of it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None
        while True:  # the kernel has killed Triton, whose port is free a moment later
            with contextlib.suppress(OSError), contextlib.closing(_bound(self.grpc)):
                return
            time.sleep(0.02)


def _bound(port: int):  # type: ignore[no-untyped-def]
    import socket

    probe = socket.socket()
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    except OSError:
        probe.close()
        raise
    return probe


class Stack:
    """Gateways, each of which asks every Triton.

    Attributes:
        answers: (picture, version, probabilities) of every answer with status 200.
        refusals: status and detail of every other one.
    """

    def __init__(self, repository: Repository, tritons: list[TritonHere], gateways: list[DeitServe]) -> None:
        self.repository, self.tritons, self.gateways = repository, tritons, gateways
        self.answers: list[tuple[int, str, list[float]]] = []
        self.refusals: list[str] = []
        self._ends = threading.Event()

    @contextlib.contextmanager
    def load(self, threads: int = 2) -> Iterator[None]:
        """Requests to every gateway without a pause while the block runs."""
        self._ends.clear()
        with ThreadPoolExecutor() as pool:
            urls = [gateway.url for gateway in self.gateways] * threads
            asking = [pool.submit(self._ask, url) for url in urls]
            try:
                yield
            finally:
                self._ends.set()
            for each in asking:
                each.result()

    def _ask(self, url: str) -> None:
        with httpx.Client(timeout=60) as client:
            for index in itertools.cycle(range(len(PICTURES))):
                if self._ends.is_set():
                    return
                answer = client.post(f"{url}/classify?top_k={len(LABELS)}", content=PICTURES[index])
                if answer.status_code == 200:
                    body = answer.json()
                    ordered = sorted(body["predictions"], key=lambda each: each["index"])
                    self.answers.append((index, body["version"], [each["probability"] for each in ordered]))
                else:
                    self.refusals.append(f"{answer.status_code} {answer.json()['detail']}")

    def versions(self, count: int = 40) -> set[str]:
        """That answer now, by `count` requests to each gateway; "none" for a refusal."""
        found = set()
        for gateway in self.gateways:
            for _ in range(count):
                answer = httpx.post(f"{gateway.url}/classify", content=PICTURES[0], timeout=60)
                found.add(answer.json()["version"] if answer.status_code == 200 else "none")
        return found

    def asked(self, count: int) -> None:
        """Return when every gateway can ask this many Tritons."""
        deadline = time.monotonic() + 60
        for gateway in self.gateways:
            while f"deit_tritons {count}.0" not in (page := httpx.get(f"{gateway.url}/metrics").text):
                assert time.monotonic() < deadline, "\n".join(page.splitlines()[-60:] + gateway.lines[-20:])
                time.sleep(0.05)

    def check(self) -> None:
        """Every answer is the right one of the version that it names, and every refusal one that says what is wrong."""
        for index, version, found in self.answers:
            np.testing.assert_allclose(found, self.repository.right[index, version], atol=SAME, err_msg=version)
        assert all(each.startswith("503 ") for each in self.refusals), set(self.refusals)


@contextlib.contextmanager
def running_stack(repository: Repository, *, tritons: int, gateways: int) -> Iterator[Stack]:
    with contextlib.ExitStack() as stack:
        below = [TritonHere(repository.folder) for _ in range(tritons)]
        for triton in below:
            stack.callback(triton.end, signal.SIGKILL)
        urls = ",".join(f"127.0.0.1:{triton.grpc}" for triton in below)
        arguments = [f"--triton-url={urls}", "--max-wait-s=60", "--request-timeout-s=60", "--decoders=1"]
        above = [stack.enter_context(running(*arguments, "--no-log-requests")) for _ in range(gateways)]
        for gateway in above:
            gateway.wait_until_ready()
        made = Stack(repository, below, above)
        made.asked(tritons)
        yield made
