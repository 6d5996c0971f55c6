"""The Kubernetes files: valid with every component, and consistent with settings, images and compose.yaml."""

import dataclasses
import ipaddress
import itertools
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from contract.settings import PREFIX
from demo.product import CHECKOUT
from server.http.auth import OPEN
from server.settings import Settings
from trainer.__main__ import parse_arguments
from trainer.settings import Environment

FOLDER = CHECKOUT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
COMPONENTS = ("cron", "s3", "signatures", "gpu", "keda", "monitoring")
"""In the order of application."""
CUSTOM = {"ScaledObject", "ServiceMonitor"}
"""Custom resources."""
VERSION = "1.37"
KUSTOMIZE = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
needs_kustomize = pytest.mark.skipif(shutil.which(KUSTOMIZE[0]) is None, reason="needs kubectl or kustomize")


def load(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


@cache
def resources(folder: Path = BASE) -> list[dict]:
    names = load(folder / "kustomization.yaml")[0]["resources"]
    return [document for name in names for document in load(folder / name)]


def find(kind: str, name: str, documents: list[dict] | None = None) -> dict:
    [document] = [each for each in documents or resources() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return document


def pod(workload: dict) -> dict:
    spec = workload["spec"]
    return (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]["spec"]


def containers(workload: dict) -> list[dict]:
    return [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]


def workloads() -> list[dict]:
    documents = [*resources(), *load(FOLDER / "components/cron/train-and-rank.yaml")]
    return [each for each in documents if each["kind"] in {"Deployment", "CronJob"}]


def server() -> dict:
    """Return the server's container."""
    return pod(find("Deployment", "labelnext-server"))["containers"][0]


def build(folder: Path, components: tuple[str, ...]) -> list[dict]:
    """Return the documents that kustomize builds of the base and some components."""
    shutil.copytree(FOLDER, folder / "kubernetes")
    (folder / "kubernetes/example/kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "somewhere",
                "resources": ["../base"],
                "components": [f"../components/{name}" for name in components],
            }
        )
    )
    built = subprocess.run(
        [*KUSTOMIZE, folder / "kubernetes/example"], capture_output=True, text=True, check=False, timeout=60
    )
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.mark.parametrize("path", sorted(BASE.glob("*.yaml")), ids=lambda path: path.name)
def test_the_base_is_valid(path: Path):
    """By strict schemas, which refuse unknown fields."""
    for document in load(path):
        if document["kind"] != "Kustomization":
            kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.slow
@needs_kustomize
@pytest.mark.parametrize(
    "components",
    [(), *itertools.combinations(COMPONENTS, 1), COMPONENTS],
    ids=lambda names: "+".join(names) or "base",
)
def test_components_are_valid(tmp_path: Path, components: tuple[str, ...]):
    for document in build(tmp_path, components):
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, VERSION, strict=True)
        assert document["metadata"]["namespace"] == "somewhere"


@needs_kustomize
def test_the_number_of_servers_is_left_to_keda(tmp_path: Path):
    """Applying the files again does not reset it."""
    assert "replicas" not in find("Deployment", "labelnext-server", build(tmp_path, ("keda",)))["spec"]


@needs_kustomize
def test_the_example_can_be_built():
    """Unchanged, and it names the images."""
    built = subprocess.run([*KUSTOMIZE, FOLDER / "example"], capture_output=True, text=True, check=True, timeout=60)
    images = {
        each["image"]
        for workload in yaml.safe_load_all(built.stdout)
        if workload["kind"] == "Deployment"
        for each in containers(workload)
    }
    assert all(re.fullmatch(r"registry\.example\.org/labelnext-(server|trainer):[\d.]+", image) for image in images)


