"""A protocol that is broken on purpose is caught: each fence is taken down once, and the tests of it must fail.

A mutation replaces a piece of one statement. The piece must be there: who rewrites a statement rewrites its mutation.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import pytest
from sqlalchemy import Connection, TextClause, bindparam, text
from sqlalchemy import Engine as DbEngine
from sqlalchemy.exc import IntegrityError

from pipeline.db import claims, commits, parts, upkeep_statements, worker_leases
from pipeline.db.commits import Committed, SampleCommit
from pipeline.db.runnable import Runnable
from pipeline.db.session import transaction
from pipeline.samples import ALONE_AFTER
from tests.integration.test_protocol_machine import quick_engine, run_machine
from tests.integration.test_protocol_pairs import run_pair
from tests.integration.test_writer import WriterRig, rig
from workers.broker.publish import Publisher
from workers.writing.store import Store

__all__ = ["rig", "quick_engine"]  # fixtures


@dataclass(frozen=True)
class Mutation:
    """A statement, what is taken out of it, and what stands there instead."""

    name: str
    module: ModuleType
    statement: str
    piece: str
    instead: str
    found: str
    """A pattern in the failure: how it shows."""
    pair: str | None = None
    """The pair of operations that shows it; None: the machine does."""


SLOW_CLOCK = dt.timedelta(minutes=5)

MUTATIONS = [
    Mutation("commit without fence", commits, "_COMMIT", "s.epoch = written.epoch AND s.holder_id = :worker",
             "s.epoch >= written.epoch AND :worker > 0", r"worker \d+ commits|no transition from"),
    Mutation("commit without epoch", commits, "_COMMIT", "s.epoch = written.epoch AND", "",
             "commits .* against .* commits", pair="commit, late commit"),
    Mutation("commit without holder", commits, "_COMMIT", "AND s.holder_id = :worker", "",
             r"worker \d+ commits|no transition from"),
    Mutation("lease by the worker's clock", worker_leases, "_RENEW", "expires_at = clock_timestamp() + :ttl",
             "expires_at = CAST(:worker_clock AS timestamptz) + :ttl", r"after worker \d+ renews:\s+workers"),
    Mutation("claim without a lock on its worker", claims, "_CLAIM", " FOR SHARE OF w", "",
             "claims .* lapses .* gave what neither order gives", pair="claim, lapse"),
    Mutation("settle without a new epoch", upkeep_statements, "_RESCUE", "epoch = s.epoch + 1, holder_id", "holder_id",
             "settle"),
    Mutation("death beside others convicts", upkeep_statements, "_RESCUE",
             "AND count(*) OVER (PARTITION BY holder_id) = 1", "", "gave what neither order gives",
             pair="claim beside a trial, die"),
    Mutation("death before the trial convicts", upkeep_statements, "_RESCUE",
             f"s.num_rescues >= {ALONE_AFTER} AND s.trial_epoch = s.epoch", f"s.num_rescues >= {ALONE_AFTER}",
             "gave what neither order gives", pair="begin trial, die"),
    Mutation("trial of somebody else's claim", claims, "_BEGIN_TRIAL", "s.epoch = :epoch AND s.holder_id = :worker",
             "s.epoch >= :epoch", "gave what neither order gives", pair="begin trial, die"),
    Mutation("part without fence", parts, "_STORE", "s.epoch = part.epoch AND s.holder_id = :worker", "true",
             "gave what neither order gives|no transition|violates", pair="store part, lapse"),
    Mutation("part counted twice", parts, "_STORE", "AND s.part_tokens = part.start_token", "",
             "gave what neither order gives|duplicate key", pair="store part, the same again"),
    Mutation("repeated commit taken for a stale one", commits, "_STORED_BEFORE", "SELECT sample_id, epoch FROM refused",
             "SELECT sample_id, epoch FROM (SELECT * FROM refused WHERE false) refused",
             "commits .* against .* commits", pair="commit, the same again"),
    Mutation("settle locks the keys of its workers", upkeep_statements, "_UNSETTLED", "FOR NO KEY UPDATE", "FOR UPDATE",
             "gave what neither order gives", pair="commit, lapse"),  # it passes over the worker that commits
    Mutation("settle waits for what it only publishes", upkeep_statements, "_ORPHANED", " SKIP LOCKED", "",
             "deadlock detected", pair="lapse, cancel samples"),
]  # fmt: skip


def mutated(mutation: Mutation) -> TextClause:
    original: TextClause = getattr(mutation.module, mutation.statement)
    assert original.text.count(mutation.piece) == 1, f"{mutation.statement} has changed: mend this mutation"
    changed = text(original.text.replace(mutation.piece, mutation.instead))
    if ":worker_clock" in mutation.instead:
        return changed.bindparams(bindparam("worker_clock", callable_=lambda: dt.datetime.now(dt.UTC) - SLOW_CLOCK))
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_broken_statement_is_caught(
    mutation: Mutation, quick_engine: DbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutation.module, mutation.statement, mutated(mutation))
    with pytest.raises((AssertionError, IntegrityError), match=mutation.found):
        check(quick_engine, mutation.pair)


def check(db_engine: DbEngine, pair: str | None) -> None:
    if pair is None:
        run_machine(db_engine, num_examples=40)
    else:
        run_pair(db_engine, pair)


def false_messages(rig: WriterRig, monkeypatch: pytest.MonkeyPatch) -> list[Runnable]:
    """What a writer tells others of its samples that is not so for them at that moment."""
    told: list[Runnable] = []
    false: list[Runnable] = []

    def publish(_: Publisher, samples: Sequence[Runnable]) -> None:
        with transaction(rig.db_engine) as connection:
            seen = {row.id: (row.epoch, row.state) for row in connection.execute(SEEN)}
        told.extend(samples)
        false.extend(s for s in samples if seen[s.sample_id] != (s.epoch, s.state.value))

    monkeypatch.setattr(Publisher, "publish", publish)
    rig.writer.write(rig.message)
    assert {s.sample_id for s in told} == set(rig.message.epochs), "each sample is told of"
    return false


SEEN = text("SELECT id, epoch, state FROM samples")


def test_writer_tells_others_only_what_they_find(rig: WriterRig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert false_messages(rig, monkeypatch) == []


def test_publishing_before_the_commit_is_caught(rig: WriterRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit_together(self: Store, group: Sequence[SampleCommit], worker_id: int) -> Committed:
        def statement(connection: Connection) -> Committed:
            committed = commits.commit_samples(
                connection, worker_id=worker_id, engine_id=self.identity.engine_id, commits=group
            )
            rig.writer._publisher.publish(committed.samples)
            return committed

        return self.patiently(statement)

    monkeypatch.setattr(Store, "_commit_together", commit_together)
    assert false_messages(rig, monkeypatch) != []
