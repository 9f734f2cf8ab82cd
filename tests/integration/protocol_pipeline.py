"""A pipeline for the tests of its protocol: everybody who works on the database, each beside the model of it.

What is done is done with the real statements and compared: its answer, and all rows, must be as the model says.
"""

from __future__ import annotations

import copy
import datetime as dt
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, make_url, text

from pipeline.db import claims, commits, parts, upkeep_statements, worker_leases
from pipeline.db import job_control as control
from pipeline.db.claims import ClaimedSample
from pipeline.db.commits import Committed, SampleCommit
from pipeline.db.grades import TextGrade, begin_grade, end_grade, store_grades
from pipeline.db.runnable import Runnable
from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.db.worker_leases import Registration, WorkerCounters
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.policies import parse_policy
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import Author, FinishReason, GradeStatus, ModelRole, Piece, SampleState, SegmentFinish
from pipeline.segments import WrittenAside, WrittenSegment
from pipeline.workforce import WorkerEnd, WorkerKind
from tests.integration import protocol_model as pm
from tests.integration.interleaving import Actor, Op, perform, run_against_each_other, seen
from tests.integration.lapses import settle_lapsed, time_out_late
from tests.integration.protocol_model import AGE_S, LOST, MINUTE, REFUSED, TTL_S, Aside, Model, Segment, Written
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher

TTL, AGE = dt.timedelta(seconds=TTL_S), dt.timedelta(seconds=AGE_S)
MAX_TOKENS = 100
DELAY_S = 15 * MINUTE
"""The delay after a transient failure is stretched by this: its seconds would run out while a slow machine looks."""
LONGEST_DELAY = dt.timedelta(seconds=2 * DELAY_S)
BRIEFLY, LONG = 20 * MINUTE, 70 * MINUTE
"""Steps of time. No sum of them comes near the time to live or the age."""
SMALL, LARGE, OTHER_LARGE, JUDGE = "S", "L", "L2", "J"
GRADER, VERSION = "math", "1"


@dataclass
class Hand:
    """A worker process as it knows itself."""

    worker_id: int
    role: ModelRole
    model: str
    works: dict[int, ClaimedSample] = field(default_factory=dict)
    parts: dict[tuple[int, int], int] = field(default_factory=dict)
    """Tokens of open segments that it has stored, by claim."""
    is_hung: bool = False

    @property
    def epochs(self) -> dict[int, int]:
        return {work.sample_id: work.epoch for work in self.works.values()}

    def drop(self, epochs: Mapping[int, int]) -> None:
        """Forget claims: sample id → epoch."""
        for sample, epoch in epochs.items():
            if self.epochs.get(sample) == epoch:
                del self.works[sample]


class Post(Publisher):
    """A publisher whose broker keeps every message for ever."""

    def __init__(self) -> None:
        super().__init__(Celery("machine", broker="memory://", set_as_current=False))
        self.sent: list[SamplesMessage] = []

    def _apply(self, task: str, message: dict[str, object], *_: object) -> bool:
        self.sent.append(SamplesMessage.model_validate(message))
        return True

    def depth(self, queue: str) -> int:
        return 0


def open_quickly(url: SecretStr) -> Engine:
    """Connections that do not wait for the disk and see a deadlock soon."""
    return create_engine(
        make_url(url.get_secret_value()).set(drivername="postgresql+psycopg"),
        pool_size=4,
        connect_args={"options": "-c synchronous_commit=off -c deadlock_timeout=100ms"},
    )


