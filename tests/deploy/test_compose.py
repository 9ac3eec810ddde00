"""`docker compose up` on a real engine. `make compose-test` runs it; the first time builds the images, some minutes."""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from tests.conftest import encoded, photograph
from tests.serving.conftest import eventually

pytestmark = pytest.mark.engine

SERVICES = ("triton", "gateway", "proxy")


@pytest.fixture(scope="module")
def image() -> bytes:
    return encoded(photograph(640, 480))


def classify(stack, image, **named):
    return httpx.post(f"{stack.url}/classify", content=image, timeout=30, **named)


def answers(stack, image) -> bool:
    try:
        return classify(stack, image).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_photograph_is_classified_through_the_proxy(stack, image):
    answer = classify(stack, image)
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert len(predictions) == 5
    assert 0 < sum(each["probability"] for each in predictions) <= 1.0001
    files = [image, b"torn", *(encoded(photograph(640, 480), each) for each in ("PNG", "WEBP", "AVIF"))]
    form = httpx.post(f"{stack.url}/classify", files=[("image", each) for each in files], timeout=30).json()
    assert form["results"][0]["predictions"] == predictions
    assert form["results"][1]["problem"]["status"] == 415
    assert all(each["predictions"] for each in form["results"][2:]), "the image lacks a decoder"


def test_the_proxy_refuses_what_the_gateway_would(stack):
    noise = io.BytesIO()
    Image.effect_noise((4000, 3500), 100).save(noise, "PNG")
    answer = classify(stack, noise.getvalue())
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")
    assert answer.headers["content-type"] == "application/problem+json"
    for path in ("/metrics", "/metrics/"):
        answer = httpx.get(f"{stack.url}{path}")
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found"), "metrics are for Prometheus"
    assert '"event": "GET 404", "client": "' in stack.compose("logs", "--no-log-prefix", "proxy")


def test_only_the_proxy_is_published_and_on_loopback(stack):
    published = {
        service: stack.inspect(stack.containers(service)[0])["NetworkSettings"]["Ports"] or {} for service in SERVICES
    }
    bindings = {service: [each for ports in by.values() for each in ports or []] for service, by in published.items()}
    assert bindings["triton"] == bindings["gateway"] == []
    assert bindings["proxy"] == [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]


def test_containers_are_confined(stack):
    for service in SERVICES:
        status = stack.compose("exec", "-T", service, "cat", "/proc/self/status")
        facts = dict(re.findall(r"^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):\s+(\S+)", status, re.MULTILINE))
        assert int(facts["Uid"]) > 10000, service
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0, service
        assert facts["NoNewPrivs"] == "1", service
        assert facts["Seccomp"] == "2", service
        written = stack.run("docker", "compose", "exec", "-T", service, "sh", "-c", "echo > /srv/x || echo > /x")
        assert "Read-only file system" in written.stderr, service
    for service in ("triton", "gateway"):
        networks = stack.inspect(stack.containers(service)[0])["NetworkSettings"]["Networks"]
        details = json.loads(stack.run("docker", "network", "inspect", *networks).stdout)
        assert details, service
        assert all(network["Internal"] for network in details), f"{service} can reach the world"


def test_the_triton_container_says_what_it_is(stack):
    assert "two years of security fixes" in stack.compose("logs", "--no-log-prefix", "triton")


def test_a_killed_triton_comes_back(stack, image):
    (container,) = stack.containers("triton")
    started_at = stack.inspect(container)["State"]["StartedAt"]
    stack.run("docker", "compose", "exec", "-T", "triton", "sh", "-c", "kill -9 -1")  # everything but the init
    answer = classify(stack, image)
    assert answer.status_code in (503, 200), answer.text
    eventually(lambda: stack.inspect(container)["State"]["StartedAt"] != started_at, 60)
    eventually(lambda: answers(stack, image), 120)


@contextlib.contextmanager
def load(stack, image):
    """Requests through the proxy while the block runs; yields the outcomes, each a status and the version.

    No more at once than a gateway lets in however slow it is (MIN_IMAGE_LIMIT, of which one may have its answer and not
    have left): on a machine that is busy with an update a fifth may be refused, and here every refusal is a failure.
    """
    stop, outcomes = threading.Event(), []

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{stack.url}/classify", content=image)
                    outcomes.append(f"{answer.status_code} {answer.headers.get('x-model-version', answer.text)}")
                except httpx.HTTPError as error:
                    outcomes.append(repr(error))
                stop.wait(0.05)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            yield outcomes
        finally:
            stop.set()
        for each in asking:
            each.result()


