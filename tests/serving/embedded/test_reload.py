"""A running server follows its model repository: real Triton, real load, real corrupt files."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deit.control import control_socket
from deit.model import PROBABILITIES
from deit.model_input import model_input
from deit.pictures import PictureLimits
from serving.client import AsyncClient, Client, ClientError
from serving.embedded.control import claim_control_socket
from tests.conftest import encoded, photograph
from tests.serving.conftest import (
    PREPROCESSING,
    commands,
    config_pbtxt,
    eventually,
    running,
    two_headed_classifier,
    write_model,
    write_version,
)
from tests.short_commands import deit

PICTURES = [encoded(photograph(64, 48, seed=seed), "PNG") for seed in range(8)]

# Batches of other sizes add up in another order; two versions differ by far more.
SAME = 1e-4


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    repository = tmp_path_factory.mktemp("reloaded")
    write_model(repository / "first")
    return repository


@pytest.fixture(scope="module")
def server(repository):
    with running(
        *("--model-repository", repository, "--allow-reload", "--default-model=first"),
        *("--max-wait-s=60", "--request-timeout-s=60"),
    ) as process:
        yield process.wait_until_ready()


@pytest.fixture
def client(server):
    with Client(server.url, timeout_s=60) as client:
        yield client


def reload(server):
    """`deit models reload` of this server."""
    return deit("models", "reload", "--port", server.url.rpartition(":")[2])


def reloaded(server):
    done = reload(server)
    assert done.returncode == 0, done.stderr
    return done.stdout


def publish(model, version, *, seed):
    """As `deit export` does: the version whole, then the configuration, which differs from the last one."""
    write_version(model.parent / f".{version}", seed=seed)
    (model.parent / f".{version}").rename(model / str(version))
    comment = f'parameters {{ key: "published" value {{ string_value: "{version}" }} }}\n'
    (model / "config.pbtxt").write_text(config_pbtxt(model.name) + comment)


class Load:
    """Requests without a pause from several threads; every answer and every failure is kept."""

    def __init__(self, url, model):
        self._url, self._model = url, model
        self.answers, self.failures = [], []
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(4)]

    def _ask(self, index):
        with Client(self._url, timeout_s=60, patience_s=0) as client:
            while not self._ends.is_set():
                index = (index + 1) % len(PICTURES)
                try:
                    answer = client.classify(PICTURES[index], model=self._model, top_k=10)
                    self.answers.append((index, answer.version, probabilities(answer)))
                except ClientError as error:
                    self.failures.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ends.set()
        for thread in self._threads:
            thread.join()


def probabilities(answer):
    return [each.probability for each in sorted(answer.predictions, key=lambda each: each.index)]


def test_a_client_that_leaves_before_its_answer_harms_nobody(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository, "--allow-reload").wait_until_ready()
    path = str(control_socket(int(server.url.rpartition(":")[2])))
    for said in (b"reload\n", b"", b"reload", b"x" * 100_000):
        with socket.socket(socket.AF_UNIX) as left:
            left.connect(path)
            with contextlib.suppress(ConnectionError):  # the server may refuse so long a line before all has come
                left.sendall(said)
    with socket.socket(socket.AF_UNIX) as stays, stays.makefile("rw") as lines:
        stays.connect(path)
        lines.write("reload\n")
        lines.flush()
        assert json.loads(lines.readline())
    assert "Traceback" not in server.output
    assert "Unhandled" not in server.output


def reloads_under_load(server, repository, client, name, count):
    """Publish and reload `count` versions under constant load; no request fails, and each answer is its version's."""
    write_model(repository / name)
    assert f"{name}: loaded, serving version 1" in reloaded(server)
    expected = {}
    with Load(server.url, name) as load:
        for version in range(1, count + 2):
            if version > 1:
                publish(repository / name, version, seed=version)
                assert f"{name}: loaded, serving version {version}" in reloaded(server)
            for index, picture in enumerate(PICTURES):
                answer = client.classify(picture, model=name, top_k=10)
                assert answer.version == str(version)
                expected[index, str(version)] = probabilities(answer)
    assert not load.failures
    for index, version, found in load.answers:
        np.testing.assert_allclose(found, expected[index, version], atol=SAME)
    assert {version for _, version, _ in load.answers} == {str(version) for version in range(1, count + 2)}


