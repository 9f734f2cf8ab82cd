"""Rollups: every view says the same with and without them, at any moment, whoever changes what meanwhile."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db.grades import begin_grade, end_grade
from pipeline.db.job_control import cancel_job, cancel_samples, retry_cut, retry_failed
from pipeline.db.rollups import Rollup, compact_lengths, refresh_rollup, refreshable_rollups
from pipeline.db.session import transaction
from pipeline.db.upkeep_statements import admit_samples
from pipeline.samples import IDLE_STATES, GradeStatus, SampleState
from tests.integration.rows import (
    add_aside,
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
    every,
    one,
)

pytestmark = pytest.mark.integration

VIEWS = {
    "job_summary": "job_id", "job_progress": "job_id", "job_cost": "job_id", "truncation": "job_id", "errors": "stage",
    "token_lengths": "author, finish_reason, verdict", "delegation": "author, trigger", "pass_at_k": "k",
    "maj_at_k": "k", "length_histogram": "bucket", "budget_curve": "budget",
    "takeover_flow": "trigger, followed_by", "delegation_progress": "tenth", "step_summary": "sentence_class, author",
}  # fmt: skip
NOT_COUNTED = ("seconds", "tokens_per_second", "tokens_per_second_small", "tokens_per_second_large", "waiting_for")
"""What goes on with the clock."""
NUM_PROBLEMS, NUM_SAMPLES = 12, 3
AT_ONCE = dt.timedelta(0)


@pytest.fixture
def connection(db_engine: Engine) -> Iterator[Connection]:
    """Its own transaction, committed where a test does it."""
    with db_engine.connect() as connection:
        yield connection


def told(connection: Connection, job: int) -> dict[str, list[dict[str, Any]]]:
    """What every view says of a job."""
    rows = {
        view: every(connection, f"SELECT * FROM {view} WHERE job_id = :job ORDER BY {order}", job=job)
        for view, order in VIEWS.items()
    }
    return {view: [{name: _rounded(value) for name, value in row.items() if name not in NOT_COUNTED} for row in found]
            for view, found in rows.items()}  # fmt: skip


def _rounded(value: Any) -> Any:
    """Sums of fractions depend on their order in the last digits."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


def told_without_rollups(connection: Connection, job: int) -> dict[str, list[dict[str, Any]]]:
    with connection.begin_nested() as savepoint:
        connection.execute(text("DELETE FROM rollups WHERE job_id = :job"), {"job": job})
        connection.execute(text("DELETE FROM length_counts WHERE job_id = :job"), {"job": job})
        found = told(connection, job)
        savepoint.rollback()
    return found


