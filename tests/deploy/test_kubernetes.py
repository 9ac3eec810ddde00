"""deploy/kubernetes against the schemas of Kubernetes and of the operators, and its drains against real processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import kubernetes_validate
import pytest
import yaml

from tests.conftest import encoded, photograph
from tests.deploy.manifests import KUBERNETES, OVERLAYS, containers, identity, kustomized, kustomized_plainly
from tests.serving.conftest import eventually, free_ports, running

OPERATORS = {"ScaledObject", "ServiceMonitor"}
KUBERNETES_VERSIONS = ("1.30", "1.37")


@pytest.fixture(params=OVERLAYS)
def objects(request):
    return kustomized(request.param)


def named(objects, kind: str, name: str) -> dict:
    (found,) = [each for each in objects if identity(each) == (kind, name)]
    return found


def pod(objects, name: str) -> dict:
    return named(objects, "Deployment", name)["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_objects_fit_the_schemas_of_kubernetes(objects, version):
    kinds = [each for each in objects if each["kind"] not in OPERATORS]
    assert len(kinds) >= 10
    for each in kinds:
        kubernetes_validate.validate(each, version, strict=True)


def test_a_planted_mistake_does_not_fit(objects):
    gateway = named(objects, "Deployment", "deit-gateway")
    gateway["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(gateway, KUBERNETES_VERSIONS[-1], strict=True)


def test_objects_of_operators_fit_their_schemas(objects):
    if shutil.which("node") is None or not (KUBERNETES / "schemas" / "node_modules").is_dir():
        pytest.skip("needs node and the schemas that `make kubernetes-schemas` installs with npm")
    kinds = [each for each in objects if each["kind"] in OPERATORS]
    command = ["node", KUBERNETES / "schemas" / "check.mjs"]
    done = subprocess.run(command, input=json.dumps(kinds), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fits its schema") == 3
    kinds[0]["spec"]["minReplicaCount"] = "two"
    kinds[0]["spec"]["endpoints"] = "none"
    assert subprocess.run(command, input=json.dumps(kinds), capture_output=True, text=True).returncode == 1


def test_the_plain_reading_of_overlays_is_kustomizes(objects, request):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, whose kustomize is compared with")
    overlay = request.node.callspec.params["objects"]
    plainly = kustomized_plainly(KUBERNETES / "overlays" / overlay)
    assert sorted(map(text_of, plainly)) == sorted(map(text_of, objects))


def text_of(value: object) -> str:
    """The same for mappings and lists in any order; kustomize puts what a patch adds first, and fills in nothing."""
    if isinstance(value, dict):
        return str(sorted((key, text_of(each)) for key, each in value.items()))
    if isinstance(value, list):
        return str(sorted(map(text_of, value)))
    return repr(value)


def test_every_container_is_confined(objects):
    for name in ("deit-gateway", "deit-triton"):
        spec = pod(objects, name)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert not container["image"].endswith(":latest")
        for mount in container["volumeMounts"]:
            if mount["name"] == "models":
                assert mount["readOnly"] is True


def test_gateways_find_each_triton_by_a_headless_service(objects):
    (gateway,) = pod(objects, "deit-gateway")["containers"]
    url = next(each["value"] for each in gateway["env"] if each["name"] == "DEIT_TRITON_URL")
    host, port = url.split(":")
    service = named(objects, "Service", host)
    assert service["spec"]["clusterIP"] == "None"
    assert int(port) in [each["port"] for each in service["spec"]["ports"]]
    labels = named(objects, "Deployment", "deit-triton")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_only_gateways_reach_triton(objects):
    policy = named(objects, "NetworkPolicy", "deit-triton")["spec"]
    assert policy["egress"] == []
    grpc = [rule for rule in policy["ingress"] if {"port": "grpc"} in rule["ports"]]
    assert [rule["from"] for rule in grpc] == [
        [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "deit-gateway"}}}]
    ]


def test_grace_is_longer_than_what_stopping_takes(objects):
    from serving.embedded.command_line import EXIT_TIMEOUT_S
    from serving.gateway.server import LATE_REQUESTS_S
    from serving.settings import Limits

    drains = {"deit-gateway": LATE_REQUESTS_S + Limits().request_timeout_s + 1, "deit-triton": EXIT_TIMEOUT_S + 5}
    for name, drain_s in drains.items():
        spec = pod(objects, name)
        _, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert spec["terminationGracePeriodSeconds"] > float(seconds) + drain_s


def test_metrics_that_autoscaling_alerts_and_dashboard_ask_for_exist(server):
    """Prometheus gives no error for a name that nobody writes."""
    objects = kustomized("cpu")
    for content in (encoded(photograph(64, 64)), b"torn"):
        httpx.post(f"{server.url}/classify?heads=true", content=content, timeout=60)
    with (KUBERNETES.parent / "prometheus" / "alerts.yml").open() as file:
        alerts = " ".join(rule["expr"] for group in yaml.safe_load(file)["groups"] for rule in group["rules"])
    triggers = named(objects, "ScaledObject", "deit-triton")["spec"]["triggers"]
    dashboard = (KUBERNETES.parent / "grafana" / "dashboards" / "deit.json").read_text()
    asked = set(re.findall(r"\b(?:deit|nv)_\w+", " ".join([alerts, dashboard, json.dumps(triggers)])))
    assert len(asked) > 8
    metrics_port = next(
        argument.partition("=")[2] for argument in server.process.args if "triton-metrics-port" in argument
    )
    page = httpx.get(f"{server.url}/metrics").text + httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    written = set(re.findall(r"^(\w+)(?:\{| )", page, re.MULTILINE))
    # of GPUs, which are not here: Triton's docs/user_guide/metrics.md
    assert asked - written <= {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}


def test_a_gateway_that_goes_fails_no_request(model_repository):
    """What kubelet does: preStop and the endpoint's removal at once, then SIGTERM, with real processes under load.

    Two gateways before one Triton; the client stops using the first as late as preStop is made for.
    """
    objects = kustomized("cpu")
    (container,) = pod(objects, "deit-gateway")["containers"]
    pre_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    grace_s = pod(objects, "deit-gateway")["terminationGracePeriodSeconds"]
    (grpc, metrics) = free_ports(2)
    environment = {each["name"]: each["value"] for each in container["env"] if each["name"] == "DEIT_LOG_FORMAT"}
    triton = subprocess.Popen(
        [sys.executable, "-m", "deit", "triton", f"--triton-grpc-port={grpc}", f"--triton-metrics-port={metrics}"],
        env={**os.environ, "DEIT_MODEL_REPOSITORY": str(model_repository)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        remote = f"--triton-url=127.0.0.1:{grpc}"
        with running(remote, environment=environment) as going, running(remote, environment=environment) as staying:
            for gateway in (going, staying):
                gateway.wait_until_ready()
            endpoints = [going.url, staying.url]
            outcomes: list[str] = []
            stop = threading.Event()
            content = encoded(photograph(320, 240))

            def ask(first: int) -> None:
                turn = first
                while not stop.is_set():
                    turn += 1
                    url = endpoints[turn % len(endpoints)]
                    try:
                        outcomes.append(str(httpx.post(f"{url}/classify", content=content, timeout=60).status_code))
                    except httpx.HTTPError as error:
                        outcomes.append(repr(error))
                    stop.wait(0.05)

            askers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
            for asker in askers:
                asker.start()
            try:
                eventually(lambda: len(outcomes) > 20, 60)  # all are asking
                terminated_s = time.monotonic()
                hook = subprocess.Popen(pre_stop)
                # the last node hears of it when preStop is nearly over
                time.sleep(float(pre_stop[1]) * 0.8)
                endpoints.remove(going.url)
                assert hook.wait() == 0
                going.process.send_signal(signal.SIGTERM)
                assert going.wait() == 0
                assert time.monotonic() - terminated_s < grace_s
            finally:
                stop.set()
                for asker in askers:
                    asker.join()
            assert set(outcomes) == {"200"}, {each: outcomes.count(each) for each in set(outcomes)}
    finally:
        triton.send_signal(signal.SIGTERM)
        _, said = triton.communicate(timeout=60)
    assert triton.returncode == 0, said