def test_two_reloads_under_load_fail_no_request_and_mix_no_versions(server, repository, client):
    reloads_under_load(server, repository, client, "busy", 2)
    with pytest.raises(ClientError, match="no version"):
        client.classify(PICTURES[0], model="busy", version="1")
    assert 'deit_model_info{checkpoint="",model="busy",precision="",version="3"} 1.0' in metrics(server)


def metrics(server):
    return server.get("/metrics").text


@pytest.mark.soak
def test_twenty_reloads_under_load_fail_no_request(server, repository, client):
    reloads_under_load(server, repository, client, "busier", 20)


def torn(folder):
    write_version(folder, seed=9)
    os.truncate(folder / "model.onnx", 300)


def without_probabilities(folder):
    graph = two_headed_classifier(9)
    (weights,) = [each for each in graph.graph.initializer if each.name == "weights_c"]
    weights.CopyFrom(numpy_helper.from_array(np.full(weights.dims, np.nan, np.float32), "weights_c"))
    folder.mkdir()
    onnx.save(graph, folder / "model.onnx")


def of_other_shape(folder):
    graph = two_headed_classifier(9)
    graph.graph.output[0].name = "something"
    graph.graph.node[-1].output[0] = "something"
    folder.mkdir()
    onnx.save(graph, folder / "model.onnx")


def without_graph(folder):
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (torn, "does not load"),
        (without_probabilities, "not return probabilities"),
        (of_other_shape, "disagree"),
        (without_graph, "does not load"),
    ],
)
def test_a_version_that_is_no_good_is_refused_and_the_old_one_serves_on(server, repository, client, spoil, reason):
    name = spoil.__name__
    write_model(repository / name)
    reloaded(server)
    before = client.classify(PICTURES[0], model=name, top_k=10)
    spoil(repository / name / "2")
    with Load(server.url, name) as load:
        done = reload(server)
    assert done.returncode == 1
    assert f"{name}: refused, serving version 1: " in done.stdout
    assert reason in done.stdout
    assert done.stderr.startswith(f"deit: refused: {name}; ")
    assert not load.failures
    after = client.classify(PICTURES[0], model=name, top_k=10)
    assert probabilities(after) == pytest.approx(probabilities(before), abs=SAME)
    shutil.rmtree(repository / name)
    assert f"{name}: removed" in reloaded(server)


def test_a_rollback_and_a_reload_go_back_to_the_version_before(server, repository, client):
    write_model(repository / "back")
    shutil.copy(repository / "back" / "config.pbtxt", repository / "back" / "1")  # as a published version has it
    publish(repository / "back", 2, seed=5)
    assert "back: loaded, serving version 2" in reloaded(server)
    done = deit("models", "rollback", "back", "--repository", str(repository))
    assert done.returncode == 0, done.stderr
    with Load(server.url, "back") as load:
        assert "back: loaded, serving version 1" in reloaded(server)
    assert not load.failures
    assert client.classify(PICTURES[0], model="back").version == "1"
    assert "back: unchanged, serving version 1" in reloaded(server)


def test_several_versions_can_be_served_at_once(server, repository, client):
    write_model(repository / "both", versions=2)
    assert "both: loaded, serving version 1, 2" in reloaded(server)
    assert client.classify(PICTURES[0], model="both").version == "2"
    assert client.classify(PICTURES[0], model="both", version="1").version == "1"


@pytest.mark.parametrize("published", ["1", "2"])
def test_a_version_whose_preprocessing_is_not_known_is_not_served(server, repository, client, published):
    """`version_policy { all }` written into what was published: Triton has one configuration for all versions."""
    name = f"published{published}"
    write_model(repository / name, versions=2)
    with (repository / name / "config.pbtxt").open("a") as config:
        config.write(f'parameters {{ key: "version" value {{ string_value: "{published}" }} }}')
    assert f"{name}: loaded, serving version {published}\n" in reloaded(server)
    assert client.classify(PICTURES[0], model=name).version == published
    other = {"model": name, "version": "2" if published == "1" else "1"}
    assert server.post("/classify", params=other, content=PICTURES[0]).status_code == 404


