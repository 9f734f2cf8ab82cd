"""Stored rows that this program cannot read: one of them never breaks a list, a round of upkeep, or another job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from pipeline import Client
from pipeline.cli.doctor import check_database
from pipeline.db import upkeep_statements
from pipeline.db.faults import line_of
from pipeline.db.session import session, transaction
from pipeline.db.upkeep_statements import admit_samples
from pipeline.embedded import Connections, resolve_connections
from pipeline.errors import DamagedRow, PipelineError
from pipeline.results.reports import JobProgress
from pipeline.settings import Settings
from tests.integration.rows import (
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
    every,
)
from tests.integration.test_writer import WriterRig, make_rig
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.broker.tasks import _progress, progress_line
from workers.grading.grader import SampleGrader
from workers.upkeep.rollup_refresher import RollupRefresher
from workers.upkeep.rounds import Upkeep

pytestmark = pytest.mark.integration

_UNGUARD = """
    DO $$ DECLARE c record; BEGIN
        FOR c IN SELECT conrelid::regclass AS place, conname FROM pg_constraint
                 WHERE contype = 'c' AND connamespace = 'public'::regnamespace
        LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.place, c.conname); END LOOP;
        FOR c IN SELECT attrelid::regclass AS place, attname FROM pg_attribute a JOIN pg_class k ON k.oid = a.attrelid
                 WHERE k.relkind = 'r' AND k.relnamespace = 'public'::regnamespace AND attnum > 0 AND attnotnull
                   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = k.oid AND i.indisprimary
                                   AND a.attnum = ANY(i.indkey))
        LOOP EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', c.place, c.attname); END LOOP;
    END $$
"""
"""Takes away what keeps such rows out of the database."""

JOBS = {
    "config null": "config = 'null'",
    "config list": "config = '[]'",
    "config newer": "config = jsonb_set(config, '{version}', '2')",
    "config without policy": "config = config - 'policy'",
    "policy unknown": "config = jsonb_set(config, '{policy,name}', '\"newer\"'), policy = 'newer'",
    "policy damaged": "config = jsonb_set(config, '{policy,n1}', '\"many\"')",
    "sampling damaged": "config = jsonb_set(config, '{sampling}', '[1]')",
    "seed damaged": "config = jsonb_set(config, '{seed}', '\"none\"')",
    "grader unknown": "config = jsonb_set(config, '{grader}', '\"gone\"')",
    "plugins damaged": "config = jsonb_set(config, '{plugins}', '7')",
    "no models": "config = config - 'small' - 'large'",
    "versions null": "versions = 'null'",
    "state unknown": "state = 'frozen'",
    "state null": "state = NULL",
    "name null": "name = NULL",
    "policy null": "policy = NULL",
    "counts null": "num_problems = NULL, num_samples = NULL",
    "first role unknown": "first_role = 'middle'",
    "first role null": "first_role = NULL",
    "priority null": "priority = NULL",
    "identity damaged": "small_identity = '[]', large_identity = '7'",
    "think phase half": "think_end = '</think>', think_start = NULL, think_opened = NULL",
}
SAMPLES = {
    "sample state unknown": "state = 'dreaming'",
    "sample state null": "state = NULL",
    "request damaged": "next_request = '{\"v\": 99}', policy_state = '[]'",
    "request null": "next_request = 'null', policy_state = 'null'",
    "finish reason unknown": "finish_reason = 'tired'",
    "finish reason null": "finish_reason = NULL",
    "error class unknown": "error_class = 'odd'",
    "next role unknown": "next_role = 'middle'",
    "sample counts null": "num_segments = NULL, tokens_small = NULL, num_takeovers = NULL, epoch = NULL",
}
OTHERS = {
    "segment author unknown": "UPDATE segments SET author = 'ghost' WHERE sample_id = ANY(:samples)",
    "segment finish unknown": "UPDATE segments SET finish = 'weird' WHERE sample_id = ANY(:samples)",
    "segment null": "UPDATE segments SET token_ids = NULL, text = NULL, trigger = NULL WHERE sample_id = ANY(:samples)",
    "step author unknown": "UPDATE steps SET author = 'ghost' WHERE sample_id = ANY(:samples)",
    "problem damaged": "UPDATE problems SET shown = '[]' WHERE problem_set_id = :set",
    "problem null": "UPDATE problems SET shown = 'null', prompt = NULL WHERE problem_set_id = :set",
    "choices damaged": 'UPDATE problems SET shown = \'{"choices": 7, "turns": 3}\' WHERE problem_set_id = :set',
    "answers null": "UPDATE reference_answers SET answer = NULL, also_accepted = NULL",
    "grade unknown": "UPDATE grades SET status = 'odd', detail = NULL",
    "engine damaged": 'UPDATE engines SET settings = \'{"max_model_len": "many"}\'',
    "engine null": "UPDATE engines SET settings = 'null'",
    "worker unknown": "UPDATE workers SET kind = 'robot', model = NULL WHERE id = :worker",
    "worker null": "UPDATE workers SET host = NULL, max_in_flight = NULL, pid = NULL WHERE id = :worker",
}
DAMAGE = (
    {name: f"UPDATE jobs SET {change} WHERE id = :bad" for name, change in JOBS.items()}
    | {name: f"UPDATE samples SET {change} WHERE job_id = :bad" for name, change in SAMPLES.items()}
    | OTHERS
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Three jobs, the second of which is damaged."""

    good: int
    bad: int
    other: int
    samples: list[int]
    good_samples: list[int]