@pytest.mark.slow
@needs_kustomize
def test_an_object_store_needs_no_shared_volume(tmp_path: Path):
    """With the component s3, nothing claims the volume of models, and each pod has its own local cache."""
    built = build(tmp_path, ("s3",))
    assert "labelnext-models" not in str([each for each in built if each["kind"] != "NetworkPolicy"])
    [container] = containers(find("Deployment", "labelnext-server", built))
    assert {"name": "models", "mountPath": "/models"} in container["volumeMounts"]
    assert {"name": "LABELNEXT_VERSION_CACHE", "value": "/models"} in container["env"]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_kustomizations_list_all_files(path: Path):
    """Listed files exist, and all files are listed except the example of a secret."""
    [kustomization] = load(path)
    patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
    named = [*kustomization.get("resources", []), *patches]
    assert all((path.parent / name).exists() for name in [*named, *kustomization.get("components", [])])
    existing = {each.name for each in path.parent.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert existing == {name for name in named if not name.startswith("..")}


def test_the_example_names_every_component_in_order():
    """Also those that are commented out."""
    text = (FOLDER / "example/kustomization.yaml").read_text()
    assert re.findall(r"\.\./components/(\w+)", text) == list(COMPONENTS)
    assert {path.name for path in (FOLDER / "components").iterdir()} == set(COMPONENTS)


def test_accepted_requests_are_answered_before_the_pod_ends():
    """The grace period covers the pause before SIGTERM, the longest request, and gunicorn's five seconds."""
    spec = pod(find("Deployment", "labelnext-server"))
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > pause + Settings().deadline_s + 5
    # The pause lasts for one failed readiness probe.
    assert pause >= spec["containers"][0]["readinessProbe"]["timeoutSeconds"]


def test_probes_use_the_health_routes():
    """A pod without a version is not ready, but it is not restarted."""
    paths = {name: probe["httpGet"]["path"] for name, probe in server().items() if name.endswith("Probe")}
    live = "/health/live"
    assert paths == {"startupProbe": live, "readinessProbe": "/health/ready", "livenessProbe": live}
    assert {*paths.values()} <= OPEN


def test_ports_match():
    [port] = server()["ports"]
    recipe = (CHECKOUT / "Dockerfile.server").read_text()
    assert re.findall(r"^EXPOSE (\d+)$", recipe, re.MULTILINE) == [str(port["containerPort"])]
    environment = {each["name"]: each.get("value") for each in server()["env"]}
    assert environment["LABELNEXT_BIND"].endswith(f":{port['containerPort']}")
    service = find("Service", "labelnext-server")
    [exposed] = service["spec"]["ports"]
    assert exposed["targetPort"] == port["name"]
    url = f"http://{service['metadata']['name']}:{exposed['port']}"
    assert all(
        {"name": "LABELNEXT_SERVER", "value": url} in each["env"]
        for workload in workloads()
        for each in containers(workload)
        if each["image"] == "labelnext-trainer"
    )
    [ingress] = find("NetworkPolicy", "labelnext-server")["spec"]["ingress"]
    assert ingress["ports"] == [{"port": port["name"]}]
    [monitor] = load(FOLDER / "components/monitoring/service-monitor.yaml")
    assert monitor["spec"]["endpoints"][0]["port"] == exposed["name"]


def test_pods_are_confined():
    """They have no root, no new privileges, no writable root file system, and no access to the cluster's API."""
    for workload in workloads():
        spec = pod(workload)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in containers(workload):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_user_is_that_of_the_images():
    recipes = "".join((CHECKOUT / name).read_text() for name in ("Dockerfile.server", "Dockerfile.trainer"))
    [uid, other] = map(int, re.findall(r"useradd.* --uid (\d+)", recipes))
    assert uid == other
    for workload in workloads():
        context = pod(workload)["securityContext"]
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == uid


FIELDS = {
    PREFIX + field.name.upper(): field for settings in (Settings, Environment) for field in dataclasses.fields(settings)
}


def test_settings_exist():
    text = "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))
    assert set(re.findall(r"\bLABELNEXT_\w+", text)) <= FIELDS.keys()


def test_the_settings_are_valid():
    variables = {each["name"]: each["value"] for each in server()["env"]} | find("ConfigMap", "labelnext")["data"]
    assert Settings.read(variables).cache_bytes < 5 * 2**30  # the volume's limit


def test_secret_settings_are_only_in_the_secret():
    """Settings that logs mask are neither in the ConfigMap nor in a container's environment."""
    secret = {name for name, field in FIELDS.items() if not field.repr}
    [example] = load(BASE / "secret.example.yaml")
    assert set(example["stringData"]) == secret
    assert set(example["stringData"].values()) == {""}
    public = set(find("ConfigMap", "labelnext")["data"])
    public |= {
        each["name"] for workload in workloads() for container in containers(workload) for each in container["env"]
    }
    assert not secret & public


def test_the_trainers_arguments_are_valid():
    commands = []
    for workload in workloads():
        for each in containers(workload):
            if each["image"] == "labelnext-trainer":
                parse_arguments(each["args"])
                commands.append(shlex.join(each["args"]))
    assert commands == ["watch --project 1", "run --project 1", "rank --project 1"]


def test_there_is_one_publisher():
    """Two trainers would compete."""
    trainer = find("Deployment", "labelnext-trainer")["spec"]
    assert (trainer["replicas"], trainer["strategy"]) == (1, {"type": "Recreate"})
    [cron] = load(FOLDER / "components/cron/train-and-rank.yaml")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


def test_models_are_read_only_for_the_server():
    """Except the folder of training requests."""
    mounts = server()["volumeMounts"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in mounts
    assert {"name": "models", "mountPath": "/models/requests", "subPath": "requests"} in mounts


def test_selectors_match_only_the_servers():
    """Those of Service, PodDisruptionBudget, NetworkPolicy and ServiceMonitor."""
    labels = find("Deployment", "labelnext-server")["spec"]["template"]["metadata"]["labels"]
    [monitor] = load(FOLDER / "components/monitoring/service-monitor.yaml")
    selectors = [
        find("Service", "labelnext-server")["spec"]["selector"],
        find("PodDisruptionBudget", "labelnext-server")["spec"]["selector"]["matchLabels"],
        find("NetworkPolicy", "labelnext-server")["spec"]["podSelector"]["matchLabels"],
        monitor["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    assert find("Deployment", "labelnext-trainer")["spec"]["template"]["metadata"]["labels"] != labels


@pytest.mark.parametrize("name", ["labelnext-server", "labelnext-trainer"])
def test_images_come_from_public_addresses_only(name: str):
    """Cloud metadata and the cluster's own network are not reachable."""
    policy = find("NetworkPolicy", name)["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    blocks = [peer["ipBlock"] for rule in policy["egress"] for peer in rule["to"] if "ipBlock" in peer]
    for address in ("169.254.169.254", "10.0.0.1", "172.20.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1",
                    "fd00:ec2::254", "fe80::1"):  # fmt: skip
        ip = ipaddress.ip_address(address)
        matching = [block for block in blocks if ip in ipaddress.ip_network(block["cidr"])]
        assert matching
        assert all(any(ip in ipaddress.ip_network(except_) for except_ in block["except"]) for block in matching)


def test_keda_scales_the_servers_by_queue_and_latency():
    """Between two replicas and a limit, by the number of queued images and the 95th percentile of the latency."""
    [scaler] = load(FOLDER / "components/keda/scaled-object.yaml")
    spec = scaler["spec"]
    assert spec["scaleTargetRef"] == {"name": "labelnext-server"}
    assert 2 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    for trigger in spec["triggers"]:
        assert {"serverAddress", "query", "threshold"} <= trigger["metadata"].keys()
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    queue, guard = spec["triggers"]
    assert (queue["metricType"], guard["metricType"]) == ("AverageValue", "Value")
    assert queue["metadata"]["query"] == 'sum(labelnext_queue_images{job="labelnext"})'
    assert float(guard["metadata"]["threshold"]) < Settings().deadline_s


def test_the_monitor_scrapes_the_metrics():
    """Under the name of the job that the alerts use."""
    [monitor] = load(FOLDER / "components/monitoring/service-monitor.yaml")
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"
    assert {"targetLabel": "job", "replacement": "labelnext"} in endpoint["relabelings"]