def test_a_rolling_restart_of_the_gateway_fails_no_request(stack, image):
    before = stack.containers("gateway")
    with load(stack, image) as outcomes:
        for _ in range(2):
            done = stack.run("deploy/restart-gateways", timeout_s=200)
            assert done.returncode == 0, done.stderr
        time.sleep(2)  # the last old address is forgotten
    assert set(outcomes) == {"200 1"}, {each: outcomes.count(each) for each in set(outcomes)}
    assert len(outcomes) > 100
    after = stack.containers("gateway")
    assert len(after) == len(before)
    assert not set(after) & set(before)
    up_makes_nothing_anew(stack)


def up_makes_nothing_anew(stack, **environment):
    before = {service: set(stack.containers(service)) for service in SERVICES}
    stack.compose("up", "--detach", "--wait", **environment)
    assert {service: set(stack.containers(service)) for service in SERVICES} == before


def deit_models(stack, command, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "deit", "models", command, *arguments, "--repository", stack.clone / "model_repository"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def update_models(stack):
    return stack.run("deploy/update-models", timeout_s=600)


def torn(file):
    os.truncate(file, 5000)


def without_probabilities(file):
    """A graph like any other, whose answers are not numbers."""
    graph = onnx.load(file)
    for weights in graph.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) == 2:
            weights.CopyFrom(numpy_helper.from_array(np.full(weights.dims, np.nan, np.float32), weights.name))
    onnx.save(graph, file)


def test_models_are_updated_and_rolled_back_without_a_failed_request(stack, image):
    model = stack.clone / "model_repository" / "deit_cifar10"
    deit_models(stack, "publish", str(model))
    with load(stack, image) as outcomes:
        for version in ("2", "1"):
            done = update_models(stack)
            assert done.returncode == 0, done.stderr
            count = len(outcomes) + 3  # those of which the answer is on its way
            eventually(lambda count=count: len(outcomes) > count + 10)
            assert set(outcomes[count:]) == {f"200 {version}"}
            if version == "2":
                deit_models(stack, "rollback", "deit_cifar10")
    assert set(outcomes) == {"200 1", "200 2"}, {each: outcomes.count(each) for each in set(outcomes)}
    up_makes_nothing_anew(stack)


@pytest.mark.parametrize("spoil", [torn, without_probabilities])
def test_a_broken_version_is_refused_before_anything_stops(stack, image, spoil):
    model = stack.clone / "model_repository" / "deit_cifar10"
    deit_models(stack, "publish", str(model))
    newest = max(int(each.name) for each in model.iterdir() if each.name.isdecimal())
    spoil(model / str(newest) / "model.onnx")
    before = stack.containers("triton")
    with load(stack, image) as outcomes:
        done = update_models(stack)
    assert done.returncode == 1, done.stdout
    assert "nothing was changed" in done.stderr or "served as before" in done.stderr
    assert stack.containers("triton") == before
    assert set(outcomes) == {"200 1"}, {each: outcomes.count(each) for each in set(outcomes)}
    deit_models(stack, "rollback", "deit_cifar10", "--version", "1")
    deit_models(stack, "remove", "deit_cifar10", "--version", str(newest))


