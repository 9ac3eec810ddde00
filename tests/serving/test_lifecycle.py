"""`deit serve` from start to end as a process: signals, kills, models that do not load."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import venv
from pathlib import Path

import httpx
import pytest

from deit.ports import free_ports
from tests.conftest import REPOSITORY_ROOT, encoded, photograph
from tests.serving.conftest import commands, eventually, is_alive, running, shared_memory, write_model
from tests.serving.embedded.test_standalone import answers


def test_sigterm_finishes_requests_and_then_stops_both(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository).wait_until_ready()
    children = server.children()
    assert {"tritonserver", "triton_python_backend_stub"} <= set(commands(children))
    content = encoded(photograph(2000, 2000))

    def body():
        yield content[:1000]
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "finishing the requests" in server.output)
        yield content[1000:]

    answer = server.post("/classify", content=body())
    assert answer.status_code == 200
    assert server.wait() == 0
    assert not any(map(is_alive, children))
    assert "Traceback" not in server.output


def test_ctrl_c_in_a_terminal_stops_both(deit_serve, model_repository):
    """A terminal signals the whole process group; Triton is in another one."""
    server = deit_serve("--model-repository", model_repository).wait_until_ready()
    children = server.children()
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.wait() == 0
    assert not any(map(is_alive, children))
    assert "Traceback" not in server.output


def test_sigterm_before_it_is_ready_stops_it(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository)
    eventually(lambda: "starting Triton" in server.output)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.output


def test_a_second_signal_ends_at_once(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository, "--request-timeout-s=300").wait_until_ready()
    children = server.children()
    release = threading.Event()

    def endless_body():
        yield b"\xff\xd8"
        release.wait(60)
        yield b""

    def post():
        with contextlib.suppress(httpx.HTTPError):
            server.post("/classify", content=endless_body())

    request = threading.Thread(target=post)
    request.start()
    try:
        eventually(lambda: "deit_requests_in_flight 2.0" in server.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "finishing the requests" in server.output)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
    finally:
        release.set()
        request.join()
    eventually(lambda: not any(map(is_alive, children)))


def test_kill_9_leaves_no_triton_no_stub_and_no_shared_memory(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository).wait_until_ready()
    children = server.children()
    assert shared_memory(server)
    server.process.kill()
    assert server.wait() == -signal.SIGKILL
    eventually(lambda: not any(map(is_alive, children)))
    eventually(lambda: not shared_memory(server))


def test_kill_9_leaves_no_stub_that_cannot_notice(deit_serve, model_repository):
    """As one that waits for a lock of the killed Triton; stopped, because such a one cannot be had at will."""
    server = deit_serve("--model-repository", model_repository).wait_until_ready()
    stub = server.pid_of("triton_python_backend")
    os.kill(stub, signal.SIGSTOP)
    server.process.kill()
    eventually(lambda: not is_alive(stub))


def test_the_next_start_removes_what_a_killed_one_left(deit_serve, model_repository):
    """Nobody is left to remove its shared memory when the stub was killed first."""
    killed = deit_serve("--model-repository", model_repository).wait_until_ready()
    assert shared_memory(killed)  # looked at now: after the kill, any start on this machine may remove it
    stub = killed.children()[-1]
    os.kill(stub, signal.SIGKILL)
    killed.process.kill()
    killed.wait()
    deit_serve("--model-repository", model_repository).wait_until_ready()
    assert not shared_memory(killed)


def break_graph(model):
    (model / "1" / "model.onnx").write_bytes(b"not a graph")


def break_names(model):
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace('"class_probabilities"', '"klass_probabilities"'))


def remove_labels(model):
    (model / "labels.txt").unlink()


def ask_for_unknown_accelerator(model):
    with (model / "config.pbtxt").open("a") as config:
        config.write('optimization { execution_accelerators { cpu_execution_accelerator [ { name: "magic" } ] } }\n')


def promise_a_gpu(model):
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_AUTO", "KIND_GPU"))


def contradict_preprocessing(model):
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace('\\"image_size\\": 32', '\\"image_size\\": 64'))


SPOILT = {
    "graph": (break_graph, "model.onnx does not load"),
    "names": (break_names, "klass_probabilities"),
    "labels": (remove_labels, "labels.txt"),
    "accelerator": (ask_for_unknown_accelerator, "'magic' is not known"),
    "gpu": (promise_a_gpu, "no GPUs are available"),
    "preprocessing": (contradict_preprocessing, "[-1, 64, 64, 3]"),
}


def test_models_that_do_not_load_are_named_with_their_reasons(deit_serve, tmp_path):
    for name, (spoil, _) in SPOILT.items():
        write_model(tmp_path / name)
        spoil(tmp_path / name)
    server = deit_serve("--model-repository", tmp_path)
    assert server.wait() == 1
    said = server.output.partition("\ndeit: ")[2]
    reasons = dict(re.findall(r"the model (\w+) is not served: (.*?)(?=; the model \w+ is not|\Z)", said, re.DOTALL))
    assert reasons.keys() == SPOILT.keys()
    for name, (_, reason) in SPOILT.items():
        assert reason in reasons[name]
    assert "Traceback" not in server.output
    assert not server.children()


def test_a_model_whose_engine_is_missing_is_one_line_with_the_way_out(tmp_path):
    """In an environment with everything that is installed here but OpenVINO, as `make serve` makes one."""
    write_model(tmp_path / "models" / "tiny")
    config = tmp_path / "models" / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "openvino"'))
    venv.create(tmp_path / "venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib"))
    for entry in packages.iterdir():
        if not entry.name.startswith("openvino"):
            (tmp_path / "venv" / packages.relative_to(sys.prefix) / entry.name).symlink_to(entry)
    grpc, metrics = free_ports(2)
    ports = ("--port=0", f"--triton-grpc-port={grpc}", f"--triton-metrics-port={metrics}")
    done = subprocess.run(
        [tmp_path / "venv/bin/python", "-m", "deit", "serve", "--model-repository", tmp_path / "models", *ports],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "tiny runs on OpenVINO, which cannot be imported here (No module named 'openvino'); install" in done.stderr


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A server of `a`, which asks for an accelerator that is not here, and `b`, the default."""
    repository = tmp_path_factory.mktemp("several")
    for name in ("a", "b"):
        write_model(repository / name)
    with (repository / "a" / "config.pbtxt").open("a") as config:
        config.write('optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ] } }\n')
    (repository / ".b.unfinished").mkdir()
    (port,) = free_ports(1)
    options = ("--default-model=b", f"--triton-http-port={port}")
    with running("--model-repository", repository, *options) as server:
        yield server.wait_until_ready()


def test_what_the_backend_cannot_honour_is_a_warning(several):
    said = "OpenVINOExecutionProvider is not in the installed onnxruntime"
    eventually(lambda: said in several.output)
    (line,) = [line for line in several.lines if said in line]
    assert "warning" in line


def test_several_models_are_served_and_one_is_the_default(several):
    content = encoded(photograph(96, 64))
    assert several.post("/classify", content=content).json()["model"] == "b"
    assert several.post("/classify?model=a", content=content).json()["model"] == "a"
    assert [model["name"] for model in several.get("/models").json()["models"]] == ["a", "b"]


def test_triton_opens_its_http_port_when_asked(several):
    (option,) = [each for each in several.process.args if each.startswith("--triton-http-port=")]
    url = f"http://127.0.0.1:{option.partition('=')[2]}/v2/health/ready"
    eventually(lambda: answers(url))  # Triton opens it after the port that the gateway asks


def test_the_soft_limit_of_open_files_does_not_limit_connections():
    code = (
        "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard));"
        "from serving.launcher import allow_open_files; allow_open_files();"
        "assert r.getrlimit(r.RLIMIT_NOFILE)[0] == min(hard, 65_536), r.getrlimit(r.RLIMIT_NOFILE)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY_ROOT)