SLOTS = 3
KINDS = (
    (ModelRole.SMALL, SMALL), (ModelRole.LARGE, LARGE), (ModelRole.LARGE, OTHER_LARGE), (ModelRole.JUDGE, JUDGE),
)  # fmt: skip
OUTCOMES = ("large", "small", "finish", "cut", "judge", "fail", "large", "cut")
"""What a worker may make of a sample."""
TO_STATE = {
    "large": SampleState.AWAITING_LARGE,
    "small": SampleState.READY,
    "judge": SampleState.AWAITING_JUDGE,
    "finish": SampleState.FINISHED,
    "cut": SampleState.FINISHED,
    "fail": SampleState.FAILED,
}
FINISH_REASON = {"finish": FinishReason.EOS, "cut": FinishReason.LENGTH}
REASONS = (WorkerEnd.STOPPED, WorkerEnd.ENGINE_DIED, WorkerEnd.ENGINE_STALLED, WorkerEnd.WRITER_FAILED)
DUTIES = (
    "settling", "halting", "cancelling_leftovers", "publishing_again", "trying_suspects", "reaping_grades", "closing",
    "admitting",
)  # fmt: skip
STRETCH = text("UPDATE samples SET not_before = not_before + :delay WHERE id = ANY(:ids) AND not_before > now()")
SILENT = text("""
    UPDATE workers SET renewed_at = renewed_at - :time, expires_at = expires_at - :time
    WHERE id = :worker AND ended_at IS NULL
""")
PASS = [
    text("UPDATE samples SET published_at = published_at - :time, not_before = not_before - :time"
         " WHERE job_id = ANY(:jobs)"),
    text("UPDATE workers SET renewed_at = renewed_at - :time, expires_at = expires_at - :time"
         " WHERE id = ANY(:workers)"),
    text("UPDATE grades SET started_at = started_at - :time"
         " WHERE sample_id IN (SELECT id FROM samples WHERE job_id = ANY(:jobs))"),
]  # fmt: skip
CLEAR = [
    text("UPDATE workers SET ended_at = coalesce(ended_at, now()), end_reason = coalesce(end_reason, 'stopped'),"
         " settled_at = now() WHERE settled_at IS NULL"),
    text("UPDATE samples SET state = 'cancelled', holder_id = NULL, ended_at = now()"
         " WHERE state NOT IN ('graded', 'failed', 'cancelled')"),
    text("UPDATE jobs SET state = 'paused' WHERE state = 'running'"),  # cheaper than an end, which would be counted
]  # fmt: skip
"""Leave nothing to do to the next example, which has jobs and workers of its own."""

DUMP = text("""
    SELECT
    (SELECT json_agg(json_build_array(id, state, priority)) FROM jobs WHERE id = ANY(:jobs)) AS jobs,
    (SELECT json_agg(json_build_array(g.sample_id, g.status, g.num_tries))
     FROM grades g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = ANY(:jobs)) AS grades,
    (SELECT json_agg(json_build_array(id, end_reason, settled_at IS NOT NULL,
        CASE WHEN ended_at IS NULL THEN round(extract(epoch FROM clock_timestamp() - renewed_at) / 600)::integer END,
        round(extract(epoch FROM expires_at - renewed_at) / 60)::integer, tokens_withdrawn))
     FROM workers WHERE id = ANY(:workers)) AS workers,
    (SELECT json_agg(json_build_array(id, state, epoch, holder_id, small_worker_id, large_worker_id, judge_worker_id,
        CASE WHEN isfinite(published_at)
             THEN to_jsonb(round(extract(epoch FROM clock_timestamp() - published_at) / 600)::integer)
             ELSE to_jsonb(published_at) END,
        num_rescues, trial_epoch, num_attempts, coalesce(not_before > clock_timestamp(), false), next_role, max_tokens,
        num_takeovers, policy_state->'count', finish_reason, error_class, score, num_segments, tokens_small,
        tokens_large, discarded_small, discarded_large, num_asides, aside_small, aside_large, aside_judge,
        part_tokens))
     FROM samples WHERE job_id = ANY(:jobs)) AS samples,
    (SELECT json_agg(json_build_array(g.sample_id, g.segment_index, g.epoch, g.worker_id, g.author,
        cardinality(g.token_ids), cardinality(g.discarded_ids)))
     FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = ANY(:jobs)) AS segments,
    (SELECT json_agg(json_build_array(p.sample_id, p.start_token, p.segment_index, p.epoch, p.worker_id,
        cardinality(p.token_ids)))
     FROM segment_parts p JOIN samples s ON s.id = p.sample_id WHERE s.job_id = ANY(:jobs)) AS parts,
    (SELECT json_agg(json_build_array(a.sample_id, a.aside_index, a.epoch, a.worker_id, a.author,
        cardinality(a.token_ids), a.after_segment))
     FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = ANY(:jobs)) AS asides
""")


def read(connection: Connection, model: Model) -> dict[str, dict[Any, Any]]:
    """What the database says of the model's jobs and workers, in the form of Model.dump."""
    row = connection.execute(DUMP, {"jobs": list(model.jobs), "workers": list(model.workers)}).one()
    return {
        "jobs": {key: tuple(rest) for key, *rest in row.jobs or []},
        "grades": {key: tuple(rest) for key, *rest in row.grades or []},
        "workers": {key: tuple(rest) for key, *rest in row.workers or []},
        "samples": {key: tuple(rest) for key, *rest in row.samples or []},
        "segments": {(sample, index): tuple(rest) for sample, index, *rest in row.segments or []},
        "parts": {(sample, start): tuple(rest) for sample, start, *rest in row.parts or []},
        "asides": {(sample, index): tuple(rest) for sample, index, *rest in row.asides or []},
    }


