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
from importlib import import_module
from pathlib import Path

import httpx
import kubernetes_validate
import pytest
import yaml

from deit.ports import free_ports
from tests.conftest import REPOSITORY_ROOT, encoded, photograph
from tests.deploy.manifests import KUBERNETES, OVERLAYS, composed, containers, identity, kustomization, kustomized
from tests.serving.conftest import eventually, running

# Kinds of operators, and the modules of their models, which take seconds to import; other kinds are of Kubernetes.
OPERATORS = {
    "ScaledObject": "keda.v1alpha1",
    "ServiceMonitor": "prometheus_operator.v1",
    "PrometheusRule": "prometheus_operator.v1",
}
KUBERNETES_VERSIONS = ("1.30", "1.37")


@pytest.fixture(params=OVERLAYS)
def objects(request):
    return kustomized(request.param)


def named(objects, kind: str, name: str) -> dict:
    (found,) = [each for each in objects if identity(each) == (kind, name)]
    return found


def pod(objects, name: str) -> dict:
    return named(objects, "Deployment", name)["spec"]["template"]["spec"]


def assert_valid(objects) -> None:
    """Each object fits the schema of its kind, which knows every field that it has."""
    for each in objects:
        if each["kind"] not in OPERATORS:
            for version in KUBERNETES_VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)
            continue
        model = getattr(import_module(f"cloudcoil.models.{OPERATORS[each['kind']]}"), each["kind"])
        read = model.model_validate(each)  # which drops what it does not know
        assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == each


def test_objects_fit_the_schemas(objects):
    assert len(objects) >= 8
    assert_valid(objects)


@pytest.mark.parametrize(
    ("kind", "field"), [("Deployment", "progressDeadline"), *((each, "spek") for each in OPERATORS)]
)
def test_a_planted_mistake_does_not_fit(kind, field):
    (first, *_) = [each for each in kustomized("cpu-autoscaled") if each["kind"] == kind]
    first["spec"][field] = 1
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        assert_valid([first])


def test_plain_overlays_need_no_operator_and_no_shared_volume():
    for overlay in ("cpu", "gpu"):
        objects = kustomized(overlay)
        kinds = {each["kind"] for each in objects}
        assert kinds == {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"}
        assert [each["spec"]["replicas"] for each in objects if each["kind"] == "Deployment"] == [2, 2]
    assert {each["kind"] for each in kustomized("cpu-autoscaled")} == {*kinds, *OPERATORS, "HorizontalPodAutoscaler"}
    for each in kustomized("cpu-autoscaled"):
        assert "replicas" not in each["spec"], "an apply would undo what the autoscaler did"


def test_no_image_is_of_a_registry_where_strangers_could_own_the_name(objects):
    for container in containers(objects):
        assert re.fullmatch(r"localhost/deit-server/[a-z-]+:[\d.]+", container["image"])


@pytest.fixture
def mine(tmp_path):
    """The objects of a folder made from mine.example, with another overlay and components."""

    def made(overlay: str, *components: str):
        kubernetes = shutil.copytree(KUBERNETES, tmp_path / "kubernetes", dirs_exist_ok=True)
        folder = shutil.copytree(kubernetes / "mine.example", kubernetes / "-".join(["mine", overlay, *components]))
        changed = yaml.safe_load((folder / "kustomization.yaml").read_text())
        changed["resources"] = [f"../overlays/{overlay}"]
        changed["components"] = [f"../components/{each}" for each in components]
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(changed))
        objects = list(yaml.safe_load_all(kustomization(folder)))
        assert_valid(objects)
        return objects

    return made


