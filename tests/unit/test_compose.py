"""compose.yaml without a Docker engine: it meets the schema, and its commands are ones that specthink knows."""

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
from pipeline.settings import Settings
from tests.command_lines import parse
from tests.deployed import DEPLOY

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "POSTGRES_PASSWORD": "pg-secret",
    "REDIS_PASSWORD": "redis-secret",
    "WRITER_PASSWORD": "writer-secret",
    "GRADER_PASSWORD": "grader-secret",
    "UPKEEP_PASSWORD": "upkeep-secret",
    "SUBMITTER_PASSWORD": "submitter-secret",
    "MONITOR_PASSWORD": "monitor-secret",
    "GATEWAY_PASSWORD": "gateway-secret",
    "READER_PASSWORD": "reader-secret",
    "GRAFANA_PASSWORD": "grafana-secret",
    "FLOWER_BASIC_AUTH": "user:secret",
    "SPECTHINK_SMALL_MODEL": "org/small",
    "SPECTHINK_LARGE_MODEL": "org/large",
}
OURS = ("migrate", "small", "large", "grade", "upkeep", "flower", "gateway", "metrics")
LOGINS = {
    "migrate": "specthink:pg-secret",
    "small": "specthink_writer:writer-secret",
    "large": "specthink_writer:writer-secret",
    "grade": "specthink_grader:grader-secret",
    "upkeep": "specthink_upkeep:upkeep-secret",
    "flower": None,
    "gateway": "specthink_gateway:gateway-secret",
    "metrics": "specthink_monitor:monitor-secret",
}
"""Who each service is in the database."""


def interpolate(value: Any, environment: dict[str, str]) -> Any:
    """The value with ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` replaced as Compose does.

    Raises KeyError with the name of a variable that is required and missing.
    """
    if isinstance(value, dict):
        return {key: interpolate(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if environment.get(name):
            return environment[name]
        if default is None:
            raise KeyError(name)
        return default

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}", replaced, value)


def written() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    resolved: dict[str, dict[str, Any]] = interpolate(written(), ENVIRONMENT)["services"]
    return resolved


@pytest.mark.parametrize("content", [written(), interpolate(written(), ENVIRONMENT)], ids=["written", "resolved"])
def test_file_meets_the_compose_specification(content: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "data" / "compose-spec.json").read_text())
    faults = [
        f"{list(fault.absolute_path)}: {fault.message}"
        for fault in jsonschema.Draft7Validator(schema).iter_errors(content)
    ]
    assert faults == []


def test_schema_refuses_what_compose_would() -> None:
    schema = json.loads((Path(__file__).parent / "data" / "compose-spec.json").read_text())
    content = written()
    content["services"]["small"]["depends_on"]["redis"]["condition"] = "service_warm"
    content["services"]["large"]["comand"] = ["specthink"]
    assert len(list(jsonschema.Draft7Validator(schema).iter_errors(content))) >= 2


@pytest.mark.parametrize("missing", sorted(ENVIRONMENT))
def test_secrets_and_models_have_no_default(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        interpolate(written(), {**ENVIRONMENT, missing: ""})


@pytest.mark.parametrize("name", OURS)
def test_command_is_one_that_specthink_parses(name: str, services: dict[str, dict[str, Any]]) -> None:
    parse(shlex.join(services[name]["command"]))


@pytest.mark.parametrize("name", OURS)
def test_environment_makes_valid_settings(
    name: str, services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = services[name]["environment"]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, str(value))
    settings = Settings()
    login = LOGINS[name]
    found = settings.database_url.get_secret_value() if settings.database_url else None
    assert found == (f"postgresql://{login}@postgres:5432/specthink" if login else None)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://:redis-secret@redis:6379/0"
    given = {role.value: login.name for role, login in settings.logins.all().items()}
    roles = {role.value: f"specthink_{role.value}" for role in DatabaseRole}
    assert given == (roles if name == "migrate" else {})


def test_grafana_and_prometheus_find_what_is_mounted(services: dict[str, dict[str, Any]]) -> None:
    for name in ("prometheus", "grafana"):
        sources = [volume.partition(":")[0] for volume in services[name]["volumes"]]
        assert [source for source in sources if source.startswith("./") and not (ROOT / source).exists()] == []
    provisioned = (DEPLOY / "grafana/provisioning/datasources/specthink.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", provisioned)) <= services["grafana"]["environment"].keys()
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/specthink.yaml").read_text())["providers"]
    assert any(f":{provider['options']['path']}/specthink.json:" in volume for volume in services["grafana"]["volumes"])