@pytest.fixture
def stored(db_engine: Engine) -> Stored:
    with transaction(db_engine) as connection:
        connection.execute(text(_UNGUARD))
        sets = [add_problem_set(connection, name=name) for name in ("sums", "bad")]
        engine_id = add_engine(connection, "S")
        worker_id = add_worker(connection, "small", model="S", engine_id=engine_id)
        jobs = [
            add_job(connection, sets[0], state="completed", seconds=9, name="good"),
            add_job(connection, sets[1], seconds=9, name="bad"),
            add_job(connection, sets[0], seconds=9, name="other"),
        ]
        connection.execute(text("UPDATE jobs SET think_start = '<think>', think_end = '</think>', think_opened = true"))
        samples = []
        for job in jobs:
            states = ["graded", "graded"] if job == jobs[0] else ["graded", "finished", "ready", "pending"]
            rows = [
                {"state": state, "problem": index, "score": 1.0 if state == "graded" else None, "num_segments": 1,
                 "tokens_small": 4, "predicted_answer": "1" if state == "graded" else None}
                for index, state in enumerate(states)
            ]  # fmt: skip
            samples.append(add_samples(connection, job, rows))
            for sample in samples[-1]:
                add_segment(connection, sample, 0, "small", "1\n\n2", worker_id=worker_id, engine_id=engine_id)
                add_step(connection, sample, 0, "small", "1\n\n2")
            for sample in samples[-1][:1]:
                connection.execute(
                    text("""
                        INSERT INTO grades (sample_id, grader, grader_version, status, score, graded_at)
                        VALUES (:sample, 'math', 'math/1', 'done', 1, now())
                    """),
                    {"sample": sample},
                )
    return Stored(good=jobs[0], bad=jobs[1], other=jobs[2], samples=samples[1], good_samples=samples[0])


def damage(db_engine: Engine, stored: Stored, kind: str) -> None:
    with transaction(db_engine) as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = 'replica'")
        set_id = connection.execute(text("SELECT problem_set_id FROM jobs WHERE id = :id"), {"id": stored.bad}).scalar()
        worker = connection.execute(text("SELECT max(id) FROM workers")).scalar()
        values = {"bad": stored.bad, "samples": stored.samples, "set": set_id, "worker": worker}
        statement = text(DAMAGE[kind])
        connection.execute(statement, {name: values[name] for name in values if f":{name}" in DAMAGE[kind]})


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


