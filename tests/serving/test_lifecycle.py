"""`deit serve` from start to end as a process: signals, kills, models that do not load."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import venv
from pathlib import Path

import httpx
import pytest

from tests.conftest import REPOSITORY_ROOT, encoded, photograph
from tests.serving.conftest import commands, eventually, free_ports, is_alive, shared_memory, write_model


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

    answer = httpx.post(f"{server.url}/classify", content=body(), timeout=60)
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
            httpx.post(f"{server.url}/classify", content=endless_body(), timeout=60)

    request = threading.Thread(target=post)
    request.start()
    try:
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
    stub = killed.children()[-1]
    os.kill(stub, signal.SIGKILL)
    killed.process.kill()
    killed.wait()
    assert shared_memory(killed)
    deit_serve("--model-repository", model_repository).wait_until_ready()
    assert not shared_memory(killed)


def test_a_triton_elsewhere_is_used(deit_serve, model_repository):
    with_triton = deit_serve("--model-repository", model_repository).wait_until_ready()
    argv = Path(f"/proc/{with_triton.children()[0]}/cmdline").read_bytes().decode().split("\0")
    (port,) = [argument.partition("=")[2] for argument in argv if argument.startswith("--grpc-port")]
    without = deit_serve(f"--triton-url=127.0.0.1:{port}").wait_until_ready()
    assert "tritonserver" not in commands(without.children())
    answer = httpx.post(f"{without.url}/classify", content=encoded(photograph(96, 64)))
    assert answer.json()["model"] == "tiny"


def test_triton_opens_its_http_port_only_when_asked(deit_serve, model_repository, free_port):
    server = deit_serve("--model-repository", model_repository, f"--triton-http-port={free_port}")
    server.wait_until_ready()
    assert httpx.get(f"http://127.0.0.1:{free_port}/v2/health/ready").status_code == 200


def break_graph(model):
    (model / "1" / "model.onnx").write_bytes(b"not a graph")


def break_names(model):
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace('"class_probabilities"', '"klass_probabilities"'))


def break_config(model):
    (model / "config.pbtxt").write_text("input [")


def remove_version(model):
    shutil.rmtree(model / "1")


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


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (break_graph, "model.onnx does not load"),
        (break_names, "klass_probabilities"),
        (break_config, "config.pbtxt"),
        (remove_version, "version"),
        (remove_labels, "labels.txt"),
        (ask_for_unknown_accelerator, "magic"),
        (promise_a_gpu, "GPU"),
        (contradict_preprocessing, "[-1, 64, 64, 3]"),
    ],
)
def test_a_model_that_does_not_load_is_one_line_with_its_name(deit_serve, tmp_path, spoil, reason):
    write_model(tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    server = deit_serve("--model-repository", tmp_path)
    assert server.wait() == 1
    (line,) = [line for line in server.lines if line.startswith("deit: ")]
    assert "spoilt" in line
    assert reason in line
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


def test_what_the_backend_cannot_honour_is_a_warning(deit_serve, tmp_path):
    write_model(tmp_path / "tiny")
    with (tmp_path / "tiny" / "config.pbtxt").open("a") as config:
        config.write('optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ] } }\n')
    server = deit_serve("--model-repository", tmp_path).wait_until_ready()
    (warning,) = [line for line in server.lines if "warning" in line]
    assert "OpenVINOExecutionProvider is not in the installed onnxruntime" in warning


def test_several_models_are_served_and_one_is_the_default(deit_serve, tmp_path):
    for name in ("a", "b"):
        write_model(tmp_path / name)
    (tmp_path / ".b.unfinished").mkdir()
    server = deit_serve("--model-repository", tmp_path, "--default-model=b").wait_until_ready()
    content = encoded(photograph(96, 64))
    assert httpx.post(f"{server.url}/classify", content=content).json()["model"] == "b"
    assert httpx.post(f"{server.url}/classify?model=a", content=content).json()["model"] == "a"
    assert [model["name"] for model in httpx.get(f"{server.url}/models").json()["models"]] == ["a", "b"]


def test_a_default_model_that_is_not_there_is_one_line(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository, "--default-model=big")
    assert server.wait() == 1
    assert "deit: --default-model (DEIT_DEFAULT_MODEL) is big, which is not served; choose from: tiny" in server.output
    assert "starting Triton" not in server.output


def test_the_soft_limit_of_open_files_does_not_limit_connections():
    code = (
        "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard));"
        "from serving.launcher import allow_open_files; allow_open_files();"
        "assert r.getrlimit(r.RLIMIT_NOFILE)[0] == min(hard, 65_536), r.getrlimit(r.RLIMIT_NOFILE)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY_ROOT)
