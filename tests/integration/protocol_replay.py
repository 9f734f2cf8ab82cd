"""Does what protocol_world does on a real Postgres, move by move, and compares the two after each.

Workers' ids, times and tokens are the database's own. A restore puts the rows of an earlier moment back, as a server
that is restored does: without triggers, with the sequence's old number, while the processes live.
"""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, text

from pipeline.db import claims, commits, parts, upkeep_statements, worker_leases
from pipeline.db.claims import ClaimedSample
from pipeline.db.commits import Committed, SampleCommit
from pipeline.db.context_cache import ContextCache
from pipeline.db.runnable import Runnable
from pipeline.db.worker_leases import WorkerCounters
from pipeline.samples import FinishReason, ModelRole, SampleState
from pipeline.workforce import WorkerEnd
from tests.integration import protocol_model as pm
from tests.integration.interleaving import Op
from tests.integration.lapses import settle_lapsed
from tests.integration.protocol_model import EARLIEST, LOST, Model
from tests.integration.protocol_pipeline import (
    AGE,
    JUDGE,
    LARGE,
    LONG,
    SILENT,
    SMALL,
    TTL,
    Hand,
    Pipeline,
    modelled,
    see_claims,
    see_runnables,
    see_settled,
)
from tests.integration.protocol_world import NO_TRIAL, NOBODY, Move, Rules, Scene, Work, apply, beginning

MODELS = {ModelRole.SMALL: SMALL, ModelRole.LARGE: LARGE, ModelRole.JUDGE: JUDGE}
_OF_JOB = {
    "jobs": "id = :job",
    "samples": "job_id = :job",
    "events": "job_id = :job",
    "workers": "id = ANY(:workers)",
    **dict.fromkeys(
        ("segments", "asides", "steps", "segment_parts"), "sample_id IN (SELECT id FROM samples WHERE job_id = :job)"
    ),
}
"""The rows of one example."""
_AGED = text("UPDATE samples SET published_at = '-infinity' WHERE job_id = :job AND published_at IS NOT NULL")
_STORED = text("""
    SELECT string_agg(quote_ident(column_name), ', ') FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = :table AND is_generated = 'NEVER'
""")
"""The columns of a table that Postgres does not make of others."""
_LAST = text("SELECT last_value FROM workers_id_seq")


def as_claimed(work: Work) -> Work:
    return work._replace(trial=NO_TRIAL, parts=(), is_replaced=False)


