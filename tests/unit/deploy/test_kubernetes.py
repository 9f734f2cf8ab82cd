"""The manifests without a cluster: schemas, names, commands, logins, rights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.logins import DatabaseRole
from tests.command_lines import parse
from tests.deployed import DEPLOY, LEAST_STOP_S, require_setting

KUBERNETES = DEPLOY / "kubernetes"


def documents() -> list[tuple[str, dict[str, Any]]]:
    """Each object of the manifests, with its file's name."""
    return [
        (path.name, document)
        for path in sorted(KUBERNETES.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


OBJECTS = [(file, found) for file, found in documents() if found["kind"] != "Kustomization"]
PODS = {
    found["metadata"]["name"].removeprefix("specthink-"): found["spec"]["template"]["spec"]
    for _, found in OBJECTS
    if found["kind"] in ("Deployment", "Job")
}
MODELS: dict[str, str] = next(
    found["data"] for _, found in OBJECTS if found["metadata"]["name"] == "specthink-models"
)  # fmt: skip

CUSTOM: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "custom-resources.json").read_text())
"""Of objects that are not Kubernetes' own: version and schema."""


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_manifests_are_what_kubernetes_takes(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="`make test` installs kubernetes-validate")
    seen = 0
    for _, found in OBJECTS:
        if found["kind"] not in CUSTOM:
            validator.validate(found, version, strict=True)
            seen += 1
    assert seen >= 19


def test_a_manifest_with_a_wrong_field_is_refused() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="`make test` installs kubernetes-validate")
    wrong = next(found for _, found in documents() if found["kind"] == "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["comand"] = ["specthink"]
    with pytest.raises(validator.ValidationError, match="comand"):
        validator.validate(wrong, "1.37", strict=True)


@pytest.mark.parametrize(
    "found", [found for _, found in OBJECTS if found["kind"] in CUSTOM], ids=lambda found: found["kind"]
)
def test_objects_of_others_are_what_these_take(found: dict[str, Any]) -> None:
    assert found["apiVersion"] == CUSTOM[found["kind"]]["apiVersion"]
    assert found.keys() == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.Draft202012Validator(CUSTOM[found["kind"]]["spec"]).validate(found["spec"])


def test_kustomization_lists_every_manifest_once() -> None:
    content = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(content["resources"]) == sorted(files)
    assert {image["name"] for image in content["images"]} == {
        container["image"] for pod in PODS.values() for container in pod["containers"]
    }


def test_names_are_used_once_and_those_that_are_named_exist() -> None:
    named = [(found["kind"], found["metadata"]["name"]) for _, found in OBJECTS]
    assert len(named) == len(set(named))
    for _, found in OBJECTS:
        if found["kind"] == "ScaledObject":
            assert ("Deployment", found["spec"]["scaleTargetRef"]["name"]) in named
        if found["kind"] == "Service":
            pod = PODS[found["spec"]["selector"]["app.kubernetes.io/name"].removeprefix("specthink-")]
            ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
            assert {port["targetPort"]: port["port"] for port in found["spec"]["ports"]} == ports


def command_of(pod: dict[str, Any]) -> str:
    (container,) = pod["containers"]
    command = shlex.join(container["command"])
    return re.sub(r"'?\$\((\w+)\)'?", lambda match: MODELS[match[1]], command)


@pytest.mark.parametrize("name", PODS)
def test_pod_runs_a_command_of_specthink(name: str) -> None:
    parse(command_of(PODS[name]))


@pytest.mark.parametrize("name", PODS)
def test_pod_is_given_its_own_login_alone(name: str) -> None:
    roles = {"migrate": "owner", "small": "writer", "large": "writer", "judge": "writer", "grade": "grader",
             "upkeep": "upkeep", "gateway": "gateway", "metrics": "monitor"}  # fmt: skip
    sources = PODS[name]["containers"][0]["envFrom"]
    secrets = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    own = {f"specthink-{roles[name]}"} if name in roles else {"specthink-flower"}
    assert secrets == own | {"specthink-redis"}
    assert {role for role in roles.values() if role != "owner"} <= {role.value for role in DatabaseRole}


@pytest.mark.parametrize("name", PODS)
def test_pod_has_no_right_that_it_does_not_need(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", [name for name in PODS if name != "migrate"])
def test_pod_may_drain_before_it_is_killed(name: str) -> None:
    assert PODS[name]["terminationGracePeriodSeconds"] >= LEAST_STOP_S


@pytest.mark.parametrize("role", ["small", "large", "judge"])
def test_models_have_a_gpu_and_shared_memory(role: str) -> None:
    (container,) = PODS[role]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    (scaled,) = [
        found["spec"] for _, found in OBJECTS
        if found["kind"] == "ScaledObject" and found["metadata"]["name"] == f"specthink-{role}"
    ]  # fmt: skip
    query = scaled["triggers"][0]["metadata"]["query"]
    assert f"role = '{role}' AND model = '{MODELS[f'{role.upper()}_MODEL']}'" in query, "the model that the pods serve"


def test_settings_that_the_manifests_name_are_settings() -> None:
    for path in KUBERNETES.glob("*.yaml"):
        for variable in re.findall(r"SPECTHINK_[A-Z_]+", path.read_text()):
            require_setting(variable)


def test_policies_of_the_network_name_ports_that_there_are() -> None:
    ports = {port["name"] for pod in PODS.values() for port in pod["containers"][0].get("ports", ())}
    for _, found in OBJECTS:
        if found["kind"] == "NetworkPolicy":
            rules = found["spec"].get("ingress", [])
            assert {port["port"] for rule in rules for port in rule["ports"]} <= ports
        if found["kind"] == "PodMonitor":
            assert {endpoint["port"] for endpoint in found["spec"]["podMetricsEndpoints"]} <= ports