def lists(client: Client, stored: Stored) -> dict[str, Any]:
    """What every list says of the jobs that are whole."""
    whole = (stored.good, stored.other)
    return {
        "jobs": [(job.id, job.name, job.state, job.unreadable) for job in client.jobs() if job.id in whole],
        "progress": [row for row in client.progress(*client.jobs()) if row.job_id in whole],
        "summary": [replace(row, seconds=0, tokens_per_second=0, tokens_per_second_small=0)
                    for row in client.summary(*client.jobs()) if row.job_id in whole],
        "results": [list(client.results(job)) for job in whole],
        "errors": [client.errors(job) for job in whole],
        "sql": client.sql(f"SELECT sample_id, output, seed FROM results WHERE job_id IN {whole} ORDER BY 1").rows,
        "replays": [[str(replayed) for replayed in client.replay_job(job)] for job in whole],
    }  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_lists_show_the_rest_and_mark_the_row(
    kind: str, stored: Stored, db_engine: Engine, client: Client, settings: Settings
) -> None:
    before = lists(client, stored)
    damage(db_engine, stored, kind)
    after = lists(client, stored)
    if kind not in ("answers null", "worker unknown", "worker null"):  # what is damaged is theirs too
        for name, said in before.items():
            assert [mask(each) for each in after[name]] == [mask(each) for each in said], name
    assert {job.id for job in client.jobs()} == {stored.good, stored.bad, stored.other}
    assert client.workers() is not None
    assert client.stats(stored.good).summary.num_scored == 2
    assert client.compare(stored.good, stored.other)[0].num_problems == 1
    assert "<html" in client.page(stored.good, stored.bad, num_samples=2)
    client.generated_tokens()
    client.leader()
    findings = [finding for finding in check_database(resolve_connections(settings)) if "unread" in finding.found]
    bad = client.job(stored.bad)
    assert [finding.check for finding in findings] == [f"job {stored.bad}"] * bool(bad.unreadable)
    assert all(str(bad.unreadable) in found.found and "restore the row" in found.remedy for found in findings)
    assert bool(bad.unreadable) == (kind in JOBS and kind not in READABLE), bad.unreadable


READABLE = ("grader unknown", "first role unknown", "first role null", "identity damaged", "think phase half")
"""What a list of jobs does not show."""


def mask(value: Any) -> Any:
    """Without what goes on by itself, and what is there of other jobs."""
    if not isinstance(value, JobProgress):
        return value
    return replace(value, seconds=None, samples_ahead=0, waiting_for=None)


