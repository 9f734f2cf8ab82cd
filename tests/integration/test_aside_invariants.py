"""The invariants of asides, signals and takeovers: whole as a worker stores them, broken where one thing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db.invariants import check_job, snapshot
from pipeline.db.session import transaction
from pipeline.results.promises import Invariant
from tests.integration.rows import (
    add_aside,
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_signal,
    add_worker,
)

pytestmark = pytest.mark.integration


def move(connection: Connection, sample: int, state: str, **columns: Any) -> None:
    """A change of a sample's state, which the database checks and logs."""
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    statement = f"UPDATE samples SET state = :state{', ' if changes else ''}{changes} WHERE id = :id"
    connection.execute(text(statement), {"state": state, "id": sample, **columns})


@pytest.fixture
def job(db_engine: Engine) -> int:
    """A job whose one sample went from small to large: large rated what small tried, took its head, and wrote on."""
    with transaction(db_engine) as connection:
        job = add_job(connection, add_problem_set(connection, 1), seconds=1)
        (sample,) = add_samples(connection, job, [{"state": "pending"}])
        writers: list[dict[str, Any]] = [
            {"worker_id": add_worker(connection, role, model=role), "engine_id": add_engine(connection, role)}
            for role in ("small", "large")
        ]
        small, large = writers
        move(connection, sample, "ready")
        move(connection, sample, "drafting", epoch=1, holder_id=small["worker_id"])
        add_segment(connection, sample, 0, "small", "abc", discarded="d", finish="watch", **small)
        add_signal(connection, sample, "segment", 0, "first_entropy", [0.5, None], places=[0, 3])
        add_aside(connection, sample, 0, "small", "tried", after_segment=1, purpose="try", **small)
        add_signal(connection, sample, "aside", 0, "logprob", [-1.0, -0.5, -0.25, -0.125, 0.0])
        counted = {"num_asides": 1, "num_segments": 1, "tokens_small": 3, "discarded_small": 1, "aside_small": 5}
        move(connection, sample, "awaiting_large", holder_id=None, **counted)
        move(connection, sample, "assisting", epoch=2, holder_id=large["worker_id"])
        add_aside(
            connection, sample, 1, "large", "7", after_segment=1, finish="eos", tokens_generated=2, epoch=2, **large
        )
        taken: dict[str, Any] = {"taken_from": 0, "tokens_generated": 0, "epoch": 2, "worker_id": large["worker_id"]}
        add_segment(connection, sample, 1, "small", "tri", trigger="try", engine_id=small["engine_id"], **taken)
        add_segment(connection, sample, 2, "large", "xy", trigger="verify", takes_over=True, epoch=2, **large)
        counted = {"num_asides": 2, "num_segments": 3, "tokens_small": 6, "taken_small": 3, "tokens_large": 2}
        move(connection, sample, "ready", holder_id=None, aside_large=1, num_takeovers=1, **counted)
    return job


def violations(db_engine: Engine, job: int) -> Iterator[tuple[Invariant, str, str]]:
    with snapshot(db_engine) as connection:
        for found in check_job(connection, job):
            yield found.invariant, found.where, found.what


def test_nothing_is_wrong_with_asides_as_they_are_stored(db_engine: Engine, job: int) -> None:
    assert list(violations(db_engine, job)) == []


BREAKS = [
    (Invariant.SEGMENTS, "counts 2 asides and has 1", "DELETE FROM asides WHERE aside_index = 0"),
    (Invariant.SEGMENTS, "counts 0 asides and has 2", "UPDATE samples SET num_asides = 0"),
    (Invariant.SEGMENTS, "a text of 6", "UPDATE asides SET text = text || 'x' WHERE aside_index = 0"),
    (Invariant.SEGMENTS, "after segment 4 of 3", "UPDATE asides SET after_segment = 4 WHERE aside_index = 1"),
    (Invariant.SEGMENTS, "is not the head of aside 0", "UPDATE asides SET token_ids[1] = 7 WHERE aside_index = 0"),
    (Invariant.SEGMENTS, "is not the head of aside 1, which large wrote", "UPDATE segments SET taken_from = 1 "
     "WHERE segment_index = 1"),
    (Invariant.SEGMENTS, "aside 5, which there is not", "UPDATE segments SET taken_from = 5 WHERE segment_index = 1"),
    (Invariant.SEGMENTS, "is of no such piece", "UPDATE signals SET index = 9 WHERE kind = 'segment'"),
    (Invariant.SEGMENTS, "4 values at all places of a piece of 5 tokens",
     "UPDATE signals SET values = values[1 : 4] WHERE kind = 'aside'"),
    (Invariant.SEGMENTS, "at 2 places of a piece of 4", "UPDATE signals SET places[2] = 4 WHERE kind = 'segment'"),
    (Invariant.CLAIMS, "at epoch 9, which nobody claimed", "UPDATE asides SET epoch = 9 WHERE aside_index = 1"),
    (Invariant.CLAIMS, "claimed for the small model", "UPDATE asides SET author = 'large' WHERE aside_index = 0"),
    (Invariant.CLAIMS, "claimed for the large model", "UPDATE segments SET taken_from = NULL WHERE segment_index = 1"),
    (Invariant.CLAIMS, "what is before it at 2", "UPDATE asides SET after_segment = 3 WHERE aside_index = 0"),
    (Invariant.TOKENS, "2 tokens generated by large; 1 ids, ended by length",
     "UPDATE asides SET finish = 'length' WHERE aside_index = 1"),
    (Invariant.TOKENS, "tokens generated by small; 3 kept",
     "UPDATE segments SET tokens_generated = 3 WHERE segment_index = 1"),
    (Invariant.TOKENS, "counts 1 takeovers and has 0", "UPDATE segments SET takes_over = false"),
    (Invariant.TOKENS, "takeovers by another than the large model",
     "UPDATE segments SET takes_over = true WHERE segment_index = 0"),
    (Invariant.TOKENS, "4, 0 taken from asides", "UPDATE samples SET taken_small = 4"),
    (Invariant.TOKENS, "counts 6, 1, 0 tokens in asides", "UPDATE samples SET aside_small = 6"),
    (Invariant.TOKENS, "alive; booked", "UPDATE workers SET tokens_committed = 10 WHERE kind = 'small'"),
]  # fmt: skip


@pytest.mark.parametrize(("invariant", "what", "change"), BREAKS)
def test_change_by_hand_is_found(db_engine: Engine, job: int, invariant: Invariant, what: str, change: str) -> None:
    with transaction(db_engine) as connection:
        assert connection.execute(text(change)).rowcount > 0
    found = list(violations(db_engine, job))
    assert [each for each in found if each[0] is invariant and what in each[2]], found


def test_tokens_of_asides_are_among_those_a_worker_committed(db_engine: Engine, job: int) -> None:
    booked = "UPDATE workers SET tokens_committed = 9, tokens_generated = 9 WHERE kind = 'small'"  # 4 and 5 in an aside
    with transaction(db_engine) as connection:
        connection.execute(text(booked))
        connection.execute(text("UPDATE workers SET ended_at = now(), end_reason = 'stopped' WHERE kind = 'small'"))
    assert list(violations(db_engine, job)) == []