@pytest.mark.parametrize(
    ("component", "mode"), [("models-claim", "ReadWriteMany"), ("models-claim-one-node", "ReadWriteOnce")]
)
def test_models_on_a_volume_are_loaded_by_a_job(mine, component, mode):
    objects = mine("cpu", component)
    claim = named(objects, "PersistentVolumeClaim", "deit-models")
    assert claim["spec"]["accessModes"] == [mode]
    job = named(objects, "Job", "deit-load-models")["spec"]["template"]["spec"]
    triton = pod(objects, "deit-triton")
    assert not triton.get("initContainers")
    (written,) = [each["persistentVolumeClaim"] for each in job["volumes"]]
    (read,) = [each for each in triton["volumes"] if each["name"] == "models"]
    assert read == {"name": "models", "persistentVolumeClaim": {**written, "readOnly": True}}
    # a volume that one node mounts asks for Tritons on one node
    assert ("affinity" in triton) is (mode == "ReadWriteOnce")


def test_a_rollout_on_gpus_needs_a_spare_one_only_where_asked(mine):
    def strategy(objects):
        return named(objects, "Deployment", "deit-triton")["spec"]["strategy"]["rollingUpdate"]

    assert strategy(mine("gpu")) == {"maxUnavailable": 1, "maxSurge": 0}
    assert strategy(mine("gpu", "spare-gpu")) == {"maxUnavailable": 0, "maxSurge": 1}
    tolerations = pod(mine("gpu-autoscaled", "timing-cache"), "deit-triton")["tolerations"]
    assert tolerations == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_names_are_looked_up_where_clusters_answer():
    policy = named(kustomized("cpu"), "NetworkPolicy", "deit-gateway")["spec"]
    (dns,) = [rule for rule in policy["egress"] if {"port": 53, "protocol": "UDP"} in rule["ports"]]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]  # NodeLocal DNSCache


def test_alerts_are_those_of_compose_by_the_names_of_jobs_here():
    (rule,) = [each for each in kustomized("cpu-autoscaled") if each["kind"] == "PrometheusRule"]
    jobs = {each["metadata"]["name"] for each in kustomized("cpu-autoscaled") if each["kind"] == "ServiceMonitor"}

    def alerts(groups):
        return [(each["alert"], each["expr"], each["for"], each["labels"]) for each in groups[0]["rules"]]

    here = json.dumps(alerts(rule["spec"]["groups"]))
    assert set(re.findall(r"deit-\w+", here)) == jobs
    with (KUBERNETES.parent / "prometheus" / "alerts.yml").open() as file:
        assert here.replace("deit-", "") == json.dumps(alerts(yaml.safe_load(file)["groups"]))


def test_ways_in_lead_to_the_gateway():
    with (KUBERNETES / "examples" / "ingress.yaml").open() as file:
        ingress = yaml.safe_load(file)
    with (KUBERNETES / "examples" / "http-route.yaml").open() as file:
        route = yaml.safe_load(file)
    assert_valid([ingress])
    ports = {
        each["name"]: each["port"] for each in named(kustomized("cpu"), "Service", "deit-gateway")["spec"]["ports"]
    }
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "deit-gateway", "port": {"name": "http"}}
    assert route["spec"]["rules"][0]["backendRefs"] == [{"name": "deit-gateway", "port": ports["http"]}]