def test_the_default_model_cannot_be_removed(server, repository, client):
    write_model(repository / "another")
    (repository / "first").rename(repository / ".first")
    try:
        done = reload(server)
    finally:
        (repository / ".first").rename(repository / "first")
    assert done.returncode == 1
    assert done.stderr.startswith("deit: the default model first is no longer in the repository")
    assert client.classify(PICTURES[0]).model == "first"


def test_a_refused_version_does_not_come_back_when_triton_is_started_again(deit_serve, tmp_path):
    write_model(tmp_path / "models" / "first")
    server = deit_serve("--model-repository", tmp_path / "models", "--allow-reload", "--request-timeout-s=60")
    server.wait_until_ready()
    torn(tmp_path / "models" / "first" / "2")
    assert reload(server).returncode == 1
    (triton,) = [pid for pid in server.children() if commands([pid]) == ["tritonserver"]]
    os.kill(triton, signal.SIGKILL)
    eventually(lambda: "ready again" in server.output, timeout_s=120)
    with Client(server.url, timeout_s=60) as client:
        assert client.classify(PICTURES[0]).version == "1"


def test_nobody_loads_models_without_the_key(server):
    (triton,) = [pid for pid in server.children() if commands([pid]) == ["tritonserver"]]
    (port,) = re.findall(rb"--grpc-port=(\d+)", Path(f"/proc/{triton}/cmdline").read_bytes())
    with (
        InferenceServerClient(f"127.0.0.1:{int(port)}") as stranger,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        stranger.load_model("first")


def test_the_socket_of_a_killed_server_is_removed_by_the_next_one_and_that_of_a_live_one_is_not(server, free_port):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(control_socket(free_port)))
    live = control_socket(int(server.url.rpartition(":")[2]))
    claim_control_socket(free_port)
    assert not control_socket(free_port).exists()
    assert live.exists()


def test_without_a_server_that_takes_commands_the_way_to_one_is_told(free_port):
    done = deit("models", "reload", "--port", str(free_port))
    assert done.returncode == 1
    assert "deit serve --allow-reload" in done.stderr


@pytest.mark.soak
def test_ten_thousand_requests_with_cancellations_and_a_reload_get_their_own_answers(server, repository, client):
    """Every picture is another one; a tenth of the requests are given up at a random moment."""
    count, clients = 10_000, 32
    write_model(repository / "crowd")
    reloaded(server)
    contents = [encoded(photograph(32, 32, seed=seed), "PNG") for seed in range(count)]
    random = np.random.default_rng(0)
    patience_s = np.where(random.random(count) < 0.1, random.uniform(0, 0.2, count), 600)
    waiting = iter(range(count))
    answers, failures, given_up = {}, [], []

    async def ask(crowd):
        for index in waiting:
            try:
                async with asyncio.timeout(patience_s[index]):
                    answer = await crowd.classify(contents[index], model="crowd", top_k=10)
                answers[index] = (answer.version, probabilities(answer))
            except TimeoutError:
                given_up.append(index)
            except ClientError as error:
                failures.append(error)

    async def reload_halfway():
        while len(answers) < count // 2:
            await asyncio.sleep(0.05)
        publish(repository / "crowd", 2, seed=2)
        return await asyncio.to_thread(reloaded, server)

    async def crowd():
        async with AsyncClient(server.url, timeout_s=600, patience_s=600) as crowd, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask(crowd))
            group.create_task(reload_halfway())

    asyncio.run(crowd())
    assert not failures
    assert given_up
    assert len(answers) + len(given_up) == count
    pixels = [model_input(content, PREPROCESSING, PictureLimits(max_pixels=10**7)) for content in contents]
    expected = {
        str(version): onnxruntime.InferenceSession(repository / "crowd" / str(version) / "model.onnx").run(
            [PROBABILITIES], {"images": np.stack(pixels)}
        )[0]
        for version in (1, 2)
    }
    assert {version for version, _ in answers.values()} == {"1", "2"}
    for index, (version, found) in answers.items():
        np.testing.assert_allclose(found, expected[version][index], atol=SAME)
