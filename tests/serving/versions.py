"""A stack of gateways and Tritons over one repository, with versions that want other pixels, and load on it."""

import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.errors import RepositoryError
from deit.model import IMAGES, PROBABILITIES
from deit.ports import free_ports
from deit.preprocessing import Preprocessing, resize_and_crop
from deit.repository.candidates import try_candidate
from deit.repository.config import config_text
from deit.repository.layout import CONFIG_FILE, ONNX_FILE
from deit.repository.models import read_version
from deit.repository.publishing import publish, serve_version
from tests.conftest import encoded, photograph
from tests.serving.conftest import (
    HALF,
    LABELS,
    OPEN,
    START_TIMEOUT_S,
    DeitServe,
    config_pbtxt,
    eventually,
    two_headed_classifier,
)

PHOTOGRAPHS = [photograph(64, 48, seed=seed) for seed in range(6)]
PICTURES = [encoded(each, "PNG") for each in PHOTOGRAPHS]

# Batches of other sizes add up in another order; wrong pixels differ by far more.
SAME = 1e-4


def preprocessing_of(version: int, image_size: int) -> Preprocessing:
    """Versions that are served one after the other crop in different ways."""
    crop_pct = 0.5 + version % 5 / 10
    return Preprocessing(image_size=image_size, crop_pct=crop_pct, interpolation="bicubic", mean=HALF, std=HALF)


class Repository:
    """One model with the versions 1 and 3, which read 32 pixels, and 2, which reads 48. It serves version 1.

    Attributes:
        right: probabilities by picture and version.
    """

    def __init__(self, folder: Path, name: str = "tiny") -> None:
        self.folder, self.name = folder, name
        self.right: dict[tuple[int, str], np.ndarray] = {}
        self.versions: list[int] = []
        self.publish(32)
        # By hand: `publish` wants the resolution of the version that is served.
        by_hand = folder / name / "2"
        by_hand.mkdir()
        (by_hand / CONFIG_FILE).write_text(config_text(self._config(2, 48), [2]))
        self._fill(2, 48, by_hand)
        self.publish(32)
        self.serve(1)

    def publish(self, image_size: int) -> int:
        version = 1 + max(self.versions, default=0)
        fill = partial(self._fill, version, image_size)
        config = self._config(version, image_size)
        assert publish(self.folder, self.name, config=config, label_names=LABELS, fill=fill) == version
        return version

    def publish_another(self) -> int:
        """A version with the resolution of the one that is served."""
        return self.publish(read_version(self.folder / self.name).preprocessing.image_size)

    def serve(self, version: int) -> None:
        """From the next start of a Triton on."""
        serve_version(self.folder, self.name, version)

    def canary(self, version: int) -> None:
        """On half of the requests, where Triton can run it next to the served one."""
        with contextlib.suppress(RepositoryError):
            try_candidate(self.folder, self.name, "canary", 50, number=version)

    def _config(self, version: int, image_size: int) -> model_config_pb2.ModelConfig:
        text = config_pbtxt(self.name, preprocessing=preprocessing_of(version, image_size))
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    def _fill(self, version: int, image_size: int, folder: Path) -> None:
        onnx.save(two_headed_classifier(version, image_size), folder / ONNX_FILE)
        session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
        for index, picture in enumerate(PHOTOGRAPHS):
            pixels = resize_and_crop(picture, preprocessing_of(version, image_size))[None]
            self.right[index, str(version)] = session.run([PROBABILITIES], {IMAGES: pixels})[0][0]
        self.versions.append(version)


