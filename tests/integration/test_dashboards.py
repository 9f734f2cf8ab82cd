"""The dashboard, the alerts and their provisioning: each metric is one that a scrape has, each query one that Postgres
answers to a reader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.db.worker_leases import WorkerCounters
from pipeline.embedded import EMBEDDED_LOGINS, Connections
from pipeline.gateway.measures import Measures
from pipeline.metrics import make_registry, render
from tests.command_lines import parse
from tests.deployed import DEPLOY
from tests.integration.rows import add_job, add_problem_set, add_samples, add_worker
from workers.engine.base import EngineStats
from workers.processes.metrics import WriterCollector
from workers.upkeep.meter import UpkeepMeter
from workers.writing.meter import Meter

pytestmark = pytest.mark.integration

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "specthink.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"][0]["rules"]
SOURCES = {
    source["uid"]: source
    for source in yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/specthink.yaml").read_text())[
        "datasources"
    ]
}
STATS = EngineStats(
    num_generated_tokens=1, num_lost_tokens=0, num_prompt_tokens=1, num_cached_tokens=1, num_running=1, num_waiting=0,
    cache_usage=0.5, cache_tokens=None, last_token_age_s=0.0,
)  # fmt: skip


@pytest.fixture
def filled(db_engine: Engine) -> int:
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        job = add_job(connection, add_problem_set(connection), num_samples=4)
        add_worker(connection, "small", model="S", num_drafts=2, draft_tokens=8, accepted_tokens=3)
        add_worker(connection, "grade", alive=False)
        connection.execute(text("UPDATE workers SET ended_at = now(), end_reason = 'lapsed' WHERE kind = 'grade'"))
        connection.execute(text("UPDATE upkeep_leader SET worker_id = (SELECT min(id) FROM workers), seen_at = now()"))
        add_samples(connection, job, [{"state": "graded", "tokens_small": 5, "score": 1.0}, {"state": "failed"}])
    return job


@pytest.fixture
def scraped(connections: Connections, db_engine: Engine, filled: int) -> dict[str, set[str]]:
    """All that processes tell: the labels of each series' name."""
    own = CollectorRegistry(auto_describe=False)
    for collector in (UpkeepMeter(), Meter("small"), WriterCollector("small", "S", lambda: STATS, WorkerCounters)):
        own.register(collector)
    Measures(own).answered("/v1/chat/completions", 200, 0.1)
    told = render(make_registry(db_engine, connections.redis_url)) + render(own)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(told.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            if "expr" in target:
                yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


SCRAPED_LABELS = {"instance", "job"}
"""That Prometheus adds."""


def test_every_metric_is_one_that_a_scrape_has_with_the_labels_that_are_asked_of_it(
    scraped: dict[str, set[str]],
) -> None:
    seen = set()
    for where, expression in expressions():
        names = re.findall(r"specthink_\w+", expression)
        assert names, where
        assert set(names) <= scraped.keys(), where
        for name, matchers in re.findall(r"(specthink_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= scraped[name], where
        known = set().union(*(scraped[name] for name in names)) | SCRAPED_LABELS
        grouped = {label.strip() for found in re.findall(r"\bby \(([^)]*)\)", expression) for label in found.split(",")}
        assert grouped <= known, where
        seen.update(names)
    assert len(seen) > 15


def test_what_a_legend_or_an_alert_names_is_a_label_of_its_series() -> None:
    texts = [(panel["title"], target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]
             if "expr" in target]  # fmt: skip
    texts += [(rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in RULES]
    for where, expression, shown in texts:
        grouped = re.findall(r"\bby \(([^)]*)\)", expression)
        for label in re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)", shown):
            if label != "value" and grouped:
                assert label in {name.strip() for name in grouped[-1].split(",")}, (where, label)


def query_of(target: dict[str, Any], job: int) -> str:
    """As Grafana sends it: its variables and macros replaced."""
    query = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN now() - interval '3 h' AND now()", target["rawSql"])
    return str(query.replace("$job", str(job)))


def test_every_query_of_a_panel_is_answered_to_a_reader(connections: Connections, filled: int) -> None:
    assert connections.reader_url is not None
    reader = open_database(connections.reader_url)
    asked = 0
    with transaction(reader) as connection:
        (variable,) = DASHBOARD["templating"]["list"]
        rows = connection.execute(text(variable["query"])).mappings().all()
        assert [row["__value"] for row in rows] == [filled]
        for panel in PANELS:
            for target in panel["targets"]:
                if "rawSql" in target:
                    columns = connection.execute(text(query_of(target, filled).replace(":", r"\:"))).keys()
                    assert target["format"] == "table" or {"time", "metric", "value"} <= set(columns), panel["title"]
                    assert "$" not in query_of(target, filled), panel["title"]
                    asked += 1
    reader.dispose()
    assert asked > 8


def test_panels_lie_beside_each_other_and_ask_sources_that_are_provisioned() -> None:
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert SOURCES[target["datasource"]["uid"]]["type"] == target["datasource"]["type"]
            assert ("expr" in target) == (target["datasource"]["type"] == "prometheus")


def test_rules_say_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 8
    for rule in RULES:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "remedy"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        remedy = rule["annotations"]["remedy"]
        if remedy.startswith("specthink ") and "says" not in remedy and ";" not in remedy:
            parse(re.sub(r"\{\{[^}]*\}\}", "small", remedy))


def test_prometheus_reads_the_rules_and_asks_ports_that_are_served() -> None:
    content = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert content["rule_files"] == ["rules.yaml"]
    services = yaml.safe_load((DEPLOY.parent / "compose.yaml").read_text())["services"]
    for job in content["scrape_configs"]:
        for static in job.get("static_configs", ()):
            for target in static["targets"]:
                name, _, port = target.partition(":")
                assert port in " ".join(services[name]["command"]), target
        for dns in job.get("dns_sd_configs", ()):
            for name in dns["names"]:
                assert services[name]["environment"]["SPECTHINK_METRICS__PORT"] == dns["port"], name