def make_job(connection: Connection, *, seed: int, states: tuple[str, ...]) -> tuple[int, list[int]]:
    """A job in parts of two problems, with samples in some states and all that may belong to them."""
    chance = random.Random(seed)
    job = add_job(connection, add_problem_set(connection, NUM_PROBLEMS), num_samples=NUM_SAMPLES, seconds=60)
    workers = {role: add_worker(connection, role, model=role) for role in ("small", "large", "judge")}
    engine = add_engine(connection, "any")
    ids = []
    for number in range(NUM_PROBLEMS * NUM_SAMPLES):
        # The first one failed, where any does: so that no view is empty.
        state = chance.choice(states) if number or "failed" not in states else "failed"
        ids += add_samples(connection, job, [_sample(chance, number // NUM_SAMPLES, state, workers)])
        _write(connection, chance, ids[-1], workers, engine)
    connection.execute(text("SELECT create_rollups(:job, :size)"), {"job": job, "size": 2 * NUM_SAMPLES})
    connection.commit()
    return job, ids


def _sample(chance: random.Random, problem: int, state: str, workers: dict[str, int]) -> dict[str, Any]:
    sample: dict[str, Any] = {"problem": problem, "state": state}
    if state in ("finished", "graded"):
        sample |= {"finish_reason": chance.choice(["eos", "eos", "length", "repetition"])}
        sample |= {"admitted_at": dt.datetime.now(dt.UTC) - dt.timedelta(seconds=chance.random() * 100)}
        sample |= {"finished_at": dt.datetime.now(dt.UTC)}
    if state == "graded":
        sample |= {"score": chance.choice([None, 0.0, 0.3, 1.0]), "predicted_answer": chance.choice("ab")}
    holders = {"drafting": "small", "assisting": "large", "judging": "judge"}
    if state in holders:
        sample |= {"holder_id": workers[holders[state]]}
    return sample


def _write(connection: Connection, chance: random.Random, sample: int, workers: dict[str, int], engine: int) -> None:
    """A few segments, counted in the sample, and steps."""
    tokens = dict.fromkeys(("small", "large", "inserted"), 0)
    num = chance.randrange(5)
    for index in range(num):
        author = chance.choice(["small", "large", "inserted"]) if index else "small"
        kept = "x" * chance.randrange(1, 30)
        timings: dict[str, Any] = {} if author == "inserted" else {
            "wait_seconds": chance.choice([None, chance.random()]), "queue_seconds": chance.random(),
            "write_seconds": chance.random() * 5,
            "committed_at": dt.datetime.now(dt.UTC) - dt.timedelta(seconds=chance.random() * 20),
        }  # fmt: skip
        add_segment(
            connection, sample, index, author, kept, trigger=chance.choice("pq"), cached_tokens=chance.randrange(10),
            takes_over=author == "large" and index < 4,
            worker_id=workers["large" if author == "large" else "small"], engine_id=engine, **timings,
        )  # fmt: skip
        add_step(connection, sample, index, author, kept, trigger=chance.choice([None, "p"]))
        tokens[author] += len(kept)
    asides = _write_asides(connection, chance, sample, num, workers, engine)
    takeovers = one(connection, "SELECT count(*) AS n FROM segments WHERE sample_id = :id AND takes_over", id=sample)
    connection.execute(
        text("""
            UPDATE samples SET num_segments = :num, tokens_small = :small, tokens_large = :large,
                tokens_inserted = :inserted, num_takeovers = :takeovers, num_asides = :num_asides,
                aside_small = :aside_small, aside_large = :aside_large WHERE id = :id
        """),
        {"num": num, **tokens, **asides, "takeovers": takeovers["n"], "id": sample},
    )


def _write_asides(
    connection: Connection, chance: random.Random, sample: int, after: int, workers: dict[str, int], engine: int
) -> dict[str, int]:
    """A few asides; returns what they add to their sample's counters."""
    counters = {"num_asides": chance.choice([0, 0, 1, 3]), "aside_small": 0, "aside_large": 0}
    for index in range(counters["num_asides"]):
        author = chance.choice(["small", "large"])
        written = "x" * chance.randrange(1, 9)
        add_aside(
            connection, sample, index, author, written, after_segment=after, cached_tokens=chance.randrange(10),
            write_seconds=chance.random(), held_seconds=chance.random(), queue_seconds=chance.random(),
            committed_at=dt.datetime.now(dt.UTC), worker_id=workers[author], engine_id=engine,
        )  # fmt: skip
        counters[f"aside_{author}"] += len(written)
    return counters


def refresh_all(db_engine: Engine) -> int:
    """Refresh every rollup that can be; returns how many."""
    with transaction(db_engine) as connection:
        rollups = refreshable_rollups(connection, quiet=AT_ONCE, limit=100)
    counted = 0
    for rollup in rollups:
        with transaction(db_engine) as connection:
            counted += refresh_rollup(connection, rollup)
    return counted


def valid_rollups(connection: Connection, job: int) -> int:
    return int(one(connection, "SELECT count(refreshed_at) AS n FROM rollups WHERE job_id = :job", job=job)["n"])


IDLE = tuple(state.value for state in IDLE_STATES)
EVERY_STATE = tuple(state.value for state in SampleState)
MOSTLY_DONE = ("graded",) * 60 + EVERY_STATE


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("states", [IDLE, MOSTLY_DONE], ids=["idle", "mostly done"])
def test_views_say_the_same_with_valid_rollups(
    db_engine: Engine, connection: Connection, states: tuple[str, ...], seed: int
) -> None:
    job, _ = make_job(connection, seed=seed, states=states)
    before = told(connection, job)
    assert before == told_without_rollups(connection, job)
    connection.commit()
    counted = refresh_all(db_engine)
    assert valid_rollups(connection, job) == counted > 0
    if states is IDLE:
        assert counted == NUM_PROBLEMS / 2
    assert told(connection, job) == before
    assert all(before[view] for view in VIEWS)


def change_at_random(connection: Connection, chance: random.Random, job: int, ids: list[int]) -> None:
    """One thing that may happen to samples that rest."""
    some = chance.sample(ids, 3)
    match chance.randrange(5):
        case 0:
            admit_samples(connection, ahead=1.5)
        case 1:
            retry_failed(connection, job, some)
        case 2:
            retry_cut(connection, job, some, max_tokens=10**6)
        case 3:
            for sample in some:
                grade_again(connection, sample, version=str(chance.random()), score=chance.random())
        case 4:
            connection.execute(
                text("UPDATE samples SET state = 'failed', error = 'e', ended_at = now() WHERE id = :id "
                     "AND state = 'pending'"), {"id": some[0]},
            )  # fmt: skip
    connection.commit()


def grade_again(connection: Connection, sample: int, *, version: str, score: float) -> None:
    row = one(connection, "SELECT epoch FROM samples WHERE id = :id", id=sample)
    if begin_grade(connection, sample_id=sample, epoch=row["epoch"], grader="math", version=version):
        end_grade(
            connection, sample_id=sample, epoch=row["epoch"], grader="math", version=version, status=GradeStatus.DONE,
            score=score, predicted_answer="c", detail=None,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_views_are_right_whatever_changes_and_is_counted(db_engine: Engine, connection: Connection, seed: int) -> None:
    job, ids = make_job(connection, seed=seed, states=("graded", "graded", "failed", "pending", "pending"))
    connection.execute(
        text("UPDATE jobs SET small_model = 'small', large_model = 'large' WHERE id = :job"), {"job": job}
    )
    connection.commit()
    chance = random.Random(seed)
    for _ in range(12):
        change_at_random(connection, chance, job, ids)
        assert told(connection, job) == told_without_rollups(connection, job)
        connection.commit()
        if chance.random() < 0.6:
            refresh_all(db_engine)
            assert told(connection, job) == told_without_rollups(connection, job)
            connection.commit()
        if chance.random() < 0.3:
            with transaction(db_engine) as folding:
                compact_lengths(folding, job, at_least=1)


def test_compacting_length_counts_changes_nothing_that_is_told(db_engine: Engine, connection: Connection) -> None:
    job, ids = make_job(connection, seed=1, states=("graded",))
    refresh_all(db_engine)
    before = told(connection, job)["token_lengths"]
    assert not compact_lengths(connection, job, at_least=10_000)
    assert compact_lengths(connection, job, at_least=1)
    assert told(connection, job)["token_lengths"] == before
    grade_again(connection, ids[0], version="2", score=0.9)
    connection.commit()
    refresh_all(db_engine)
    assert compact_lengths(connection, job, at_least=1)
    assert told(connection, job) == told_without_rollups(connection, job)
    assert one(connection, "SELECT bool_and(is_base) AS folded FROM length_counts") == {"folded": True}


def test_cancelling_pending_samples_invalidates_their_rollups(db_engine: Engine, connection: Connection) -> None:
    job, _ = make_job(connection, seed=1, states=("pending",))
    assert refresh_all(db_engine) == NUM_PROBLEMS / 2
    cancel_job(connection, job)
    assert cancel_samples(connection, job, limit=2 * NUM_SAMPLES) == 2 * NUM_SAMPLES
    assert valid_rollups(connection, job) == NUM_PROBLEMS / 2 - 1
    progress = "SELECT pending, cancelled FROM job_progress WHERE job_id = :job"
    assert one(connection, progress, job=job) == {"pending": 30, "cancelled": 6}


def test_rollup_is_not_refreshed_while_a_sample_of_it_changes(db_engine: Engine, connection: Connection) -> None:
    job, ids = make_job(connection, seed=1, states=("graded",))
    (rollup, *_) = sorted(refreshable_rollups(connection, quiet=AT_ONCE, limit=100))
    grade_again(connection, ids[0], version="2", score=0.5)
    with transaction(db_engine) as other:
        assert not refresh_rollup(other, rollup)
    connection.commit()
    with transaction(db_engine) as other:
        assert refresh_rollup(other, rollup)
    assert told(connection, job) == told_without_rollups(connection, job)


def test_change_waits_for_a_refresh_and_invalidates_the_rollup(db_engine: Engine, connection: Connection) -> None:
    job, ids = make_job(connection, seed=1, states=("graded",))
    rollup = Rollup(job, 0)
    assert refresh_rollup(connection, rollup)

    def grade() -> None:
        with transaction(db_engine) as other:
            grade_again(other, ids[0], version="2", score=0.5)

    with ThreadPoolExecutor(1) as pool:
        graded = pool.submit(grade)
        wait_for_a_lock(db_engine)
        connection.commit()
        graded.result(timeout=30)
    assert one(connection, "SELECT refreshed_at FROM rollups WHERE first_problem = 0") == {"refreshed_at": None}
    assert told(connection, job) == told_without_rollups(connection, job)


def wait_for_a_lock(db_engine: Engine) -> None:
    """Return once a session waits for another."""
    waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"
    for _ in range(10_000):
        with transaction(db_engine) as connection:
            if one(connection, waiting)["n"]:
                return
    raise AssertionError("nobody waits")


def test_rollup_that_was_changed_just_now_is_left_for_later(db_engine: Engine, connection: Connection) -> None:
    job, ids = make_job(connection, seed=1, states=("graded",))
    refresh_all(db_engine)
    grade_again(connection, ids[0], version="2", score=0.5)
    assert refreshable_rollups(connection, quiet=dt.timedelta(minutes=1), limit=100) == []
    assert refreshable_rollups(connection, quiet=AT_ONCE, limit=100) == [Rollup(job, 0)]