class TritonHere:
    """A `deit triton` that can be ended in any way and started again on its ports."""

    def __init__(self, repository: Path) -> None:
        self.grpc, self.metrics = free_ports(2)
        self.url = f"127.0.0.1:{self.grpc}"
        OPEN.add(self)
        self._repository = repository
        self._log = repository.with_name(f"triton-{self.grpc}.log")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        ports = [f"--triton-grpc-port={self.grpc}", f"--triton-metrics-port={self.metrics}"]
        command = [sys.executable, "-m", "deit", "triton", "--model-repository", str(self._repository), *ports]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    @property
    def last_lines(self) -> str:
        return "".join(self._log.read_text().splitlines(keepends=True)[-40:])

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def keep(self) -> None:
        """Start it again if it has ended by itself, as a container's restart policy does."""
        if self._process is not None and self._process.poll() is not None:
            self.start()

    def end(self, number: signal.Signals) -> None:
        """Return when all of it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None
        eventually(self._port_is_free)  # the kernel has killed Triton, whose port is free a moment later

    def close(self) -> None:
        self.end(signal.SIGKILL)
        OPEN.discard(self)

    def _port_is_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", self.grpc))
                return True
        return False


class Stack:
    """Gateways, each of which asks every Triton.

    Attributes:
        answers: (picture, version, probabilities) of every answer with status 200.
        refusals: status and detail of every other one.
    """

    def __init__(self, repository: Repository, *, tritons: int, gateways: int) -> None:
        self.repository = repository
        self.tritons = [TritonHere(repository.folder) for _ in range(tritons)]
        self.gateways = [self._new_gateway() for _ in range(gateways)]
        self.answers: list[tuple[int, str, list[float]]] = []
        self.refusals: list[str] = []
        self._ends = threading.Event()

    def close(self) -> None:
        for triton in self.tritons:
            triton.close()
        for gateway in self.gateways:
            gateway.close()

    def _new_gateway(self) -> DeitServe:
        urls = ",".join(triton.url for triton in self.tritons)
        options = ["--port=0", "--max-wait-s=60", "--request-timeout-s=60", "--decoders=1", "--no-log-requests"]
        return DeitServe([f"--triton-url={urls}", *options])

    def replace_gateway(self, which: int) -> None:
        """Return at once; the new one is ready when it has found a Triton."""
        old, self.gateways[which] = self.gateways[which], self._new_gateway()
        old.close()

    @contextlib.contextmanager
    def load(self, threads: int = 2) -> Iterator[None]:
        """Requests to every gateway while the block runs, each soon after the answer to the last."""
        self._ends.clear()
        with ThreadPoolExecutor() as pool:
            asking = [pool.submit(self._ask, which) for which in range(len(self.gateways)) for _ in range(threads)]
            try:
                yield
            finally:
                self._ends.set()
            for each in asking:
                each.result()

    def _ask(self, which: int) -> None:
        with httpx.Client(timeout=60) as client:
            for index in itertools.cycle(range(len(PICTURES))):
                if self._ends.is_set():
                    return
                gateway = self.gateways[which]
                if not gateway.url:
                    self._ends.wait(0.05)
                    continue
                try:
                    answer = client.post(f"{gateway.url}/classify?top_k={len(LABELS)}", content=PICTURES[index])
                except httpx.TransportError:
                    if gateway is self.gateways[which]:
                        raise
                    continue
                if answer.status_code == 200:
                    body = answer.json()
                    ordered = sorted(body["predictions"], key=lambda each: each["index"])
                    self.answers.append((index, body["version"], [each["probability"] for each in ordered]))
                else:
                    self.refusals.append(f"{answer.status_code} {answer.json()['detail']}")
                self._ends.wait(0.01)  # leave the processor to what starts

    def versions(self, count: int = 40) -> set[str]:
        """That answer now, by `count` requests to each gateway that runs; "none" for a refusal."""
        found = set()
        for gateway in filter(lambda each: each.url, self.gateways):
            for _ in range(count):
                answer = gateway.post("/classify", content=PICTURES[0])
                found.add(answer.json()["version"] if answer.status_code == 200 else "none")
        return found

    def asked(self, count: int) -> None:
        """Return when every gateway can ask this many Tritons."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for gateway in self.gateways:
            gateway.wait_until_ready()
            while f"deit_tritons {count}.0" not in (page := gateway.get("/metrics").text):
                assert time.monotonic() < deadline, page
                for triton in self.tritons:
                    triton.keep()
                time.sleep(0.05)

    def check(self) -> None:
        """Every answer is the right one of the version that it names, and every refusal one that says what is wrong."""
        for index, version, found in self.answers:
            np.testing.assert_allclose(found, self.repository.right[index, version], atol=SAME, err_msg=version)
        assert all(each.startswith("503 ") for each in self.refusals), set(self.refusals)


@contextlib.contextmanager
def running_stack(repository: Repository, *, tritons: int, gateways: int) -> Iterator[Stack]:
    with contextlib.closing(Stack(repository, tritons=tritons, gateways=gateways)) as stack:
        stack.asked(tritons)
        yield stack
