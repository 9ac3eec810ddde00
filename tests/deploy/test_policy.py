"""What every service of every overlay owes: no root, no writing, no capability, limits, and one door."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from benchmark.command import app as benchmark
from deit.ports import free_ports
from tests.conftest import REPOSITORY_ROOT
from tests.deploy.manifests import COMPOSE_FILES, composed, composed_plainly, has_compose
from tests.serving.conftest import eventually

ONE_SHOT = {"benchmark", "export"}
OF_OTHERS = {"grafana", "otel-collector"}


@pytest.fixture(params=COMPOSE_FILES)
def project(request):
    return composed(request.param)


def test_every_service_is_confined(project):
    assert {"triton", "gateway", "proxy", "prometheus", "alertmanager", "grafana", "otel-collector"} <= set(
        project["services"]
    )
    for name, service in project["services"].items():
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        # Prometheus, nginx and Triton have threads by the cores of the machine: 627 for two models on 64
        assert int(service["pids_limit"]) == 4096, name
        assert service["mem_limit"], name
        # 0 processors, no limit, is left out by compose: Docker refuses more than the machine has
        limited = {"cpus", "cpu_shares"} & set(service)
        assert limited or (has_compose() and name in {"triton", "gateway", "proxy"}), name
        assert not {"privileged", "pid", "ipc", "network_mode", "devices"} & set(service), name
        assert all("docker.sock" not in str(volume) for volume in service.get("volumes", [])), name
        assert all("size=" in mount for mount in service["tmpfs"]), name
        assert service["logging"]["options"]["max-size"], name
        assert service["stop_grace_period"], name


def test_only_the_proxy_is_published_and_all_on_loopback_by_default(project):
    published = {name: service["ports"] for name, service in project["services"].items() if service.get("ports")}
    assert set(published) == {"proxy", "grafana"}
    for ports in published.values():
        assert all((port["host_ip"] if isinstance(port, dict) else port[:9]) == "127.0.0.1" for port in ports)


def test_grafana_stays_on_loopback_whatever_the_address(project):
    for name in COMPOSE_FILES:
        (port,) = composed(name, DEIT_ADDRESS="0.0.0.0", DEIT_INSECURE="1")["services"]["grafana"]["ports"]
        assert "127.0.0.1" in str(port)


def test_triton_and_the_gateway_are_on_internal_networks_alone(project):
    internal = {name for name, network in project["networks"].items() if (network or {}).get("internal")}
    assert internal == {"gateway", "triton", "dashboard"}
    for service in ("triton", "gateway", "benchmark"):
        assert set(project["services"][service]["networks"]) <= internal


def test_the_model_repository_is_read_only_but_for_its_writer(project):
    for name, service in project["services"].items():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict) and str(volume.get("source", "")).endswith("model_repository"):
                assert volume.get("read_only", False) is (name != "export"), name


def test_a_service_starts_when_what_it_needs_is_well(project):
    for name, service in project["services"].items():
        for needed, condition in service.get("depends_on", {}).items():
            one_shot = needed in ONE_SHOT
            wanted = "service_completed_successfully" if one_shot else "service_healthy"
            assert condition["condition"] == wanted, (name, needed)
            if not one_shot:
                assert project["services"][needed]["healthcheck"]["test"], needed
        if name not in ONE_SHOT | {"otel-collector"}:
            assert service["healthcheck"].get("test"), f"{name} has no health check"
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name


def test_grace_is_longer_than_the_drains(project):
    """The gateway: late requests 1 s, then the longest request and 1 s; Triton: its own 10 s and 5 s."""
    from serving.embedded.command_line import EXIT_TIMEOUT_S
    from serving.gateway.server import LATE_REQUESTS_S
    from serving.settings.limits import Limits

    grace = {
        name: int(project["services"][name]["stop_grace_period"].removesuffix("s")) for name in ("gateway", "triton")
    }
    assert grace["gateway"] > LATE_REQUESTS_S + Limits().request_timeout_s + 1
    assert grace["triton"] > EXIT_TIMEOUT_S + 5


def test_images_are_ours_or_pinned(project):
    for name, service in project["services"].items():
        image = service["image"]
        if name in OF_OTHERS:
            assert re.search(r":\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?$", image), image
        else:
            assert image.startswith("localhost/deit-server/"), image
            assert service["build"]["dockerfile"].startswith("deploy/images/"), name


def test_the_gpu_overlay_takes_the_place_of_the_old_triton():
    triton = composed("gpu")["services"]["triton"]
    assert triton["image"].startswith("localhost/deit-server/triton-gpu:")
    assert triton["build"]["dockerfile"] == "deploy/images/triton-gpu.Dockerfile"
    assert not triton.get("environment"), "settings of `deit triton` mean nothing to NVIDIA's"
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_the_gpu_overlay_asks_for_an_image():
    environment = {"TRITON_IMAGE": ""}
    if has_compose():
        files = [f"--file={file}" for file in COMPOSE_FILES["gpu"]]
        done = subprocess.run(
            ["docker", "compose", *files, "config"],
            cwd=REPOSITORY_ROOT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0
        assert "26.07" in done.stderr
    else:
        with pytest.raises(KeyError, match=r"26\.07"):
            composed_plainly("gpu", environment)


def test_every_variable_is_explained():
    text = "".join((REPOSITORY_ROOT / file).read_text() for file in COMPOSE_FILES["gpu"])
    used = set(re.findall(r"\$\{(\w+)", text))
    explained = set(re.findall(r"^#?(\w+)=", (REPOSITORY_ROOT / ".env.example").read_text(), re.MULTILINE))
    assert explained == used


def test_build_files_pin_what_they_install():
    folder = REPOSITORY_ROOT / "deploy" / "images"
    for file in folder.glob("*.Dockerfile"):
        for line in file.read_text().replace("\\\n", " ").splitlines():
            if "pip install" in line:
                assert "--require-hashes" in line, f"{file.name}: {line}"
            assert not re.match(r"FROM \S+:latest", line), f"{file.name}: {line}"
    assert "--frozen" in (folder / "install-extra").read_text()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "192.0.2.7"])
@pytest.mark.parametrize("keys", ["", "keys"])
@pytest.mark.parametrize("insecure", ["", "1"])
def test_the_proxy_lets_strangers_in_only_with_keys(tmp_path, address, keys, insecure):
    nginx = tmp_path / "nginx"
    nginx.write_text("#!/bin/sh\necho started\n")
    nginx.chmod(0o755)
    done = subprocess.run(
        [REPOSITORY_ROOT / "deploy/proxy/start"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PUBLISHED_ADDRESS": address,
            "API_KEYS": keys,
            "WRITTEN_FOLDER": str(tmp_path),
            "DEIT_INSECURE": insecure,
        },
        capture_output=True,
        text=True,
    )
    if address == "127.0.0.1" or keys or insecure:
        assert (done.returncode, done.stdout) == (0, "started\n")
        has_ipv6 = Path("/proc/net/if_inet6").exists()
        assert ("listen [::]:8080" in (tmp_path / "ipv6.conf").read_text()) is has_ipv6
    else:
        assert done.returncode == 2
        assert "DEIT_API_KEYS_FILE" in done.stderr


@pytest.mark.parametrize(
    ("networks", "written"),
    [
        ("", ""),
        (
            "10.0.0.7, fd00::/8",
            "set_real_ip_from 10.0.0.7;\nset_real_ip_from fd00::/8;\n"
            "real_ip_header X-Forwarded-For;\nreal_ip_recursive on;\n",
        ),
        ("10.0.0.7;load_module x", None),
    ],
)
def test_the_proxy_believes_the_load_balancers_that_it_is_given(tmp_path, networks, written):
    nginx = tmp_path / "nginx"
    nginx.write_text("#!/bin/sh\n")
    nginx.chmod(0o755)
    environment = {"PUBLISHED_ADDRESS": "127.0.0.1", "WRITTEN_FOLDER": str(tmp_path)}
    done = subprocess.run(
        [REPOSITORY_ROOT / "deploy/proxy/start"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "TRUSTED_PROXIES": networks, **environment},
        capture_output=True,
        text=True,
    )
    if written is None:
        assert done.returncode == 2
        assert "DEIT_TRUSTED_PROXIES" in done.stderr
    else:
        assert (tmp_path / "real-ip.conf").read_text() == written


def test_when_the_served_certificate_expires_is_written_for_prometheus(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    files = ["-keyout", tmp_path / "privkey.pem", "-out", tmp_path / "fullchain.pem"]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, "-subj", "/CN=localhost"]
    subprocess.run([*request, "-days", "10"], check=True, capture_output=True)
    port, metrics = free_ports(1)[0], tmp_path / "metrics"
    pair = ["-cert", tmp_path / "fullchain.pem", "-key", tmp_path / "privkey.pem"]
    watch = [REPOSITORY_ROOT / "deploy/proxy/watch-certificate", f"127.0.0.1:{port}", metrics]
    with subprocess.Popen(watch) as watching:
        with subprocess.Popen(
            ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", *pair], stdin=subprocess.DEVNULL
        ) as server:
            eventually(lambda: metrics.exists() or server.poll() is not None, 60)
            assert metrics.exists(), f"openssl s_server ended with {server.returncode}"
            server.terminate()
        watching.terminate()
    value = re.search(r"^deit_proxy_certificate_expires_timestamp_seconds (\d+)$", metrics.read_text(), re.MULTILINE)
    assert int(value[1]) - time.time() == pytest.approx(10 * 86400, abs=3600)


def test_the_proxys_own_errors_are_problems_of_the_gateway():
    from serving.gateway.errors import PROBLEMS

    text = (REPOSITORY_ROOT / "deploy/proxy/gateway.conf").read_text()
    pages = dict(re.findall(r"error_page ([\d ]+) = (@\w+);", text))
    assert {status for each in pages for status in each.split()} >= {"400", "408", "413", "414", "429", "494", "502"}
    for place in pages.values():
        (block,) = re.findall(rf"^location {place} {{\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)
        status, body = re.search(r"return (\d+) '(.*)';", block).groups()
        problem = json.loads(body)
        known = PROBLEMS[problem["type"].removeprefix("/problems/")]
        assert (int(status), problem["status"], problem["title"]) == (known.status, known.status, known.title)
        assert ("Retry-After" in block) is known.may_succeed_later, place
        assert "application/problem+json" in block


def test_the_proxy_and_the_gateway_agree_on_sizes():
    from serving.settings.limits import Limits

    settings = (REPOSITORY_ROOT / "deploy/proxy/http-settings.conf").read_text()
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", settings)
    assert int(megabytes) * 2**20 == Limits().max_body_bytes


def test_alert_rules_are_rules():
    groups = yaml.safe_load((REPOSITORY_ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
        assert {"summary", "description"} == set(rule["annotations"])


def test_alerts_fire_once_when_they_are_true(tmp_path):
    """By Prometheus' own tool, of this machine or of the image that `make compose-test` builds."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    rules = REPOSITORY_ROOT / "tests/deploy/alerts_test.yml"
    done = subprocess.run(["promtool", "test", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "status"), [("", 0), ("https://alerts.example.org/hook?it's", 0), ("alerts.example.org", 2)]
)
def test_alertmanager_sends_to_the_webhook_that_is_given(tmp_path, url, status):
    alertmanager = tmp_path / "prometheus-alertmanager"
    alertmanager.write_text("#!/bin/sh\n")
    alertmanager.chmod(0o755)
    configuration = tmp_path / "alertmanager.yml"
    done = subprocess.run(
        [REPOSITORY_ROOT / "deploy/alertmanager/start"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONFIGURATION": str(configuration), "ALERT_WEBHOOK": url},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    if status == 0:
        (receiver,) = yaml.safe_load(configuration.read_text())["receivers"]
        assert [hook["url"] for hook in receiver.get("webhook_configs", [])] == ([url] if url else [])


def test_the_benchmark_service_gives_options_that_the_command_has(project):
    name, *arguments = project["services"]["benchmark"]["command"]
    command = get_command(benchmark).commands[name]
    with command.make_context(name, arguments) as context:
        assert context.params["triton_url"] == "triton:8001"
        for folder in ("csv", "results"):
            assert str(context.params[folder]).startswith("/tmp/"), "all else is read-only"
