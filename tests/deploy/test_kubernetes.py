"""The Kubernetes manifests: rendered by kustomize, held against the API's schemas, their commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from gateway.children import FLUSH_GRACE_S
from gateway.settings import Settings
from gateway.tracing_settings import TracingSettings
from tests.builders import classifier, write_package
from tests.deploy.programs import from_group
from tests.deploy.prometheus import ALERTS, RULES
from tests.live import LiveGateway, eventually

ROOT = Path(__file__).parents[2]
KUSTOMIZATIONS = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("dev", "production")
API_VERSIONS = ("1.31", "1.37")
# Of the Prometheus operator, whose schemas are not those of Kubernetes.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}

Objects = list[dict[str, Any]]


def rendered(path: Path) -> Objects:
    done = subprocess.run([from_group("kubectl"), "kustomize", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize has something to complain about"
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Objects:
    return rendered(KUSTOMIZATIONS / "overlays" / request.param)


@pytest.fixture(scope="module")
def production() -> Objects:
    return rendered(KUSTOMIZATIONS / "overlays" / "production")


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return found


def pods(objects: Objects) -> Objects:
    """The templates of the pods of Deployments and StatefulSets."""
    return [each["spec"]["template"] for each in of_kind(objects, "Deployment", "StatefulSet")]


def container(objects: Objects, deployment: str, name: str) -> dict[str, Any]:
    template = named(objects, "Deployment", deployment)["spec"]["template"]
    (found,) = (each for each in template["spec"]["containers"] if each["name"] == name)
    assert isinstance(found, dict)
    return found


def matches(selector: dict[str, str], template: dict[str, Any]) -> bool:
    return bool(selector.items() <= template["metadata"]["labels"].items())


def ports(template: dict[str, Any]) -> set[str]:
    return {port["name"] for each in template["spec"]["containers"] for port in each["ports"]}


@pytest.mark.parametrize("version", API_VERSIONS)
def test_each_object_is_as_the_api_wants_it(overlay: Objects, version: str) -> None:
    check_against_schemas(overlay, version)


def check_against_schemas(objects: Objects, version: str) -> None:
    from_group("kubernetes-validate")
    import kubernetes_validate

    for each in objects:
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, version, strict=True)


def test_services_and_policies_find_pods_and_ports(overlay: Objects) -> None:
    for service in of_kind(overlay, "Service"):
        (template,) = (each for each in pods(overlay) if matches(service["spec"]["selector"], each))
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports(template)
    for policy in of_kind(overlay, "NetworkPolicy"):
        (template,) = (each for each in pods(overlay) if matches(policy["spec"]["podSelector"]["matchLabels"], each))
        asked = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert asked == ports(template), "each port of a pod has somebody who may come"


def test_metrics_are_scraped_from_every_pod_that_has_some(production: Objects) -> None:
    (monitor,) = of_kind(production, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    services = [s for s in of_kind(production, "Service") if wanted.items() <= s["metadata"].get("labels", {}).items()]
    scraped = {
        (service["spec"]["selector"]["app.kubernetes.io/component"], port["name"])
        for service in services
        for port in service["spec"]["ports"]
        if port["name"] in {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    }
    assert scraped == {("serving", "metrics"), ("serving", "monitor"), ("control", "metrics")}


def test_what_pods_refer_to_is_there_or_the_overlay_says_how_to_make_it(overlay: Objects) -> None:
    there = {(each["kind"], each["metadata"]["name"]) for each in overlay}
    if of_kind(overlay, "Namespace")[0]["metadata"]["name"] == "sluicegate":
        told = (KUSTOMIZATIONS / "overlays" / "production" / "kustomization.yaml").read_text()
        there |= {("Secret", name) for name in re.findall(r"create secret generic (\S+)", told)}
    for template in pods(overlay):
        for each in template["spec"]["containers"]:
            for variable in each["env"]:
                source = variable.get("valueFrom", {}).get("secretKeyRef")
                assert source is None or ("Secret", source["name"]) in there
        for volume in template["spec"].get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or ("PersistentVolumeClaim", claim) in there
            settings = volume.get("configMap", {}).get("name")
            assert settings is None or ("ConfigMap", settings) in there


def test_no_pod_of_ours_may_do_more_than_it_needs(overlay: Objects) -> None:
    for deployment in of_kind(overlay, "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for each in spec["containers"]:
            security = each["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert each["resources"]["limits"]["memory"]


def test_a_pod_has_the_time_that_its_end_takes(overlay: Objects) -> None:
    spec = named(overlay, "Deployment", "sluicegate-serving")["spec"]["template"]["spec"]
    pause_s = float(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    ends_s = pause_s + Settings().server.drain_timeout_s + 2 * FLUSH_GRACE_S
    assert spec["terminationGracePeriodSeconds"] > ends_s


def test_a_pod_has_the_time_that_loading_takes(overlay: Objects) -> None:
    probe = container(overlay, "sluicegate-serving", "serving")["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= Settings().batching.load_timeout_s


def test_the_queue_that_scales_pods_is_recorded(production: Objects) -> None:
    (scaler,) = of_kind(production, "HorizontalPodAutoscaler")
    (metric,) = (each["pods"]["metric"]["name"] for each in scaler["spec"]["metrics"] if each["type"] == "Pods")
    (rules,) = (each["spec"] for each in of_kind(production, "PrometheusRule") if "rules" in each["metadata"]["name"])
    assert metric in {rule["record"] for rule in rules["groups"][0]["rules"]}


def test_the_operator_gets_the_rules_that_others_read_from_files(production: Objects) -> None:
    shipped = {path.stem.replace(".", "-"): yaml.safe_load(path.read_text()) for path in (RULES, ALERTS)}
    assert {each["metadata"]["name"]: each["spec"] for each in of_kind(production, "PrometheusRule")} == shipped
    made = subprocess.run([sys.executable, KUSTOMIZATIONS / "prometheus_rules.py"], capture_output=True, text=True)
    assert made.stdout == (KUSTOMIZATIONS / "base" / "rules.yaml").read_text(), "make it anew, as its head says"


def test_a_cluster_for_trying_needs_no_operator() -> None:
    assert not of_kind(rendered(KUSTOMIZATIONS / "overlays" / "dev"), *FOREIGN)


def with_component(name: str, root: Path) -> Objects:
    """The production overlay with one of the components."""
    path = root / name
    path.mkdir()
    places = {
        "resources": [os.path.relpath(KUSTOMIZATIONS / "overlays" / "production", path)],
        "components": [os.path.relpath(KUSTOMIZATIONS / "components" / name, path)],
    }
    (path / "kustomization.yaml").write_text(yaml.safe_dump(places))
    return rendered(path)


def test_with_the_component_of_traces_their_collector_can_be_reached(production: Objects, tmp_path: Path) -> None:
    traced = with_component("tracing", tmp_path)
    spec = container(traced, "sluicegate-serving", "serving")
    (endpoint,) = (each["value"] for each in spec["env"] if each["name"] == "SLUICEGATE_TRACING__ENDPOINT")
    settings = TracingSettings(endpoint=endpoint)
    host, _, namespace = str(urlsplit(settings.url).hostname).partition(".")
    way = named(traced, "NetworkPolicy", "sluicegate-serving")["spec"]["egress"]
    before = named(production, "NetworkPolicy", "sluicegate-serving")["spec"]["egress"]
    target = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]
    assert [rule for rule in way if rule not in before] == [
        {"to": target, "ports": [{"port": urlsplit(settings.url).port}]}
    ]
    assert host
    check_against_schemas(traced, API_VERSIONS[-1])


def test_with_the_component_of_tls_probes_ask_a_port_that_wants_no_certificate(
    production: Objects, tmp_path: Path
) -> None:
    secured = with_component("tls", tmp_path)
    check_against_schemas(secured, API_VERSIONS[-1])
    spec, before = (container(each, "sluicegate-serving", "serving") for each in (secured, production))
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert before[kind]["httpGet"]["port"] == "data"
        assert spec[kind] == {**before[kind], "httpGet": {**before[kind]["httpGet"], "port": "metrics"}}
    (service,) = (each for each in of_kind(secured, "Service") if each["metadata"]["name"] == "sluicegate")
    assert service["spec"]["ports"] == [{"name": "https", "port": 443, "targetPort": "data"}]
    server = effective_settings(secured, "sluicegate-serving", "serving", tmp_path)["server"]
    (mount,) = (each["mountPath"] for each in spec["volumeMounts"] if each["name"] == "tls")
    files = [server[name] for name in ("tls_certificate", "tls_key", "tls_client_ca")]
    assert files == [f"{mount}/{name}" for name in ("tls.crt", "tls.key", "ca.crt")]


# -- the commands of the pods, run here ------------------------------------------------------------


def settings_of(objects: Objects) -> str:
    (found,) = of_kind(objects, "ConfigMap")
    return str(found["data"]["sluicegate.toml"])


def environment_of(spec: dict[str, Any], store: str) -> dict[str, str]:
    """What the cluster would put into the environment: the secret is the address of the database, the rest names."""
    made = {"SLUICEGATE_FLAGS__STORE": store, "SLUICEGATE_FLAGS__REPLICA": "pod-1", "SLUICEGATE_CONTROL__NAME": "ns"}
    return {each["name"]: each.get("value") or made[each["name"]] for each in spec["env"]}


def effective_settings(objects: Objects, deployment: str, name: str, root: Path) -> dict[str, Any]:
    """What the gateway makes of the command, the settings and the environment of a container."""
    spec = container(objects, deployment, name)
    (root / "sluicegate.toml").write_text(settings_of(objects))
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *spec["args"], "--print-config"],
        cwd=root,
        env={**os.environ, **environment_of(spec, "postgresql://u@db/flags")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


@pytest.mark.parametrize(
    ("deployment", "name"),
    [("sluicegate-serving", "serving"), ("sluicegate-serving", "monitor"), ("sluicegate-control", "control")],
)
def test_the_gateway_takes_the_command_of_each_container(
    overlay: Objects, tmp_path: Path, deployment: str, name: str
) -> None:
    spec = container(overlay, deployment, name)
    effective = effective_settings(overlay, deployment, name, tmp_path)
    assert effective["sampling"]["max_log_bytes"] == 2 * 1024**3
    listens = {effective["metrics"]["listen"].rpartition(":")[2]}
    if name == "serving":
        listens.add(str(effective["server"]["port"]))
    if name == "control":
        listens.add(str(effective["control"]["port"]))
        assert effective["control"]["host"] == "0.0.0.0"  # probes and others come from outside of the pod
    assert listens == {str(port["containerPort"]) for port in spec["ports"]}
    mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in spec["volumeMounts"]}
    assert mounted[effective["paths"]["state"]] is False
    assert effective["paths"]["models"] in mounted


def run_as(objects: Objects, deployment: str, name: str, root: Path, store: str, state: str) -> LiveGateway:
    """The container as a process here: its role, settings and environment, with free ports on loopback."""
    spec = container(objects, deployment, name)
    settings = tomllib.loads(settings_of(objects))
    own = {"SLUICEGATE_METRICS__LISTEN": "127.0.0.1:0"}
    role = spec["args"][spec["args"].index("--role") + 1]
    return LiveGateway(
        root / "models",
        root / state,
        role=role,
        workers=1,
        settings=settings,
        environment={**environment_of(spec, store), **own},
    )


def test_the_pods_find_each_other_over_the_database_and_their_probes_are_answered(
    production: Objects, tmp_path: Path, database: str
) -> None:
    write_package(tmp_path / "models", classifier())
    with (
        run_as(production, "sluicegate-control", "control", tmp_path, database, "control") as control,
        run_as(production, "sluicegate-serving", "serving", tmp_path, database, "serving") as serving,
        run_as(production, "sluicegate-serving", "monitor", tmp_path, database, "serving") as monitor,
    ):
        for client, deployment, name in (
            (serving.data, "sluicegate-serving", "serving"),
            (control.control, "sluicegate-control", "control"),
        ):
            spec = container(production, deployment, name)
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = spec[kind]["httpGet"]["path"]
                eventually(lambda client=client, path=path: client.get(path).is_success, f"{name} {path}")  # type: ignore[misc]
        row = dict.fromkeys(classifier().features, 0.5)
        serving.data.post("/predict/iris", json={"rows": [row]}).raise_for_status()
        for each in (control, serving, monitor):
            page = httpx.get(f"{each.ready['metrics']['url']}/metrics")
            assert "sluicegate_process_restarts_total" in page.text
            assert httpx.get(f"{each.ready['metrics']['url']}/readyz").status_code == 200
        workers = control.control.get("/admin/v1/status").json()["workers"]
        assert {worker["host"] for worker in workers} == {"pod-1"}