ABOUT_ONE_JOB = {
    "results": lambda client, stored: list(client.results(stored.bad)),
    "stats": lambda client, stored: client.stats(stored.bad),
    "errors": lambda client, stored: client.errors(stored.bad),
    "sample": lambda client, stored: client.sample(stored.samples[0]),
    "replay": lambda client, stored: list(client.replay_job(stored.bad)),
    "replay sample": lambda client, stored: client.replay(stored.samples[0]),
    "plan": lambda client, stored: client.plan(stored.bad),
    "clone": lambda client, stored: client.clone(stored.bad, {"num_samples": 2}),
    "compare": lambda client, stored: client.compare(stored.good, stored.bad, anyway=True),
    "retry": lambda client, stored: client.retry(stored.bad),
    "retry cut": lambda client, stored: client.retry(stored.bad, cut=True, max_tokens=100_000),
    "pause": lambda client, stored: client.pause(stored.bad),
    "priority": lambda client, stored: client.set_priority(stored.bad, 3),
    "wait": lambda client, stored: client.wait(stored.bad, timeout_s=0.0),
    "cancel": lambda client, stored: client.cancel(stored.bad),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_about_that_job_answers_or_says_in_one_line_why_not(
    kind: str, stored: Stored, db_engine: Engine, client: Client
) -> None:
    damage(db_engine, stored, kind)
    for name, ask in ABOUT_ONE_JOB.items():
        said = ""
        try:
            ask(client, stored)
        except PipelineError as error:
            said = str(error)
        except DBAPIError as error:
            said = line_of(error) or "\n"
        except TimeoutError:
            said = "" if name == "wait" else "\n"
        assert "\n" not in said, name


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_round_of_upkeep_goes_on_with_the_others(
    kind: str, stored: Stored, db_engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_statements, "ADMITTING_S", 60.0)  # one round for all jobs, however busy the machine is
    with transaction(db_engine) as connection:
        upkeep_id = add_worker(connection, "upkeep")
        dead = add_worker(connection, "large", model="L", alive=False)
        connection.execute(text("UPDATE workers SET expires_at = now() - interval '1 s' WHERE id = :id"), {"id": dead})
    damage(db_engine, stored, kind)
    upkeep = Upkeep(
        db_engine, Publisher(Celery("rows", broker="memory://", set_as_current=False)), settings,
        worker_id=lambda: upkeep_id,
    )  # fmt: skip
    failed: list[str] = []
    upkeep._do = watched(upkeep._do, failed)  # type: ignore[method-assign]
    with session(db_engine) as own:
        assert upkeep._may_lead(own, can_publish=True)
        upkeep.round(own)
    with transaction(db_engine) as connection:
        other = every(connection, f"SELECT state FROM samples WHERE job_id = {stored.other} ORDER BY id")
        settled = every(connection, f"SELECT settled_at FROM workers WHERE id = {dead}")
        assert _progress(db_engine, stored.other)[0].job_id == stored.other
        assert progress_line(_progress(db_engine, stored.bad)[0])
    if kind not in ("worker unknown", "worker null"):
        assert [row["state"] for row in other] == ["graded", "finished", "ready", "ready"]
        assert settled[0]["settled_at"] is not None
    assert failed == []
    refresher = RollupRefresher(db_engine)
    refresher.count_jobs()
    refresher.refresh_rollups()


def watched(do: Callable[..., None], failed: list[str]) -> Callable[..., None]:
    """Notes the duties that break."""

    def watch(duty: Callable[[Connection], None], connection: Connection) -> None:
        def noting(connection: Connection) -> None:
            try:
                duty(connection)
            except Exception as error:
                failed.append(f"{duty.__name__}: {type(error).__name__}: {error}")
                raise

        noting.__name__ = duty.__name__
        do(noting, connection)

    return watch


@pytest.fixture
def settings(connections: Connections, tmp_path: Path) -> Settings:
    return Settings(
        database_url=connections.database_url, redis_url=connections.redis_url, state_dir=tmp_path / "state"
    )


# Workers


@pytest.fixture
def rig(db_engine: Engine) -> Iterator[WriterRig]:
    """A writer with two samples of a job; the rows can be damaged."""
    rig = make_rig(db_engine)
    with transaction(db_engine) as connection:
        connection.execute(text(_UNGUARD))
    yield rig
    rig.writer.close()
    rig.engine.close()


def another_job(rig: WriterRig) -> SamplesMessage:
    """Two samples of a second job on the same problems, admitted."""
    with transaction(rig.db_engine) as connection:
        job = connection.execute(
            text("""
                INSERT INTO jobs (name, problem_set_id, state, config, versions, policy, small_model, first_role,
                                  num_problems, num_samples)
                SELECT 'whole', problem_set_id, state, config, versions, policy, small_model, first_role, num_problems,
                       num_samples FROM jobs WHERE id = :job RETURNING id
            """),
            {"job": rig.job_id},
        ).scalar_one()
        connection.execute(
            text("INSERT INTO samples (job_id, problem_id, sample_index) SELECT :job, id, 0 FROM problems"),
            {"job": job},
        )
        admitted = admit_samples(connection, ahead=2.0)
    return SamplesMessage(job_id=job, samples=[(sample.sample_id, sample.epoch) for sample in admitted])


@pytest.mark.parametrize("kind", [*JOBS, "request damaged", "request null", "next role unknown", "engine null"])
def test_a_writer_sets_a_damaged_job_aside_and_goes_on_with_the_next(kind: str, rig: WriterRig) -> None:
    whole = another_job(rig)
    with transaction(rig.db_engine) as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = 'replica'")
        statement = text(DAMAGE[kind])
        connection.execute(statement, {"bad": rig.job_id} if ":bad" in DAMAGE[kind] else {})
    answer = rig.writer.write(rig.message)
    assert rig.writer.write(whole) == "2 of 2 written"
    assert rig.ends == []
    with transaction(rig.db_engine) as connection:
        rows = every(connection, "SELECT state, error FROM samples WHERE job_id = :job", job=rig.job_id)
    for row in rows:  # it waits with the reason in the worker's answer, or failed with it, or was written all the same
        assert row["state"] in ("ready", "failed", "finished")
        assert row["state"] != "failed" or "DamagedRow" in row["error"]
        assert row["state"] != "ready" or "0 of" in answer or "cannot be read" in answer or ": " in answer


@pytest.mark.parametrize(
    "damage", ["author = 'ghost'", "finish = 'weird'", "token_ids = NULL", "text = NULL", "author = NULL"]
)
def test_a_damaged_segment_costs_its_own_sample_alone(damage: str, rig: WriterRig) -> None:
    first = min(sample_id for sample_id, _ in rig.message.samples)
    with transaction(rig.db_engine) as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = 'replica'")
        engine_id = add_engine(connection, "S")
        add_segment(connection, first, 0, "small", "First", worker_id=rig.worker_id, engine_id=engine_id)
        connection.execute(text("UPDATE samples SET num_segments = 1 WHERE id = :id"), {"id": first})
        connection.execute(text(f"UPDATE segments SET {damage} WHERE sample_id = :id"), {"id": first})
    assert rig.writer.write(rig.message) == "2 of 2 written"
    with transaction(rig.db_engine) as connection:
        bad, whole = every(connection, "SELECT state, error_class, error FROM samples ORDER BY id")
    assert (bad["state"], bad["error_class"], whole["state"]) == ("failed", "internal", "finished")
    assert bad["error"].startswith("DamagedRow: what is stored of the sample's text cannot be read: ")
    assert rig.ends == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE samples SET finish_reason = 'tired' WHERE id = :bad",
        "UPDATE problems p SET shown = '{\"choices\": 7}' FROM samples s WHERE s.problem_id = p.id AND s.id = :bad",
    ],
)
def test_a_grader_leaves_a_damaged_sample_unscored_and_grades_the_next(change: str, rig: WriterRig) -> None:
    assert rig.writer.write(rig.message) == "2 of 2 written"
    with transaction(rig.db_engine) as connection:
        rows = every(connection, "SELECT id, epoch FROM samples ORDER BY id")
        connection.exec_driver_sql("SET LOCAL session_replication_role = 'replica'")
        connection.execute(text(change), {"bad": rows[0]["id"]})
    message = SamplesMessage(job_id=rig.job_id, samples=[(row["id"], row["epoch"]) for row in rows])
    assert SampleGrader(rig.db_engine, time_limit_s=60).grade(message) == "2 of 2 graded"
    with transaction(rig.db_engine) as connection:
        grades = every(connection, "SELECT status, detail FROM grades ORDER BY sample_id")
    assert [grade["status"] for grade in grades] == ["error", "done"]
    assert grades[0]["detail"].startswith("what is stored of it cannot be read: ")


@pytest.mark.parametrize("kind", ["config null", "config list"])
def test_a_job_that_does_not_say_its_grader_is_refused_by_name(kind: str, rig: WriterRig) -> None:
    assert rig.writer.write(rig.message) == "2 of 2 written"
    with transaction(rig.db_engine) as connection:
        rows = every(connection, "SELECT id, epoch FROM samples ORDER BY id")
        connection.execute(text(DAMAGE[kind]), {"bad": rig.job_id})
    message = SamplesMessage(job_id=rig.job_id, samples=[(row["id"], row["epoch"]) for row in rows])
    with pytest.raises(DamagedRow, match=f"job {rig.job_id}: its grader cannot be read: .*it is missing"):
        SampleGrader(rig.db_engine, time_limit_s=60).grade(message)