@pytest.mark.parametrize("name", ["small", "large", "upkeep"])
def test_what_prometheus_asks_listens_inside_and_is_not_published(name: str, services: dict[str, Any]) -> None:
    assert services[name]["environment"]["SPECTHINK_METRICS__ADDRESS"] == "0.0.0.0"
    assert "ports" not in services[name]


@pytest.mark.parametrize("name", OURS[1:])
def test_service_knows_no_password_of_another_role(name: str, services: dict[str, dict[str, Any]]) -> None:
    own = (LOGINS[name] or ":").partition(":")[2]
    content = json.dumps(services[name])
    known = {secret for variable, secret in ENVIRONMENT.items() if variable.endswith("_PASSWORD") and secret in content}
    assert known <= {own, "redis-secret"}


def test_nothing_runs_as_root_or_with_its_rights(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert "cap_add" not in service
    assert (services["postgres"]["user"], services["redis"]["user"]) == ("postgres", "redis")
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    last_users = {stage.split()[2]: re.findall(r"^USER (\w+)$", stage, re.MULTILINE) for stage in stages}
    assert last_users["cpu"] == last_users["gpu"] == ["specthink"]
    assert {services[name]["build"]["target"] for name in OURS} == {"cpu", "gpu"}


def test_files_of_all_but_the_models_containers_are_read_only(services: dict[str, dict[str, Any]]) -> None:
    writable = {name for name, service in services.items() if not service["read_only"]}
    assert writable == {"small", "large"}


def test_flower_asks_for_a_password_on_the_port_that_is_published(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in services["flower"]["environment"].items():
        monkeypatch.setenv(variable, str(value))
    flower = Settings().flower
    assert flower.basic_auth is not None
    assert services["flower"]["ports"] == [f"127.0.0.1:5555:{flower.port}"]


def test_ports_are_published_to_this_host_only(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 6
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_work_starts_after_the_migration_and_with_a_healthy_broker(services: dict[str, dict[str, Any]]) -> None:
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert "healthcheck" in services["postgres"]
    assert "healthcheck" in services["redis"]
    for name in OURS[1:]:
        assert services[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
        }


def test_redis_keeps_every_message() -> None:
    options = dict(
        line.split(maxsplit=1)
        for line in interpolate(written(), ENVIRONMENT)["configs"]["redis"]["content"].splitlines()
        if line and not line.startswith("#")
    )
    assert options["appendonly"] == "yes"
    assert options["maxmemory-policy"] == "noeviction"
    assert options["requirepass"] == "redis-secret"
    assert options["proto-max-bulk-len"] == "1mb"


@pytest.mark.parametrize(("name", "gpu"), [("small", "0"), ("large", "1")])
def test_models_reserve_a_gpu_each(name: str, gpu: str, services: dict[str, dict[str, Any]]) -> None:
    (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": [gpu], "capabilities": ["gpu"]}
    assert services[name]["build"]["target"] == "gpu"


@pytest.mark.parametrize("name", OURS)
def test_image_target_exists_and_runs_as_an_ordinary_user(name: str, services: dict[str, dict[str, Any]]) -> None:
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    (stage,) = [stage for stage in stages if stage.splitlines()[0].endswith(f" AS {services[name]['build']['target']}")]
    assert re.findall(r"^USER (.+)$", stage, flags=re.MULTILINE)[-1] == "specthink"
    copied = [source for line in re.findall(r"^COPY (.+) \S+$", stage, flags=re.MULTILINE) for source in line.split()]
    assert [source for source in copied if not (ROOT / source).exists()] == []