def differences(wanted: dict[str, dict[Any, Any]], found: dict[str, dict[Any, Any]]) -> list[str]:
    return [
        f"{table} {key}: should be {wanted[table].get(key)}, is {found[table].get(key)}"
        for table in wanted
        for key in sorted(wanted[table].keys() | found[table].keys())
        if wanted[table].get(key) != found[table].get(key)
    ]


def see_runnables(answer: Sequence[Runnable]) -> tuple[Any, ...]:
    return tuple((s.sample_id, s.epoch, s.state.value, s.home_queue, s.resumed, s.is_suspect) for s in answer)


def see_settled(answer: upkeep_statements.Settled | None) -> Any:
    if answer is None:
        return None
    return frozenset(answer.worker_ids), answer.rescued, answer.failed, see_runnables(answer.samples)


def see_claims(answer: Sequence[ClaimedSample]) -> dict[int, tuple[Any, ...]]:
    return {
        s.sample_id: (
            s.epoch,
            len(s.context.segments),
            len(s.context.asides),
            s.policy_state["count"] if s.policy_state else None,
            s.budget,
            len(s.open_segment.token_ids) if s.open_segment else 0,
        )
        for s in answer
    }


class Pipeline:
    """Workers, upkeep, graders and people on one database, and what each of them may do next.

    The methods named -ing make an operation, or nothing where there is nothing to do it with. Their numbers choose
    worker, message, job and manner; all are counted around.
    """

    num_raced: ClassVar[Counter[str]] = Counter()
    happened: ClassVar[Counter[str]] = Counter()
    """How often each operation was done, and how often it did something."""

    def __init__(self, db_engine: Engine) -> None:
        self.db_engine = db_engine
        self.model = Model()
        self.post = Post()
        self.hands: list[Hand] = []
        self.sent: list[tuple[int, list[SampleCommit]]] = []
        """Every commit of every worker: any may arrive once more."""
        self.readings: dict[tuple[int, int], None] = {}
        """Every text that graders have read: sample and epoch."""
        self.eye = db_engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        """Sees what is committed."""
        with db_engine.begin() as connection:
            self.engine_id = worker_leases.put_engine(
                connection, kind="scripted", version="1", model="m", model_fingerprint="f", vocabulary_sha256="v",
                settings={},
            )  # fmt: skip

    # -- doing -------------------------------------------------------------------------------------------------------

    def do(self, op: Op | None, *, is_answered: bool = True) -> None:
        """Do an operation alone, and compare; None: there was nothing to do it with."""
        if op is None:
            return
        with self.db_engine.begin() as connection:
            answer = perform(op, connection)
        wanted = op.predict(self.model)
        self.count(op, wanted)
        assert seen(op, answer) == wanted, f"{op.what}: should answer {wanted}, answers {seen(op, answer)}"
        wrong = differences(self.model.dump(), read(self.eye, self.model))
        assert not wrong, f"after {op.what}:\n" + "\n".join(wrong)
        if is_answered:
            op.learn(answer)

    def race(self, ops: Sequence[Op], schedule: Sequence[int]) -> list[Actor]:
        """Do two operations against each other; the outcome must be that of one after the other."""
        what = " against ".join(op.what for op in ops)
        actors = run_against_each_other(ops, schedule, self.db_engine)
        for actor in actors:
            assert actor.error is None, f"{what}: {actor.op.what} broke: {actor.error}"
        found = read(self.eye, self.model)
        failures = []
        touched = frozenset(sample for op in ops for sample in self.touched(op))
        for order, are_locked in itertools.product(itertools.permutations(actors), (False, True)):
            model = copy.deepcopy(self.model)
            if are_locked:
                model.locked = touched
                model.locked_jobs = frozenset(op.job for op in ops)
            wrong = []
            for actor in order:
                wanted, answer = actor.op.predict(model), seen(actor.op, actor.answer)
                if wanted != answer:
                    wrong.append(f"{actor.op.what}: should answer {wanted}, answers {answer}")
            wrong += differences(model.dump(), found)
            if not wrong:
                self.model = model
                model.locked, model.locked_jobs = frozenset(), frozenset()
                for actor in order:
                    self.count(actor.op, seen(actor.op, actor.answer), in_race=True)
                    actor.op.learn(actor.answer)
                return actors
            failures.append(f"not {', then '.join(actor.op.what for actor in order)}:\n" + "\n".join(wrong))
        raise AssertionError(f"{what} gave what neither order gives\n" + "\n".join(failures))

    def count(self, op: Op, answer: Any, *, in_race: bool = False) -> None:
        verb = " ".join(word for word in op.what.split() if word.strip(",").isalpha())
        is_idle = not answer or answer in (REFUSED, LOST) or (isinstance(answer, tuple) and not any(answer))
        self.happened[f"{verb}: {'in vain' if is_idle else 'done'}"] += 1
        self.num_raced[verb] += in_race

    def touched(self, op: Op) -> frozenset[int]:
        """The samples that an operation alone would change."""
        model, before = copy.deepcopy(self.model), self.model.dump()["samples"]
        op.predict(model)
        return frozenset(sample for sample, row in model.dump()["samples"].items() if row != before[sample])

    def publish(self, answer: Sequence[Runnable]) -> None:
        self.post.publish(answer)

    # -- what somebody may do next; None: nothing --------------------------------------------------------------------

    def hand(self, who: int) -> Hand | None:
        return self.hands[who % len(self.hands)] if self.hands else None

    def hand_at_work(self, who: int) -> Hand | None:
        hand = self.hand(who)
        if hand is None or hand.works:
            return hand
        busy = [hand for hand in self.hands if hand.works]
        return busy[who % len(busy)] if busy else None

    def claiming(self, who: int, which: int, how: int) -> Op | None:
        hand = self.hand(who)
        if hand is None or not self.post.sent:
            return None
        message = self.post.sent[-1 - (which + 8 * (how % 4)) % len(self.post.sent)]
        return self.claiming_by(hand, message)

    def claiming_by(self, hand: Hand, message: SamplesMessage) -> Op:
        worker, epochs, job = hand.worker_id, message.epochs, message.job_id

        def learn(answer: list[ClaimedSample]) -> None:
            if hand.worker_id == worker:
                hand.works.update((sample.sample_id, sample) for sample in answer)

        return Op(
            f"worker {worker} claims {epochs}",
            lambda c: claims.claim_samples(c, worker_id=worker, role=hand.role, epochs=epochs, job_id=job),
            lambda model: model.claim(worker, epochs, job),
            learn,
            see_claims,
        )

    def trying_alone(self, who: int, which: int, _: int) -> Op | None:
        """A worker begins the trial of one that it holds: a suspect that must be alone, or now and then any."""
        hand = self.hand_at_work(who)
        if hand is None:
            return None
        works = list(hand.works.values())
        alone = [work for work in works if work.must_be_alone]
        work = (alone or works)[which % len(alone or works)]
        return self.trying_of(hand, work)

    def trying_of(self, hand: Hand, work: ClaimedSample) -> Op:
        worker, claim = hand.worker_id, (work.sample_id, work.epoch)
        return Op(
            f"worker {worker} tries alone {claim}",
            lambda c: claims.begin_trial(c, worker_id=worker, claim=claim),
            lambda model: model.begin_trial(worker, *claim),
        )

    def storing_part(self, who: int, which: int, how_many: int) -> Op | None:
        """A worker stores what it has written so far of a segment; now and then by a count that is not so."""
        hand = self.hand_at_work(who)
        if hand is None:
            return None
        works = list(hand.works.values())
        work = works[which % len(works)]
        before = len(work.open_segment.token_ids) if work.open_segment else 0
        start = before + hand.parts.get((work.sample_id, work.epoch), 0) + (how_many == 7)
        return self.storing_of(hand, work, start, 1 + how_many % 3)

    def storing_of(self, hand: Hand, work: ClaimedSample, start: int, num_tokens: int) -> Op:
        part = parts.Part(
            sample_id=work.sample_id, epoch=work.epoch, segment_index=len(work.context.segments), start_token=start,
            token_ids=list(range(num_tokens)),
        )  # fmt: skip
        worker = hand.worker_id
        wanted = pm.Part(work.epoch, worker, part.segment_index, start, num_tokens)

        def learn(stored: frozenset[int]) -> None:
            hand.parts[part.claim] = hand.parts.get(part.claim, 0) + num_tokens * len(stored)

        return Op(
            f"worker {worker} stores a part of {part.claim}",
            lambda c: parts.store_parts(c, worker_id=worker, parts=[part]),
            lambda model: model.store_part(work.sample_id, wanted),
            learn,
        )

    def writing(self, who: int, what: int, how_many: int) -> Op | None:
        hand = self.hand_at_work(who)
        if hand is None:
            return None
        works = list(hand.works.values())
        chosen = works if how_many % 3 == 0 else [works[what % len(works)]]
        outcomes = [OUTCOMES[(what + i) % len(OUTCOMES)] for i in range(len(chosen))]
        return self.committing(hand, [self.made_of(hand, *pair) for pair in zip(chosen, outcomes, strict=True)])

    def made_of(self, hand: Hand, work: ClaimedSample, outcome: str) -> SampleCommit:
        """What a worker makes of a sample: up to three segments and an aside under one claim, or an aside alone."""
        bare = SampleCommit(sample_id=work.sample_id, epoch=work.epoch, to_state=TO_STATE[outcome])
        if bare.to_state is SampleState.FAILED:
            return replace(bare, error_class="internal", error="it broke")
        num_segments = 0 if hand.role is ModelRole.JUDGE else (work.epoch + work.sample_id) % 4
        segments = tuple(self.segment(hand, work, index) for index in range(num_segments))
        asides = (self.aside(hand, work),) if work.epoch % 2 or not segments else ()
        return replace(
            bare,
            segments=segments,
            num_segments_before=len(work.context.segments),
            num_asides_before=len(work.context.asides),
            asides=asides,
            policy_state={"count": len(work.context.segments) + 1},
            finish_reason=FINISH_REASON.get(outcome),
        )

    @staticmethod
    def segment(hand: Hand, work: ClaimedSample, index: int) -> WrittenSegment:
        """The index-th that a worker writes under one claim."""
        num_tokens = 2 + work.epoch % 2
        return WrittenSegment(
            author=Author(hand.role.value), trigger="start", piece=letters(num_tokens), num_kept=2,
            finish=SegmentFinish.WATCH, tokens_generated=num_tokens, vocabulary_sha256="v",
            takes_over=hand.role is ModelRole.LARGE and index == 0,
        )  # fmt: skip

    @staticmethod
    def aside(hand: Hand, work: ClaimedSample) -> WrittenAside:
        return WrittenAside(
            author=Author(hand.role.value), aside_index=len(work.context.asides), purpose="rate",
            after_segment=len(work.context.segments), piece=letters(1), finish=SegmentFinish.LENGTH,
            tokens_generated=1, labels={"yes": -0.5, "no": None}, top=(-0.5,), vocabulary_sha256="v",
        )  # fmt: skip

    def committing(self, hand: Hand, group: list[SampleCommit]) -> Op:
        worker = hand.worker_id
        self.sent.append((worker, group))

        def learn(answer: Committed) -> None:
            hand.drop(dict(commit.claim for commit in group))
            self.publish(answer.samples)

        return self.commit(worker, group, learn)

    def commit(self, worker: int, group: list[SampleCommit], learn: Callable[[Committed], None]) -> Op:
        modelled_group = [modelled(worker, commit) for commit in group]
        return Op(
            f"worker {worker} commits {[(one.sample_id, one.epoch, one.to_state.value) for one in group]}",
            lambda c: commits.commit_samples(c, worker_id=worker, engine_id=self.engine_id, commits=group),
            lambda model: model.commit(worker, modelled_group),
            learn,
            lambda answer: (answer.claims, see_runnables(answer.samples)),
        )

    def committing_again(self, which: int, more: int, _: int) -> Op | None:
        if not self.sent:
            return None
        worker, group = self.sent[-1 - (which + 8 * more) % len(self.sent)]
        return self.commit(worker, group, lambda answer: self.publish(answer.samples))

    def releasing(self, who: int, which: int, how_many: int) -> Op | None:
        hand = self.hand_at_work(who)
        return None if hand is None else self.releasing_of(hand, self._some(hand, which, how_many))

    def releasing_of(self, hand: Hand, epochs: dict[int, int]) -> Op:
        worker = hand.worker_id

        def learn(answer: list[Runnable]) -> None:
            hand.drop(epochs)
            self.publish(answer)

        return Op(
            f"worker {worker} releases {epochs}",
            lambda c: claims.release_samples(c, worker_id=worker, epochs=epochs),
            lambda model: model.release(worker, epochs),
            learn,
            see_runnables,
        )

    def deferring(self, who: int, which: int, how_many: int) -> Op | None:
        hand = self.hand_at_work(who)
        if hand is None:
            return None
        worker, epochs = hand.worker_id, self._some(hand, which, how_many)

        def run(connection: Connection) -> None:
            claims.defer_samples(
                connection, worker_id=worker, epochs=epochs, error="busy", max_attempts=pm.LATEST_ATTEMPT
            )
            connection.execute(STRETCH, {"ids": list(epochs), "delay": dt.timedelta(seconds=DELAY_S)})

        return Op(
            f"worker {worker} defers {epochs}",
            run,
            lambda model: model.defer(worker, epochs, DELAY_S),
            lambda _: hand.drop(epochs),
        )

    @staticmethod
    def _some(hand: Hand, which: int, how_many: int) -> dict[int, int]:
        epochs = list(hand.epochs.items())
        return dict(epochs if how_many % 2 else epochs[which % len(epochs) :][:1])

    def beating(self, who: int, *_: int) -> Op | None:
        hand = self.hand(who)
        return None if hand is None else self.heartbeat(hand)

    def heartbeat(self, hand: Hand) -> Op:
        """Renew, drop what was taken away, and hand back what nobody here knows of: a claim whose answer was lost."""
        worker = hand.worker_id
        known = hand.epochs

        def strays(held: dict[int, int]) -> dict[int, int]:
            return {sample: epoch for sample, epoch in held.items() if known.get(sample) != epoch}

        def run(connection: Connection) -> tuple[dict[int, int], list[Runnable]]:
            worker_leases.renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters())
            held = claims.held_epochs(connection, worker)
            return held, claims.release_samples(connection, worker_id=worker, epochs=strays(held))

        def predict(model: Model) -> Any:
            if model.renew(worker) == LOST:
                return LOST
            held = model.held_by(worker)
            return held, model.release(worker, strays(held))

        def learn(answer: Any) -> None:
            if answer == LOST:
                hand.works.clear()
                hand.worker_id = self.register(hand.role, hand.model)
                return
            held, released = answer
            hand.drop({sample: epoch for sample, epoch in hand.epochs.items() if held.get(sample) != epoch})
            self.publish(released)

        return Op(f"worker {worker} renews", run, predict, learn, lambda answer: (answer[0], see_runnables(answer[1])))

    def ending(self, who: int, why: int, _: int) -> Op | None:
        hand = self.hand(who)
        return None if hand is None else self.ending_of(hand, REASONS[why % len(REASONS)])

    def ending_of(self, hand: Hand, reason: WorkerEnd) -> Op:
        worker = hand.worker_id

        def learn(_: None) -> None:
            if hand in self.hands:
                self.hands.remove(hand)

        return Op(
            f"worker {worker} ends, {reason.value}",
            lambda c: worker_leases.end_worker(c, worker, WorkerCounters(), reason=reason),
            lambda model: model.end(worker, reason.value),
            learn,
        )

    # upkeep

    def settling(self, _: int = 0, awake: int = 0, __: int = 0) -> Op:
        awake_s = 10 * MINUTE if awake == 7 else 24 * 60 * MINUTE
        return Op(
            "upkeep settles",
            lambda c: settle_lapsed(c, awake_for=dt.timedelta(seconds=awake_s)),
            lambda model: model.settle(awake_s),
            self.learn_settled,
            see_settled,
        )

    def learn_settled(self, answer: upkeep_statements.Settled | None) -> None:
        if answer is not None:
            self.publish(answer.samples)

    def lapsing(self, who: int, *_: int) -> Op | None:
        """A worker's lease runs out unseen, and upkeep settles it."""
        hand = self.hand(who)
        if hand is None:
            return None
        worker = hand.worker_id

        def run(connection: Connection) -> upkeep_statements.Settled | None:
            connection.execute(SILENT, {"worker": worker, "time": dt.timedelta(seconds=LONG)})
            return settle_lapsed(connection)

        def predict(model: Model) -> Any:
            if model.workers[worker].ended is None:
                model.workers[worker].renewed -= LONG
                model.workers[worker].expires -= LONG
            return model.settle(24 * 60 * MINUTE)

        return Op(f"worker {worker} lapses and is settled", run, predict, self.learn_settled, see_settled)

    def admitting(self, *_: int) -> Op:
        return Op(
            "upkeep admits",
            lambda c: upkeep_statements.admit_samples(c, ahead=1.0),
            lambda model: model.admit(),
            self.publish,
            see_runnables,
        )

    def publishing_again(self, *_: int) -> Op:
        return Op(
            "upkeep publishes again",
            lambda c: sorted(
                upkeep_statements.overdue_samples(c, age=AGE, longest_delay=LONGEST_DELAY), key=lambda s: s.sample_id
            ),
            lambda model: model.overdue(),
            self.publish,
            see_runnables,
        )

    def trying_suspects(self, *_: int) -> Op:
        return Op(
            "upkeep tries suspects",
            lambda c: sorted(
                upkeep_statements.suspects_to_try(c, age=AGE, longest_delay=LONGEST_DELAY), key=lambda s: s.sample_id
            ),
            lambda model: model.try_suspects(),
            self.post.publish_alone,
            see_runnables,
        )

    def halting(self, *_: int) -> Op:
        return Op("upkeep halts", upkeep_statements.halt_paused_jobs, lambda model: model.halt())

    def closing(self, *_: int) -> Op:
        return Op(
            "upkeep closes",
            upkeep_statements.close_jobs,
            lambda model: model.close(),
            see=lambda answer: {job: state.value for job, state in answer.items()},
        )

    def cancelling_leftovers(self, *_: int) -> Op:
        return Op("upkeep goes on cancelling", control.cancel_leftovers, lambda model: model.cancel_leftovers())

    def reaping_grades(self, *_: int) -> Op:
        return Op(
            "upkeep reaps grades",
            lambda c: time_out_late(c, age=AGE, tries=pm.GRADING_TRIES),
            lambda model: model.time_out_grades(),
            see=frozenset,
        )

    # people

    def job(self, which: int) -> int:
        return list(self.model.jobs)[which % len(self.model.jobs)]

    def cancelling(self, which: int, *how: int) -> Op | None:
        """Seldom: it leaves little to do."""
        if sum(how) % 4:
            return None
        job = self.job(which)
        return Op(
            f"cancel job {job}", lambda c: control.cancel_job(c, job), lambda model: model.cancel_job(job), job=job
        )

    def cancelling_samples(self, which: int, how_many: int, _: int) -> Op:
        job, limit = self.job(which), 2 if how_many % 2 else control.BATCH
        return Op(
            f"cancel {limit} samples of job {job}",
            lambda c: control.cancel_samples(c, job, limit=limit),
            lambda model: model.cancel_samples(job, limit),
        )

    def pausing(self, which: int, *_: int) -> Op:
        job = self.job(which)
        return Op(f"pause job {job}", lambda c: control.pause_job(c, job), lambda model: model.pause_job(job), job=job)

    def releasing_job(self, which: int, *_: int) -> Op:
        job = self.job(which)
        return Op(
            f"release the samples of job {job}",
            lambda c: control.release_job_samples(c, job),
            lambda model: model.release_job(job),
        )

    def resuming(self, which: int, *_: int) -> Op:
        job = self.job(which)
        return Op(
            f"resume job {job}", lambda c: control.resume_job(c, job), lambda model: model.resume_job(job), job=job
        )

    def retrying_failed(self, which: int, *_: int) -> Op:
        job = self.job(which)
        return Op(
            f"retry what failed of job {job}",
            lambda c: control.retry_failed(c, job, control.select_failed(c, job)),
            lambda model: model.retry_failed(job, list(model.samples)),
            job=job,
        )

    def retrying_cut(self, which: int, more: int, _: int) -> Op:
        job, max_tokens = self.job(which), MAX_TOKENS + 1 + more
        return Op(
            f"retry what was cut of job {job}",
            lambda c: control.retry_cut(
                c, job, control.select_cut(c, job, max_tokens=max_tokens), max_tokens=max_tokens
            ),
            lambda model: model.retry_cut(job, list(model.samples), max_tokens),
            job=job,
        )

    def ranking(self, which: int, priority: int, _: int) -> Op:
        job, priority = self.job(which), priority % 3
        return Op(
            f"give job {job} priority {priority}",
            lambda c: control.set_priority(c, job, priority),
            lambda model: model.set_priority(job, priority),
            job=job,
        )

    # graders

    def grading(self, which: int, how: int, _: int) -> Op | None:
        """A grader that has read a text begins, or ends, or both; the text may be another one meanwhile."""
        for sample in self.model.samples.values():
            if sample.state in ("finished", "graded"):
                self.readings[sample.id, sample.epoch] = None
        if not self.readings:
            return None
        reading = list(self.readings)[-1 - which % len(self.readings)]
        if how % 8 == 7:
            return self.grading_at_once(*reading)
        return self.grading_of(*reading, begins=how % 4 != 0, ends=how % 4 != 1)

    def grading_of(self, sample: int, epoch: int, *, begins: bool = True, ends: bool = True) -> Op:
        key: dict[str, Any] = {"sample_id": sample, "epoch": epoch, "grader": GRADER, "version": VERSION}
        score = float(epoch)

        def run(connection: Connection) -> tuple[bool, bool]:
            begun = begins and begin_grade(connection, **key, patience=AGE)
            ended = ends and end_grade(
                connection, **key, status=GradeStatus.DONE, score=score, predicted_answer=None, detail=None
            )
            return begun, ended

        def predict(model: Model) -> tuple[bool, bool]:
            begun = begins and model.begin_grade(sample, epoch)
            return begun, ends and model.end_grade(sample, epoch, score)

        return Op(f"{'begin' * begins} {'end' * ends} grading of {sample} at {epoch}", run, predict)

    def grading_at_once(self, sample: int, epoch: int) -> Op:
        score = float(epoch)
        grades = [TextGrade(sample, epoch, GradeStatus.DONE, score, None, None)]
        return Op(
            f"grading at once of {sample} at {epoch}",
            lambda connection: store_grades(connection, grades, grader=GRADER, version=VERSION) == {sample},
            lambda model: model.store_grade(sample, epoch, score),
        )

    # time

    def passing(self, time_s: float) -> Op:
        def run(connection: Connection) -> None:
            values = {"time": dt.timedelta(seconds=time_s), "jobs": list(self.model.jobs)}
            for statement in PASS:
                connection.execute(statement, values | {"workers": list(self.model.workers)})

        def predict(model: Model) -> None:
            model.now += time_s

        return Op(f"{time_s / MINUTE:.0f} minutes pass", run, predict)

    # -- setting up, and longer deeds ----------------------------------------------------------------------------------

    def start(self, role: ModelRole, model: str) -> Hand:
        hand = Hand(self.register(role, model), role, model)
        self.hands.append(hand)
        return hand

    def register(self, role: ModelRole, model: str) -> int:
        queue = f"{role.value}.{model}.{len(self.model.workers)}"
        registration = Registration(
            kind=WorkerKind(role.value), model=model, engine_id=self.engine_id, host="here", pid=1, queue=queue,
            max_in_flight=SLOTS, ttl=TTL,
        )  # fmt: skip
        with self.db_engine.begin() as connection:
            worker = worker_leases.register_worker(connection, registration)
        now = self.model.now
        self.model.register(pm.Worker(worker, role.value, model, queue, SLOTS, renewed=now, expires=now + TTL_S))
        return worker

    def submit(self, num_samples: int, large: str, first_role: str) -> None:
        problems = (Problem(external_id="1", prompt="What is 1+1?", answer="2"),)
        config = JobConfig(
            small=ModelSpec(name=SMALL), large=ModelSpec(name=large), judge=ModelSpec(name=JUDGE),
            num_samples=num_samples,
            policy=parse_policy("speculative-thinking:improved"), sampling=SamplingSpec(max_tokens=MAX_TOKENS),
        )  # fmt: skip
        with self.db_engine.begin() as connection:
            problem_set = ProblemSet(name="sums", content_sha256=content_sha256(problems), problems=problems)
            job = insert_job(
                connection, name="a job", policy="speculative-thinking:improved", num_problems=1, config=config,
                problem_set_id=put_problem_set(connection, problem_set), first_role=ModelRole(first_role), versions={},
            )  # fmt: skip
            samples = connection.execute(text("SELECT id FROM samples WHERE job_id = :job"), {"job": job}).scalars()
            self.model.samples.update((sample, pm.Sample(sample, job)) for sample in samples)
        self.model.jobs[job] = pm.Job(job, SMALL, large, first_role, MAX_TOKENS, judge=JUDGE)

    def finish_works(self) -> None:
        for hand in self.hands:
            self.write_all(hand, "finish")

    def write_all(self, hand: Hand, *outcomes: str) -> None:
        if hand.works:
            pairs = zip(hand.works.values(), itertools.cycle(outcomes), strict=False)
            self.do(self.committing(hand, [self.made_of(hand, *pair) for pair in pairs]))

    def grade_all(self, *, begins: bool = True, ends: bool = True) -> None:
        for sample in list(self.model.samples.values()):
            if sample.state == "finished":
                self.do(self.grading_of(sample.id, sample.epoch, begins=begins, ends=ends))

    def clear(self) -> None:
        self.eye.close()
        with self.db_engine.begin() as connection:
            for statement in CLEAR:
                connection.execute(statement)


def letters(num_tokens: int) -> Piece:
    return Piece(token_ids=tuple(range(num_tokens)), texts=("x",) * num_tokens)


def modelled(worker: int, commit: SampleCommit) -> Written:
    """A commit as the model knows it."""
    return Written(
        sample=commit.sample_id,
        epoch=commit.epoch,
        to_state=commit.to_state.value,
        segments=tuple(
            Segment(commit.epoch, worker, g.author.value, g.num_kept, len(g.piece) - g.num_kept)
            for g in commit.segments
        ),
        asides=tuple(Aside(commit.epoch, worker, a.author.value, len(a.piece), a.after_segment) for a in commit.asides),
        segments_before=commit.num_segments_before,
        asides_before=commit.num_asides_before,
        runnable=None,  # real times are not the model's
        num_takeovers=sum(g.takes_over for g in commit.segments),
        count=commit.policy_state["count"] if commit.policy_state else 0,
        finish_reason=commit.finish_reason,
        error_class=commit.error_class,
    )
