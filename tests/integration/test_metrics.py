"""The exporter on a database: each metric from rows put there by hand, and how often the database is asked."""

from __future__ import annotations

import datetime as dt
import threading
import urllib.request
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from pipeline.batches import BatchStatus
from pipeline.db.grants import grant_roles
from pipeline.db.metrics import Fleet, read_fleet
from pipeline.db.rollups import refresh_rollup, refreshable_rollups
from pipeline.db.session import open_database, transaction
from pipeline.embedded import EMBEDDED_LOGINS, Connections
from pipeline.errors import ServiceUnavailable
from pipeline.logins import DatabaseRole
from pipeline.metrics import FleetCollector, make_registry, render, serve
from tests.deployed import DEPLOY
from tests.integration.rights import recording
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker

pytestmark = pytest.mark.integration

RANDOM = {"policy": "random", "trigger": "random"}


def series(scraped: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Value by name and sorted labels."""
    found = {}
    for family in text_string_to_metric_families(scraped.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(scraped: bytes, name: str, **labels: str) -> float | None:
    return series(scraped).get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def monitored(connections: Connections, db_engine: Engine) -> Engine:
    """The database as a monitor, with a job in the middle of its life."""
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        job = add_job(connection, add_problem_set(connection), policy="speculative-thinking:improved", num_samples=9)
        small = add_worker(connection, "small", model="S", num_in_flight=1, prompt_tokens=70, cached_tokens=30)
        add_worker(connection, "large", model="L", alive=False)
        connection.execute(text("UPDATE workers SET ended_at = now(), end_reason = 'lapsed' WHERE kind = 'large'"))
        add_samples(connection, job, [{"state": "pending"}, {"state": "drafting", "holder_id": small}])
        waiting = {"state": "awaiting_large", "runnable_at": "2001-01-01"}
        add_samples(connection, job, [waiting, {"state": "graded", "tokens_small": 5, "tokens_large": 7}])
        add_samples(connection, job, [{"state": "graded", "finish_reason": "length"}, {"state": "failed"}])
    return open_database(connections.role_urls[DatabaseRole.MONITOR], pool_size=1)


def test_exporter_tells_what_the_database_has(connections: Connections, monitored: Engine) -> None:
    scraped = render(make_registry(monitored, connections.redis_url))
    pair = {"model_small": "S", "model_large": "L", "model_judge": "", "policy": "speculative-thinking:improved"}
    assert value(scraped, "specthink_samples", state="drafting", **pair) == 1
    assert value(scraped, "specthink_samples", state="graded", **pair) == 2
    assert value(scraped, "specthink_samples", state="cancelled", **pair) == 0
    assert value(scraped, "specthink_jobs", state="running") == 1
    assert value(scraped, "specthink_samples_finished_total", reason="length") == 1
    assert value(scraped, "specthink_samples_finished_total", reason="stop") == 1
    assert value(scraped, "specthink_samples_failed_total", error_class="engine_refused") == 1
    assert value(scraped, "specthink_workers", kind="small", model="S") == 1
    assert value(scraped, "specthink_workers", kind="large", model="L") == 0, "one that is wanted and not there"
    assert value(scraped, "specthink_workers", kind="upkeep", model="") == 0
    assert value(scraped, "specthink_worker_slots", kind="small", model="S") == 8
    assert value(scraped, "specthink_workers_wanted", role="large", model="L") == 1
    assert value(scraped, "specthink_worker_ends_total", kind="large", reason="lapsed") == 1
    assert (value(scraped, "specthink_oldest_waiting_seconds", role="large", model="L") or 0) > 3600
    assert value(scraped, "specthink_oldest_waiting_seconds", role="small", model="S") == 0
    assert value(scraped, "specthink_tokens_total", role="large", model="L", fate="kept") == 7
    assert value(scraped, "specthink_tokens_total", role="small", model="S", fate="cached") == 30
    assert value(scraped, "specthink_queue_messages", queue="upkeep") == 0
    assert value(scraped, "specthink_database_up") == 1
    assert b"specthink_upkeep_leader_age_seconds" in scraped


def test_takeovers_are_counted_by_trigger_once_their_samples_rest(db_engine: Engine, monitored: Engine) -> None:
    with transaction(db_engine) as connection:
        job = add_job(connection, add_problem_set(connection, name="resting"), policy="random")
        worker, engine = add_worker(connection, "large", model="L"), add_engine(connection, "L")
        [sample] = add_samples(connection, job, [{"state": "graded", "num_takeovers": 2, "num_segments": 3}])
        for index, trigger, is_takeover in ((0, "random", True), (1, "random", True), (2, "opening", False)):
            add_segment(
                connection, sample, index, "large", "abc", trigger=trigger, takes_over=is_takeover, worker_id=worker,
                engine_id=engine,
            )  # fmt: skip
        connection.execute(text("SELECT create_rollups(:job)"), {"job": job})
    assert value(render(make_registry(monitored)), "specthink_takeovers_by_trigger_total", **RANDOM) is None
    with transaction(db_engine) as connection:
        [rollup] = (r for r in refreshable_rollups(connection, quiet=dt.timedelta(0), limit=9) if r.job_id == job)
        assert refresh_rollup(connection, rollup)
    scraped = render(make_registry(monitored))
    assert value(scraped, "specthink_takeovers_by_trigger_total", **RANDOM) == 2
    assert value(scraped, "specthink_takeovers_by_trigger_total", **RANDOM | {"trigger": "opening"}) is None


@pytest.mark.parametrize(
    ("moments", "job_state", "status"),
    [
        ({}, None, "validating"),
        ({"in_progress_at": "now()"}, "running", "in_progress"),
        ({"in_progress_at": "now()"}, "completed", "finalizing"),
        ({"in_progress_at": "now()", "cancelling_at": "now()"}, "running", "cancelling"),
        ({"in_progress_at": "now()", "completed_at": "now()"}, "completed", "completed"),
        ({"failed_at": "now()"}, None, "failed"),
    ],
)
def test_batches_are_counted_by_status(
    db_engine: Engine, monitored: Engine, moments: dict[str, str], job_state: str | None, status: str
) -> None:
    with transaction(db_engine) as connection:
        columns = "".join(f", {name}" for name in moments)
        values = "".join(f", {moment}" for moment in moments.values())
        connection.exec_driver_sql(
            "INSERT INTO files (id, purpose, filename, num_bytes, sha256, request_sha256) "
            "VALUES ('file-1', 'batch', 'f', 1, 'a', 'a')"
        )
        connection.exec_driver_sql(
            "INSERT INTO batches (id, input_file_id, endpoint, completion_window, options, request_sha256, num_lines, "
            f"num_completed, num_failed{columns}) "
            f"VALUES ('batch_1', 'file-1', '/v1', '24h', '{{}}', 'a', 3, 3, 0{values})"
        )
        if job_state is not None:
            job = add_job(connection, add_problem_set(connection, name="batch"), state=job_state, seconds=1.0)
            connection.execute(text("INSERT INTO batch_jobs VALUES ('batch_1', :job, 'pair')"), {"job": job})
    counted = {
        labels[0][1]: number
        for (name, labels), number in series(render(make_registry(monitored))).items()
        if name == "specthink_batches"
    }
    assert counted == dict.fromkeys(BatchStatus, 0) | {status: 1}


def test_a_job_that_has_ended_counts_the_same_from_its_kept_totals(db_engine: Engine, monitored: Engine) -> None:
    cancel = text("UPDATE samples SET state = 'cancelled', holder_id = NULL, ended_at = now() WHERE ended_at IS NULL")
    with transaction(db_engine) as connection:
        connection.execute(cancel)
        connection.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = now()"))
    counted = stored_sums(monitored)
    assert counted
    with transaction(db_engine) as connection:
        connection.execute(text("SELECT keep_totals(id) FROM jobs"))
        connection.execute(text("DELETE FROM rollups"))
        connection.execute(text("UPDATE job_totals SET tokens_small = tokens_small + 1"))
    kept = stored_sums(monitored)
    small = ("specthink_tokens_total", (("fate", "kept"), ("model", "S"), ("role", "small")))
    assert kept == counted | {small: counted[small] + 1}, "read from the totals, and nothing is counted twice"


def stored_sums(monitored: Engine) -> dict[Any, float]:
    names = ("specthink_samples", "specthink_tokens_total", "specthink_samples_finished_total")
    return {key: number for key, number in series(render(make_registry(monitored))).items() if key[0] in names}


def test_scrapes_within_the_refresh_ask_the_database_once(monitored: Engine) -> None:
    asked: dict[str, Any] = {}
    registry = make_registry(monitored, refresh_s=60)
    render(registry)
    with recording(monitored, asked):
        threads = [threading.Thread(target=render, args=(registry,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked == {}
        render(make_registry(monitored, refresh_s=60))
    assert len(asked) > 5


def test_a_database_that_is_away_is_said_and_nothing_old_is_repeated(monitored: Engine) -> None:
    now = 0.0
    away = ServiceUnavailable("Postgres cannot be reached")
    answers: list[Fleet | ServiceUnavailable] = []
    with transaction(monitored) as connection:
        answers += [read_fleet(connection), away]

    def read() -> Fleet:
        answer = answers.pop(0)
        if isinstance(answer, ServiceUnavailable):
            raise answer
        return answer

    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(read, refresh_s=5, clock=lambda: now))
    assert value(render(registry), "specthink_database_up") == 1
    now = 4.9
    assert b"specthink_samples" in render(registry)
    now = 5.0
    scraped = render(registry)
    assert value(scraped, "specthink_database_up") == 0
    assert b"specthink_samples" not in scraped


def test_metrics_are_served_at_the_first_free_port(monitored: Engine) -> None:
    registry = make_registry(monitored)
    first = serve(registry, "127.0.0.1", 20464, num_ports=64)
    second = serve(registry, "127.0.0.1", first.port, num_ports=64)
    try:
        assert second.port > first.port
        with urllib.request.urlopen(f"http://127.0.0.1:{second.port}/metrics", timeout=10) as answer:
            assert value(answer.read(), "specthink_database_up") == 1
    finally:
        first.stop()
        second.stop()


def test_what_an_autoscaler_asks_is_answered_to_a_monitor(monitored: Engine) -> None:
    path = DEPLOY / "kubernetes" / "scaling.yaml"
    queries = {
        found["metadata"]["name"]: found["spec"]["triggers"][0]["metadata"]["query"]
        for found in yaml.safe_load_all(path.read_text())
        if found["kind"] == "ScaledObject"
    }
    here = {"small": ("org/small-1b", "S"), "large": ("org/large-32b", "L")}
    with transaction(monitored) as connection:
        for role, (model, ours) in here.items():
            query = queries[f"specthink-{role}"]
            assert connection.execute(text(query)).scalar_one() == 0, "nobody asks for that model here"
            assert connection.execute(text(query.replace(model, ours))).scalar_one() == 1