def test_the_page_is_followed(tmp_path):
    """Its commands, in their order, on a copy. There is no cluster and no registry: `create` is a dry run, `apply`
    shows what it would send, and `docker` notes what it is asked.
    """
    page = (REPOSITORY_ROOT / "docs" / "deploy.md").read_text().partition("## Kubernetes")[2]
    block = re.search(r"```console\n(.*?)```", page, re.DOTALL)[1]
    commands = "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)", block, re.MULTILINE))
    shutil.copytree(KUBERNETES, tmp_path / "deploy" / "kubernetes")
    (tmp_path / "keys").write_text(64 * "0" + " caller\n")
    (tmp_path / "commands").write_text(
        f"""set -euo pipefail
        docker() {{ echo "$@" >> docker; }}
        kubectl() {{
            case " $* " in
                *" create "*) {Path(sys.executable).parent}/kubectl "$@" --dry-run=client --output yaml; echo --- ;;
                *" apply "*) {Path(sys.executable).parent}/kubectl kustomize "${{@: -1}}" ;;
            esac
        }}
        {commands}"""
    )
    done = subprocess.run(["bash", "commands"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    namespace, secret, *applied = list(yaml.safe_load_all(done.stdout))
    assert_valid(applied)
    assert {each["metadata"]["namespace"] for each in [secret, *applied]} == {namespace["metadata"]["name"]}
    mounts = [each.get("secret", {}).get("secretName") for each in pod(applied, "deit-gateway")["volumes"]]
    assert secret["metadata"]["name"] in mounts
    assert list(secret["data"]) == ["keys"]
    docker = (tmp_path / "docker").read_text()
    registry = re.search(r"DEIT_REGISTRY=(\S+)", commands)[1]
    services = composed("cpu", DEIT_REGISTRY=registry)["services"]
    pushed = {services[name]["image"] for name in re.search(r"compose push (.*)", docker)[1].split()}
    pushed |= set(re.findall(r"^push (\S+)", docker, re.MULTILINE))
    assert {container["image"] for container in containers(applied)} == pushed


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
            if mount["mountPath"] == "/models":
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
    from serving.settings.limits import Limits

    drains = {"deit-gateway": LATE_REQUESTS_S + Limits().request_timeout_s + 1, "deit-triton": EXIT_TIMEOUT_S + 5}
    for name, drain_s in drains.items():
        spec = pod(objects, name)
        _, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert spec["terminationGracePeriodSeconds"] > float(seconds) + drain_s


def test_metrics_that_autoscaling_alerts_and_dashboard_ask_for_exist(server):
    """Prometheus gives no error for a name that nobody writes."""
    objects = kustomized("cpu-autoscaled")
    for content in (encoded(photograph(64, 64)), b"torn"):
        server.post("/classify?heads=true", content=content)
    with (KUBERNETES.parent / "prometheus" / "alerts.yml").open() as file:
        alerts = " ".join(rule["expr"] for group in yaml.safe_load(file)["groups"] for rule in group["rules"])
    triggers = named(objects, "ScaledObject", "deit-triton")["spec"]["triggers"]
    dashboard = (KUBERNETES.parent / "grafana" / "dashboards" / "deit.json").read_text()
    asked = set(re.findall(r"\b(?:deit|nv)_\w+", " ".join([alerts, dashboard, json.dumps(triggers)])))
    assert len(asked) > 8
    metrics_port = next(
        argument.partition("=")[2] for argument in server.process.args if "triton-metrics-port" in argument
    )
    page = "".join(
        httpx.get(f"{url}/metrics", timeout=60).text for url in (server.url, f"http://127.0.0.1:{metrics_port}")
    )
    written = set(re.findall(r"^(?:# TYPE )?(\w+)(?:\{| )", page, re.MULTILINE))  # what has not happened has a type
    # of GPUs, which are not here: Triton's docs/user_guide/metrics.md; and of Compose's proxy (test_policy.py)
    elsewhere = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "deit_proxy_certificate_expires_timestamp_seconds"}
    assert asked - written <= elsewhere


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
        remote = (f"--triton-url=127.0.0.1:{grpc}", "--max-wait-s=60")  # other tests have the cores too
        with running(*remote, environment=environment) as going, running(*remote, environment=environment) as staying:
            for gateway in (going, staying):
                gateway.wait_until_ready()
            endpoints, asked = [going.url, staying.url], [""] * 4  # by asker, the last
            outcomes: list[str] = []
            stop = threading.Event()
            content = encoded(photograph(320, 240))

            def ask(number: int) -> None:
                turn = number
                while not stop.is_set():
                    turn += 1
                    known = tuple(endpoints)
                    asked[number] = url = known[turn % len(known)]
                    try:
                        outcomes.append(str(httpx.post(f"{url}/classify", content=content, timeout=60).status_code))
                    except httpx.HTTPError as error:
                        outcomes.append(repr(error))
                    stop.wait(0.05)

            askers = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
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
                eventually(lambda: going.url not in asked, 60)  # on a busy machine an asker may be late
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