class Replay(Pipeline):
    """One scene on Postgres, and the same as a value: before the last move, and after it."""

    def __init__(self, db_engine: Engine, scene: Scene) -> None:
        super().__init__(db_engine)
        self.scene, self.rules = scene, Rules()
        self.kept: tuple[Model, int] = copy.deepcopy(self.model), 0
        self.before = self.state = beginning(scene, self.rules)
        self.processes: dict[int, Hand] = {}
        self.tokens: dict[int, dt.datetime | None] = {}
        self.memories = [ContextCache() for _ in scene.kinds]
        self.real: dict[int, int] = {NOBODY: NOBODY}
        """The database's id of each life of the world."""
        self.claimed: dict[tuple[int, Work], ClaimedSample] = {}
        """By sample and work as it was claimed: what the real claim gave."""
        for hand in range(len(scene.kinds)):
            self._register(hand)
        self.submit(scene.num_samples, LARGE, scene.kinds[0])
        (self.job_id,) = self.model.jobs
        self.samples = sorted(self.model.samples)
        self.do(self.admitting())
        for hand in range(len(scene.kinds)):
            self.renew(hand)

    def make(self, move: Move) -> None:
        """Make a move in both worlds, and compare."""
        self.before, self.state = self.state, apply(self.state, move, self.scene, self.rules)
        self.model.now = self.before.whole.now
        getattr(self, move.name)(*move.args)
        self.compare(move)

    def compare(self, move: Move) -> None:
        for sample, place in zip(self.samples, self.state.places, strict=True):
            row, real = place.row, self.model.samples[sample]
            holder = None if row.holder == NOBODY else self.real[row.holder]
            wanted = (
                row.state, row.epoch, holder, row.num_rescues, row.commits, len(row.segments), len(row.asides),
                row.is_tried, len(row.parts),
            )  # fmt: skip
            found = (
                real.state, real.epoch, real.holder, real.num_rescues, real.count or 0, len(real.segments),
                len(real.asides), real.holder is not None and real.trial_epoch == real.epoch, len(real.parts),
            )  # fmt: skip
            assert wanted == found, f"after {move} sample {sample} should be {wanted}, is {found}"

    # -- moves, by their names ---------------------------------------------------------------------------------------

    def claim(self, hand: int, sample: int, epoch: int, *, is_answered: bool = True) -> None:
        process, job = self.processes[hand], self.job_id
        worker, epochs = process.worker_id, {self.samples[sample]: epoch}
        cache = self.memories[hand] if is_answered else ContextCache()

        def learn(answer: list[ClaimedSample]) -> None:
            for claimed in answer:
                place = self.state.places[sample]
                own = (hand, claimed.epoch, place.row.since)
                work = next(work for work in place.works if (work.hand, work.epoch, work.since) == own)
                self.claimed[sample, as_claimed(work)] = claimed
                assert tuple(s.epoch for s in claimed.context.segments) == tuple(epoch for epoch, _ in work.segments)
                assert tuple(a.epoch for a in claimed.context.asides) == tuple(epoch for epoch, _ in work.asides)

        op = Op(
            f"worker {worker} claims {epochs}",
            lambda c: claims.claim_samples(
                c, worker_id=worker, role=process.role, epochs=epochs, job_id=job, cache=cache
            ),
            lambda model: model.claim(worker, epochs, job),
            learn,
            see_claims,
        )
        self.do(op, is_answered=is_answered)

    def claim_unanswered(self, hand: int, sample: int, epoch: int) -> None:
        self.claim(hand, sample, epoch, is_answered=False)

    def begin_trial(self, sample: int, index: int) -> None:
        work = self.before.places[sample].works[index]
        self.do(self.trying_of(self.processes[work.hand], self.claimed[sample, as_claimed(work)]))

    def store_part(self, sample: int, index: int) -> None:
        work = self.before.places[sample].works[index]
        claimed, worker = self.claimed[sample, as_claimed(work)], self.processes[work.hand].worker_id
        part = parts.Part(
            sample_id=claimed.sample_id, epoch=work.epoch, segment_index=len(work.segments),
            start_token=len(work.parts), token_ids=[0], runnable_at=claimed.runnable_at,
        )  # fmt: skip
        wanted = pm.Part(work.epoch, worker, part.segment_index, part.start_token, 1, work.since)
        self.do(
            Op(
                f"worker {worker} stores a part of {part.claim}",
                lambda c: parts.store_parts(c, worker_id=worker, parts=[part]),
                lambda model: model.store_part(claimed.sample_id, wanted),
            )
        )

    def commit(self, sample: int, index: int, worker: int, *, fails: bool = False) -> None:  # type: ignore[override]  # the move of that name
        work = self.before.places[sample].works[index]
        claimed = self.claimed[sample, as_claimed(work)]
        commit = self._failed(claimed) if fails else self._written(claimed, work)
        written = replace(modelled(self.real[worker], commit), runnable=work.since)
        real = self.real[worker]

        def see(answer: Committed) -> Any:
            return answer.claims, see_runnables(answer.samples)

        self.do(
            Op(
                f"worker {real} commits {commit.claim} as {commit.to_state.value}",
                lambda c: commits.commit_samples(c, worker_id=real, engine_id=self.engine_id, commits=[commit]),
                lambda model: model.commit(real, [written]),
                see=see,
            )
        )

    def commit_unanswered(self, sample: int, index: int, worker: int) -> None:
        self.commit(sample, index, worker)

    def fail(self, sample: int, index: int, worker: int) -> None:
        self.commit(sample, index, worker, fails=True)

    def _written(self, claimed: ClaimedSample, work: Work) -> SampleCommit:
        turn = self.scene.turns[min(work.commits, len(self.scene.turns) - 1)]
        hand = self.processes[work.hand]
        return SampleCommit(
            sample_id=claimed.sample_id,
            epoch=claimed.epoch,
            to_state=SampleState(turn.to_state),
            segments=tuple(self.segment(hand, claimed, index) for index in range(turn.num_segments)),
            num_segments_before=len(claimed.context.segments),
            asides=tuple(self.aside(hand, claimed) for _ in range(turn.num_asides)),
            num_asides_before=len(claimed.context.asides),
            runnable_at=claimed.runnable_at,
            policy_state={"count": work.commits + 1},
            finish_reason=FinishReason.EOS if turn.to_state == "finished" else None,
        )

    @staticmethod
    def _failed(claimed: ClaimedSample) -> SampleCommit:
        return SampleCommit(
            sample_id=claimed.sample_id, epoch=claimed.epoch, to_state=SampleState.FAILED, error_class="internal",
            error="it broke", runnable_at=claimed.runnable_at, num_segments_before=len(claimed.context.segments),
            num_asides_before=len(claimed.context.asides),
        )  # fmt: skip

    def release(self, sample: int, index: int) -> None:
        work = self.before.places[sample].works[index]
        worker, epochs = self.real[work.worker], {self.samples[sample]: work.epoch}
        self.do(
            Op(
                f"worker {worker} releases {epochs}",
                lambda c: claims.release_samples(c, worker_id=worker, epochs=epochs),
                lambda model: model.release(worker, epochs),
                see=see_runnables,
            )
        )

    def renew(self, hand: int) -> None:
        """As a worker's heartbeat does: with what the last one returned, and by it what nobody here knows of."""
        worker, token, known = self.processes[hand].worker_id, self.tokens[hand], self._known(hand)
        since = None if token is None else self.before.whole.hands[hand].token

        def strays(held: dict[int, int]) -> dict[int, int]:
            return {sample: epoch for sample, epoch in held.items() if (sample, epoch) not in known}

        def run(connection: Connection) -> tuple[dt.datetime, dict[int, int], list[Runnable]]:
            renewed = worker_leases.renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters(), since=token)
            held = claims.held_epochs(connection, worker)
            return renewed, held, claims.release_samples(connection, worker_id=worker, epochs=strays(held))

        def predict(model: Model) -> Any:
            if model.renew(worker, since) == LOST:
                return LOST
            held = model.held_by(worker)
            return held, model.release(worker, strays(held))

        def learn(answer: Any) -> None:
            if answer == LOST:
                self._register(hand)
            else:
                self.tokens[hand] = answer[0]

        self.do(Op(f"worker {worker} renews", run, predict, learn, lambda a: (a[1], see_runnables(a[2]))))

    def _known(self, hand: int) -> set[tuple[int, int]]:
        return {
            (self.samples[index], work.epoch)
            for index, place in enumerate(self.before.places)
            for work in place.works
            if work.hand == hand
        }

    def start(self, hand: int) -> None:  # type: ignore[override]  # the move of that name
        self._register(hand)

    def _register(self, hand: int) -> None:
        role = ModelRole(self.scene.kinds[hand])
        process = super().start(role, MODELS[role])
        self.processes[hand], self.tokens[hand] = process, None
        self.real[self.state.whole.hands[hand].worker] = process.worker_id

    def kill(self, hand: int) -> None:
        self.memories[hand] = ContextCache()

    def die(self, hand: int) -> None:
        self.do(self.ending_of(self.processes[hand], WorkerEnd.ENGINE_DIED))
        self.kill(hand)

    # upkeep, people, fate

    def lapse(self, worker: int) -> None:
        real = self.real[worker]

        def run(connection: Connection) -> upkeep_statements.Settled | None:
            connection.execute(SILENT, {"worker": real, "time": dt.timedelta(seconds=LONG)})
            return settle_lapsed(connection)

        def predict(model: Model) -> Any:
            model.workers[real].expires = EARLIEST
            settled = model.settle(float("inf"))
            model.workers[real].expires = model.workers[real].renewed + TTL.total_seconds()
            return settled

        self.do(Op(f"worker {real} lapses and is settled", run, predict, see=see_settled))

    def settle(self) -> None:
        self.do(self.settling())

    def publish_again(self) -> None:
        def run(connection: Connection) -> list[Runnable]:
            connection.execute(_AGED, {"job": self.job_id})
            overdue = upkeep_statements.overdue_samples(connection, age=AGE)
            return [*overdue, *upkeep_statements.suspects_to_try(connection, age=AGE)]

        def predict(model: Model) -> Any:
            for s in model.samples.values():
                s.published = EARLIEST
            return tuple(sorted((*model.overdue(), *model.try_suspects())))

        self.do(Op("upkeep publishes again", run, predict, see=lambda answer: tuple(sorted(see_runnables(answer)))))

    def cancel(self) -> None:
        self.do(self.cancelling(0, 0))

    def cancel_samples(self) -> None:
        self.do(self.cancelling_samples(0, 0, 0))

    def lose(self, sample: int) -> None:
        """Messages are the world's own."""

    def snapshot(self) -> None:
        with self.db_engine.begin() as connection:
            for table, condition in _OF_JOB.items():
                connection.execute(text(f"DROP TABLE IF EXISTS kept_{table}"))
                rows = f"SELECT * FROM {table} WHERE {condition}"
                connection.execute(text(f"CREATE TABLE kept_{table} AS {rows}"), self._ids())
            last = connection.execute(_LAST).scalar_one()
        self.kept = copy.deepcopy(self.model), last

    def restore(self) -> None:
        kept, last = self.kept
        with self.db_engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers, no foreign keys
            for table, condition in reversed(_OF_JOB.items()):
                connection.execute(text(f"DELETE FROM {table} WHERE {condition}"), self._ids())
            for table in _OF_JOB:
                columns = connection.execute(_STORED, {"table": table}).scalar_one()
                rows = f"({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM kept_{table}"
                connection.execute(text(f"INSERT INTO {table} {rows}"))
            connection.execute(text("SELECT setval('workers_id_seq', :last)"), {"last": last})
        self.model = copy.deepcopy(kept)

    def _ids(self) -> dict[str, Any]:
        return {"job": self.job_id, "workers": list(self.model.workers)}