MANY_CORES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>
int get_nprocs(void) { return CORES; }
int get_nprocs_conf(void) { return CORES; }
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    CPU_ZERO_S(size, set);
    for (int core = 0; core < CORES; core++) CPU_SET_S(core, size, set);
    return 0;
}
long sysconf(int name) {
    if (name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF) return CORES;
    return ((long (*)(int))dlsym(RTLD_NEXT, "sysconf"))(name);
}
"""


def with_cores(cores, folder):
    """The options of docker compose with which every process of Triton and of the gateway sees so many cores."""
    library = folder / "cores.so"
    command = ["cc", "-shared", "-fPIC", f"-DCORES={cores}", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=MANY_CORES, text=True, check=True)
    service = {"environment": {"LD_PRELOAD": "/srv/cores.so"}, "volumes": [f"{library}:/srv/cores.so:ro"]}
    file = folder / "cores.yml"
    file.write_text(json.dumps({"services": {"triton": service, "gateway": service}}))
    return "--file", "docker-compose.yml", "--file", str(file)


def test_a_broken_model_leaves_the_others_alone_and_four_models_fit_on_many_cores(stack, image, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for a library that says how many cores there are")
    names = ("deit_cifar10", "deit_cifar10_int8", "third", "fourth")
    repository = stack.clone / "model_repository"
    for name in names[2:]:
        deit_models(stack, "publish", str(repository / "deit_cifar10_int8"), "--name", name)
    for cores in (16, 64):
        # With a quota, which the engines follow: their threads would wait for each other on the cores that there are
        stack.compose(*with_cores(cores, tmp_path), "up", "--detach", "--wait", DEIT_TRITON_CPUS="2")
        for name in names:
            eventually(lambda name=name: classify(stack, image, params={"model": name}).status_code == 200, 120)
        for service, fewest in (("triton", cores), ("gateway", 16)):
            (container,) = stack.containers(service)
            assert stack.inspect(container)["RestartCount"] == 0
            threads = int(stack.run("docker", "stats", "--no-stream", "--format", "{{.PIDs}}", container).stdout)
            assert fewest < threads < 2048, service  # half of what a container may have
    stack.compose("up", "--detach", "--wait")
    torn(repository / "third" / "1" / "model.onnx")
    stack.compose("restart", "triton")
    eventually(lambda: answers(stack, image), 120)
    assert classify(stack, image, params={"model": "fourth"}).status_code == 200
    assert classify(stack, image, params={"model": "third"}).status_code == 503
    for name in ("third", "fourth"):
        deit_models(stack, "remove", name)
    done = update_models(stack)
    assert done.returncode == 0, done.stderr


def test_a_triton_of_two_that_is_stopped_fails_no_request(stack, image):
    two = {"DEIT_TRITON_CONTAINERS": "2"}
    stack.compose("up", "--detach", "--wait", "--no-recreate", **two)
    with load(stack, image) as outcomes:
        time.sleep(3)  # a name is looked up every second
        stack.run("docker", "stop", "--time", "30", stack.containers("triton")[0])
    assert set(outcomes) == {"200 1"}, {each: outcomes.count(each) for each in set(outcomes)}
    # Of a stopped Triton and a running one, Compose would keep the one with the lower number, whichever that is.
    stack.compose("rm", "--force", "triton")
    stack.compose("up", "--detach", "--wait", "--no-recreate")
    eventually(lambda: answers(stack, image), 60)


def test_gateways_ask_every_triton_in_turn(stack, image):
    stack.compose("up", "--detach", "--wait", "--no-recreate", DEIT_TRITON_CONTAINERS="2")
    metrics = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8002/metrics').read().decode())"

    def counts() -> list[float]:
        pages = [
            stack.run("docker", "exec", container, "python", "-c", metrics).stdout
            for container in stack.containers("triton")
        ]
        of_models = (re.findall(r"^nv_inference_count\{.*\} (\S+)", page, re.MULTILINE) for page in pages)
        return [sum(map(float, each)) for each in of_models]

    def both_are_asked() -> bool:
        before = counts()
        assert all(answers(stack, image) for _ in range(40))
        # the readiness canaries are a few at most in this time
        return min(now - then for now, then in zip(counts(), before, strict=True)) >= 15

    eventually(both_are_asked, 30)  # the name is looked up every second
    stack.compose("up", "--detach", "--wait", "--no-recreate", DEIT_TRITON_CONTAINERS="1")
    eventually(lambda: answers(stack, image), 60)


def test_prometheus_sees_gateway_and_triton(stack, image):
    stack.compose(
        "--profile", "observability", "up", "--detach", "--wait", "--build", "prometheus", "alertmanager", timeout_s=600
    )
    assert answers(stack, image)

    def ask(query: str) -> str:
        url = f"http://127.0.0.1:9090/api/v1/query?query={query}"
        return stack.compose("exec", "-T", "prometheus", "curl", "-sS", url)

    eventually(lambda: re.search(r'"value":\[[^,]+,"[1-9]', ask("sum(deit_images_total)")), 60)
    eventually(lambda: re.search(r'"value":\[[^,]+,"[1-9]', ask("sum(nv_inference_count)")), 60)
    eventually(lambda: re.search(r'"value":\[[^,]+,"1"', ask("deit_proxy_up")), 60)
    rules = stack.compose("exec", "-T", "prometheus", "curl", "-sS", "http://127.0.0.1:9090/api/v1/rules")
    assert rules.count('"health":"ok"') >= 10, rules
    url = "http://127.0.0.1:9090/api/v1/alertmanagers"
    eventually(lambda: ":9093/api" in stack.compose("exec", "-T", "prometheus", "curl", "-sS", url), 60)
    stack.compose("--profile", "observability", "rm", "--stop", "--force", "prometheus", "alertmanager")


def test_perf_analyzer_measures_the_stack_and_the_results_stay(stack, tmp_path):
    options = ["--rm", "--build", "--user", str(os.getuid()), "--volume", f"{tmp_path}:/tmp/results"]
    output = stack.compose("--profile", "benchmark", "run", *options, "benchmark", timeout_s=900)
    assert "written to /tmp/results/" in output
    assert [file.suffix for file in tmp_path.iterdir()] == [".jsonl"]


def test_keys_and_tls_are_a_matter_of_two_variables(stack, image, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    key, tls = "a key of more than twenty characters", tmp_path / "tls"
    tls.mkdir()
    keys = tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(key.encode()).hexdigest()}  test\n")
    files = ["-keyout", tls / "privkey.pem", "-out", tls / "fullchain.pem"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *name]
    subprocess.run([*request, "-days", "10"], check=True)
    for file in (keys, *tls.iterdir()):
        file.chmod(0o644)  # they are read by the users of the containers
    stack.compose("up", "--detach", "--wait", DEIT_API_KEYS_FILE=str(keys), DEIT_TLS=str(tls))
    url = f"https://127.0.0.1:{stack.port}/classify"
    trust = ssl.create_default_context(cafile=str(tls / "fullchain.pem"))
    with httpx.Client(verify=trust, timeout=30) as client:
        assert client.post(url, content=image).status_code == 401
        answer = client.post(url, content=image, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]
        new = "another key of more than twenty characters"
        with keys.open("a") as file:  # in its place: a container sees no file that is renamed into it
            file.write(f"{hashlib.sha256(new.encode()).hexdigest()}  new\n")
        stack.compose("kill", "--signal", "HUP", "gateway", DEIT_API_KEYS_FILE=str(keys), DEIT_TLS=str(tls))
        eventually(lambda: client.post(url, content=image, headers={"X-API-Key": new}).status_code == 200, 30)
    certificate = tls / "fullchain.pem"
    settings = {"DEIT_API_KEYS_FILE": str(keys), "DEIT_TLS": str(tls)}

    def days_left() -> float:
        lines = stack.compose("exec", "proxy", "curl", "-fsS", "http://127.0.0.1:9113/metrics", **settings)
        found = re.search(r"^deit_proxy_certificate_expires_timestamp_seconds (\d+)$", lines, re.MULTILINE)
        return (int(found[1]) - time.time()) / 86400 if found else 0

    eventually(lambda: 9 < days_left() <= 10, 30)
    subprocess.run([*request, "-days", "90"], check=True)
    (tls / "privkey.pem").chmod(0o644)
    stack.compose("kill", "--signal", "HUP", "proxy", DEIT_API_KEYS_FILE=str(keys), DEIT_TLS=str(tls))
    trust = ssl.create_default_context(cafile=str(certificate))  # which the old certificate does not satisfy

    def is_renewed() -> bool:
        try:
            return httpx.post(url, content=image, headers={"X-API-Key": key}, verify=trust).status_code == 200
        except httpx.ConnectError:
            return False

    eventually(is_renewed, 30)
    eventually(lambda: days_left() > 89, 90)
    assert httpx.get(stack.url).status_code == 308, "plain HTTP is sent to HTTPS"
    stack.compose("up", "--detach", "--wait")
    assert answers(stack, image)


def test_images_stay_below_the_sizes_that_the_docs_state(stack):
    def size(image: str) -> int:
        return int(stack.run("docker", "image", "inspect", "--format", "{{.Size}}", image).stdout)

    base = size("python:3.11-slim-bookworm")
    assert size("localhost/deit-server/gateway:test") - base <= 165e6
    assert size("localhost/deit-server/triton:test") - base <= 700e6


def test_models_become_an_image_only_if_they_are_sound(stack, tmp_path):
    """What each Triton on Kubernetes does before it starts."""

    def build(tag: str) -> subprocess.CompletedProcess[str]:
        name = f"{stack.project}/models:{tag}"
        arguments = ["--build-arg", "TRITON=localhost/deit-server/triton:test", "--tag", name, str(tmp_path / "models")]
        return stack.run("docker", "build", "--file", "deploy/images/models.Dockerfile", *arguments)

    shutil.copytree(stack.clone / "model_repository", tmp_path / "models")
    done = build("1")
    assert done.returncode == 0, done.stderr
    (tmp_path / "to").mkdir()
    (tmp_path / "to").chmod(0o777)
    mount = f"type=bind,source={tmp_path / 'to'},target=/to"
    copied = stack.run("docker", "run", "--rm", "--read-only", "--mount", mount, f"{stack.project}/models:1")
    assert copied.returncode == 0, copied.stderr
    assert contents(tmp_path / "to") == contents(tmp_path / "models")
    graph = next((tmp_path / "models").glob("*/1/model.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1000])
    assert build("2").returncode != 0


def contents(folder: Path) -> dict[str, str]:
    files = (each for each in folder.rglob("*") if each.is_file())
    return {str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def test_down_leaves_nothing(stack):
    stack.compose("--profile", "*", "down", "--volumes")
    assert stack.everything() == {"containers": [], "networks": [], "volumes": []}
    with pytest.raises(httpx.ConnectError):
        httpx.get(stack.url)
