"""Everything that the protocol lives in, as one value: the database, the broker, the processes, and a snapshot.

The database is protocol_model's: the oracle that the statements on Postgres are compared with. Here are the processes
around it, which remember what the database may have forgotten, and whatever may happen between two transactions. One
move is one transaction of somebody, or one fault. ``moves`` names what may come next in a state, ``apply`` does it.

A state is a tuple that can be hashed; ``protocol_normal_form`` makes one of all that are alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.integration.protocol_model import (
    EARLIEST,
    LOST,
    WAITS_FOR,
    Aside,
    Base,
    Job,
    Model,
    Part,
    Sample,
    Segment,
    Worker,
    Written,
)

NOBODY = -1
JOB = 0
ENDED = frozenset({"finished", "graded", "failed", "cancelled"})
"""Nobody writes any more. Grades are no part of this."""
ROLE_OF = {state: role for role, state in WAITS_FOR.items()}
FOR_EVER = 1e9

# A state, from the small to the whole. Tuples, because they are hashed by the million.

Record = tuple[int, float, tuple[Base, Base]]
"""A segment or an aside: the epoch and the time of its commit, and what its writer went on from."""
PartRecord = tuple[int, float, tuple[Base, Base, Base]]
"""The same of a part of the open segment: its writer went on from earlier parts, too."""
NO_TRIAL, WAITS, ALONE = range(3)
"""How far a process is with a sample that must be alone: it waits for the rest to end, or is written."""


class Row(NamedTuple):
    """A sample as the database has it."""

    state: str
    epoch: int
    holder: int
    is_old: bool
    """It was published long ago."""
    since: float
    """It waits, or waited until its claim."""
    num_rescues: int
    commits: int
    """Commits: the policy's state."""
    error: str
    segments: tuple[Record, ...]
    asides: tuple[Record, ...]
    is_tried: bool = False
    """Held, and its worker has noted that it has nothing else."""
    parts: tuple[PartRecord, ...] = ()


class Work(NamedTuple):
    """A claim as its process remembers it: what it will commit, at any later time."""

    hand: int
    worker: int
    epoch: int
    since: float
    commits: int
    segments: Base
    asides: Base
    trial: int = NO_TRIAL
    parts: Base = ()
    """Of the segment that is being written: those that it began with, and its own."""
    is_replaced: bool = False
    """Its process has claimed the sample again since, and carries on no part of this. Told where there are parts."""


class Place(NamedTuple):
    """One sample, wherever something of it is."""

    kills: bool
    row: Row
    messages: tuple[int, ...]
    """The epochs that messages in the broker name. Whatever is there may be delivered, again and again."""
    works: tuple[Work, ...]
    caches: tuple[tuple[Base, Base], ...]
    """What each process remembers of its text."""
    kept: Row | tuple[()]
    """In the snapshot."""


class Life(NamedTuple):
    """A worker's row."""

    worker: int
    kind: str
    ended: str
    renewed: float


class Hand(NamedTuple):
    """A process as it knows itself. worker: NOBODY while it does not run."""

    worker: int
    token: float
    """What its last heartbeat returned, or -1."""


class Whole(NamedTuple):
    now: float
    """0, 1 after the snapshot, 2 after the restore: finer times tell nothing apart that epochs do not."""
    faults: int
    """That may still happen."""
    restore: str
    """no, kept, done"""
    is_cancelled: bool
    lives: tuple[Life, ...]
    kept_lives: tuple[Life, ...]
    kept_cancelled: bool
    hands: tuple[Hand, ...]
    sequence: int
    kept_sequence: int


class State(NamedTuple):
    whole: Whole
    places: tuple[Place, ...]


class Move(NamedTuple):
    name: str
    args: tuple[int, ...]
    is_fault: bool
    """Faults may never happen; whatever else can go on does, in the end."""

    def __str__(self) -> str:
        return f"{self.name}{self.args}"


class Turn(NamedTuple):
    """What one claim writes, and the state it leads to."""

    to_state: str
    num_segments: int
    num_asides: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A small pipeline, and how much may happen to it."""

    kinds: tuple[str, ...]
    """Of its processes."""
    num_samples: int
    turns: tuple[Turn, ...]
    num_killers: int = 0
    """Samples that take the engine, or the whole process, with them."""
    faults: int
    """Most that happen in one history."""
    which: frozenset[str]
    """The faults that may happen."""
    may_restore: bool = False
    max_parts: int = 0
    """Of one segment."""
    never: frozenset[str] = frozenset()
    """Moves that are left out, so that a history which is looked for is found sooner."""


class Rules:
    """The protocol as it is. A mutation overrides one of these."""

    model: type[Model] = Model
    draws_ids = True
    """Two histories give no life the same id."""

    def is_cache_true(self, cached: Base, stored: Base) -> bool:
        """Whether what is remembered is what is stored, by its last record."""
        return not cached or stored[len(cached) - 1 : len(cached)] == cached[-1:]


class World:
    """A state taken apart, in which one move is made."""

    def __init__(self, state: State, scene: Scene, rules: Rules) -> None:
        self.scene, self.rules = scene, rules
        whole, places = state
        self.faults, self.restore_is = whole.faults, whole.restore
        self.hands = list(whole.hands)
        self.kept_lives, self.kept_cancelled = whole.kept_lives, whole.kept_cancelled
        self.sequence, self.kept_sequence = whole.sequence, whole.kept_sequence
        self.kills = [place.kills for place in places]
        self.messages = [set(place.messages) for place in places]
        self.works = [list(place.works) for place in places]
        self.caches = [list(place.caches) for place in places]
        self.kept = [place.kept for place in places]
        self.model = rules.model(now=whole.now)
        self._put(whole.lives, whole.is_cancelled, [place.row for place in places])

    def _put(self, lives: Iterable[Life], is_cancelled: bool, rows: Iterable[Row]) -> None:
        """Make the database say this."""
        model = self.model
        model.jobs = {JOB: Job(JOB, "S", "L", "small", 100, "cancelled" if is_cancelled else "running")}
        model.workers = {
            life.worker: Worker(
                life.worker, life.kind, _model_of(life.kind), "", 1, life.renewed, FOR_EVER, life.ended or None
            )
            for life in lives
        }
        model.samples = {index: self._sample(index, row) for index, row in enumerate(rows)}

    def _sample(self, index: int, row: Row) -> Sample:
        return Sample(
            index, JOB, row.state, row.epoch, None if row.holder == NOBODY else row.holder,
            published=EARLIEST if row.is_old else self.model.now, runnable=row.since, num_rescues=row.num_rescues,
            count=row.commits, error_class=row.error or None,
            segments=[Segment(epoch, NOBODY, "", 1, 1, at, base) for epoch, at, base in row.segments],
            asides=[Aside(epoch, NOBODY, "", 1, 0, at, base) for epoch, at, base in row.asides],
            parts=[
                Part(epoch, NOBODY, len(row.segments), index, 1, at=at, base=base)
                for index, (epoch, at, base) in enumerate(row.parts)
            ],
            trial_epoch=row.epoch if row.is_tried else None,
        )  # fmt: skip

    # -- what somebody does ------------------------------------------------------------------------------------------

    def claim(self, hand: int, sample: int, epoch: int) -> None:
        """A message is delivered, and its sample claimed."""
        self._claim(hand, sample, epoch, is_answered=True)

    def claim_unanswered(self, hand: int, sample: int, epoch: int) -> None:
        """As ``claim``, but the process never hears that it has the sample."""
        self._claim(hand, sample, epoch, is_answered=False)

    def _claim(self, hand: int, sample: int, epoch: int, *, is_answered: bool) -> None:
        worker = self.hands[hand].worker
        taken = self.model.claim(worker, {sample: epoch}, JOB)
        if sample in taken and is_answered:
            s = self.model.samples[sample]
            text = self._load(self.caches[sample][hand], identities(s.segments), identities(s.asides))
            self.caches[sample][hand] = text
            if self.scene.max_parts:
                self.works[sample] = [
                    old._replace(is_replaced=True) if old.hand == hand else old for old in self.works[sample]
                ]
            trial = WAITS if s.must_be_alone else NO_TRIAL
            work = Work(hand, worker, s.epoch, s.runnable, s.count or 0, *text, trial, identities(s.parts))
            self.works[sample].append(work)

    def _load(self, cached: tuple[Base, Base], segments: Base, asides: Base) -> tuple[Base, Base]:
        """The remembered text, and what is stored after it; all of it from the database where the two do not fit."""
        if not (self.rules.is_cache_true(cached[0], segments) and self.rules.is_cache_true(cached[1], asides)):
            return segments, asides
        return _continued(cached[0], segments), _continued(cached[1], asides)

    def begin_trial(self, sample: int, work: int) -> None:
        """A process has nothing else any more: the sample that must be alone is noted, and goes to the engine."""
        waiting = self.works[sample][work]
        begun = self.model.begin_trial(self.hands[waiting.hand].worker, sample, waiting.epoch)
        if begun == LOST:
            self.works[sample].remove(waiting)
        elif begun:
            self.works[sample][work] = waiting._replace(trial=ALONE)

    def store_part(self, sample: int, work: int) -> None:
        """A heartbeat stores what is written of a segment so far."""
        writing = self.works[sample][work]
        base = writing.segments, writing.asides, writing.parts
        worker, now = self.hands[writing.hand].worker, self.model.now
        part = Part(writing.epoch, worker, len(base[0]), len(base[2]), 1, writing.since, base=base)
        if self.model.store_part(sample, part):
            parts = (*writing.parts, (writing.epoch, now))
            self.works[sample][work] = writing._replace(parts=parts, trial=NO_TRIAL)

    def commit(self, sample: int, work: int, worker: int) -> None:
        self._commit(sample, work, worker, is_answered=True)

    def commit_unanswered(self, sample: int, work: int, worker: int) -> None:
        """As ``commit``, but the answer is lost: the process will send the same again, and tells nobody."""
        self._commit(sample, work, worker, is_answered=False)

    def fail(self, sample: int, work: int, worker: int) -> None:
        """The process finds that its text cannot be gone on with."""
        self._commit(sample, work, worker, is_answered=True, fails=True)

    def _commit(self, sample: int, work: int, worker: int, *, is_answered: bool, fails: bool = False) -> None:
        done = self.works[sample][work]
        s = self.model.samples[sample]
        is_own = (identities(s.segments), identities(s.asides)) == (done.segments, done.asides)
        written = self._written(sample, done, fails=fails, error="internal" if is_own else "another text's")
        stored, told = self.model.commit(worker, [written])
        if is_answered:
            self.works[sample].remove(done)
            self._publish(told)
            if stored and s.state in ENDED:
                self.caches[sample][done.hand] = ((), ())

    def _written(self, sample: int, work: Work, *, fails: bool, error: str) -> Written:
        turn = self.scene.turns[min(work.commits, len(self.scene.turns) - 1)]
        base = work.segments, work.asides
        segments = tuple(Segment(work.epoch, NOBODY, "", 1, 1, base=base) for _ in range(turn.num_segments))
        asides = tuple(Aside(work.epoch, NOBODY, "", 1, 0, base=base) for _ in range(turn.num_asides))
        return Written(
            sample, work.epoch, "failed" if fails else turn.to_state, () if fails else segments,
            () if fails else asides, None if fails else len(work.segments), None if fails else len(work.asides),
            work.since, num_takeovers=0, count=work.commits + 1, finish_reason=None,
            error_class=error if fails else None,
        )  # fmt: skip

    def release(self, sample: int, work: int) -> None:
        """A process stops, or refuses the job: it hands the sample back."""
        done = self.works[sample].pop(work)
        self._publish(self.model.release(done.worker, {sample: done.epoch}))

    def renew(self, hand: int) -> None:
        """A heartbeat. A process whose life is over begins another; what is on its way to the database still is."""
        worker, token = self.hands[hand]
        if self.model.renew(worker, None if token < 0 else token) == LOST:
            self._register(hand)
            return
        self.hands[hand] = Hand(worker, self.model.now)
        known = {(sample, work.epoch) for sample, works in enumerate(self.works) for work in works if work.hand == hand}
        strays = {sample: epoch for sample, epoch in self.model.held_by(worker).items() if (sample, epoch) not in known}
        self._publish(self.model.release(worker, strays))

    def start(self, hand: int) -> None:
        """A process starts."""
        self._register(hand)

    def _register(self, hand: int) -> None:
        self.sequence += 1
        worker = self._unused() if self.rules.draws_ids else self.sequence
        kind = self.scene.kinds[hand]
        self.model.register(Worker(worker, kind, _model_of(kind), "", 1, self.model.now, FOR_EVER))
        self.hands[hand] = Hand(worker, -1)

    def _unused(self) -> int:
        """An id that no life has in any history."""
        held = (s.holder or NOBODY for s in self.model.samples.values())
        kept = (row.holder for row in self.kept if row)
        theirs = (work.worker for works in self.works for work in works)
        lives = (*self.model.workers, *(life.worker for life in self.kept_lives), *(hand.worker for hand in self.hands))
        return 1 + max((*held, *kept, *theirs, *lives))

    def kill(self, hand: int) -> None:
        """A process ends without a word: its lease will run out."""
        self.hands[hand] = Hand(NOBODY, -1)
        for sample, works in enumerate(self.works):
            self.works[sample] = [work for work in works if work.hand != hand]
            self.caches[sample][hand] = ((), ())

    def die(self, hand: int) -> None:
        """A process says that its engine died, and ends."""
        self.model.end(self.hands[hand].worker, "engine_died")
        self.kill(hand)

    # -- upkeep, whoever leads: it remembers nothing between two transactions ------------------------------------------

    def lapse(self, worker: int) -> None:
        """A lease runs out, and upkeep settles."""
        self.model.workers[worker].expires = EARLIEST
        self.settle()

    def settle(self) -> None:
        settled = self.model.settle(float("inf"))
        if settled is not None:
            self._publish(settled[3])

    def publish_again(self) -> None:
        """Time passes, and upkeep publishes what waits since then; suspects one by one."""
        for s in self.model.samples.values():
            s.published = EARLIEST
        for told in (self.model.overdue(), self.model.try_suspects()):
            self._publish(told, alone=True)

    def cancel_samples(self) -> None:
        self.model.cancel_samples(JOB, len(self.model.samples))

    def _publish(self, told: Iterable[tuple[int, int, str, str | None, bool, bool]], *, alone: bool = False) -> None:
        for sample, epoch, state, _, _, is_suspect in told:
            if state in ROLE_OF and (alone or not is_suspect):
                self.messages[sample].add(epoch)

    # -- people, and fate --------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        self.model.cancel_job(JOB)

    def lose(self, sample: int) -> None:
        """The broker loses what it has of a sample."""
        self.messages[sample].clear()

    def snapshot(self) -> None:
        """The moment that the database will be restored to."""
        self.kept = [self._row(s) for s in self.model.samples.values()]
        self.kept_lives, self.kept_cancelled = self._lives(), self._is_cancelled()
        self.kept_sequence = self.sequence
        self.restore_is = "kept"
        self.model.now += 1

    def restore(self) -> None:
        """The database is as it was then; nothing else is."""
        self.model.now += 1
        self._put(self.kept_lives, self.kept_cancelled, [row for row in self.kept if row])
        self.sequence = self.kept_sequence
        self.kept, self.kept_lives, self.kept_cancelled = [() for _ in self.kept], (), False
        self.restore_is = "done"

    # -- back to a value ---------------------------------------------------------------------------------------------

    def _row(self, s: Sample) -> Row:
        return Row(
            s.state, s.epoch, NOBODY if s.holder is None else s.holder, s.published == EARLIEST and s.is_suspect,
            s.runnable, s.num_rescues, s.count or 0, s.error_class or "",
            tuple((g.epoch, g.at, g.base) for g in s.segments), tuple((a.epoch, a.at, a.base) for a in s.asides),
            s.holder is not None and s.trial_epoch == s.epoch, tuple((p.epoch, p.at, p.base) for p in s.parts),
        )  # fmt: skip

    def _lives(self) -> tuple[Life, ...]:
        """Without those that are settled: a life that is over is as unknown as one that never was."""
        return tuple(
            Life(w.id, w.kind, w.ended or "", w.renewed) for _, w in sorted(self.model.workers.items()) if not w.settled
        )

    def _is_cancelled(self) -> bool:
        return self.model.jobs[JOB].state == "cancelled"

    def rows(self) -> list[Row]:
        return [self._row(s) for s in self.model.samples.values()]

    def value(self) -> State:
        """The state that has come about."""
        places = [
            Place(kills, row, tuple(sorted(messages)), tuple(sorted(works)), tuple(caches), kept)
            for kills, row, messages, works, caches, kept in zip(
                self.kills, self.rows(), self.messages, self.works, self.caches, self.kept, strict=True
            )
        ]
        whole = Whole(
            self.model.now, self.faults, self.restore_is, self._is_cancelled(), self._lives(), self.kept_lives,
            self.kept_cancelled, tuple(self.hands), self.sequence, self.kept_sequence,
        )  # fmt: skip
        return State(whole, tuple(places))


def _model_of(kind: str) -> str:
    return {"small": "S", "large": "L", "judge": "J"}[kind]


def _continued(cached: Base, stored: Base) -> Base:
    return cached[:-1] + stored[max(0, len(cached) - 1) :]


def identities(records: Iterable[Segment] | Iterable[Aside] | Iterable[Part]) -> Base:
    return tuple((record.epoch, record.at) for record in records)


def heads(records: tuple[Record, ...] | tuple[PartRecord, ...]) -> Base:
    return tuple((epoch, at) for epoch, at, _ in records)


# -- what may come next ------------------------------------------------------------------------------------------------


def beginning(scene: Scene, rules: Rules) -> State:
    """All processes run and have renewed their leases, all samples wait and are published."""
    row = Row(WAITS_FOR[scene.kinds[0]], 0, NOBODY, False, 0.0, 0, 0, "", (), ())
    empty: tuple[Base, Base] = ((), ())
    places = [
        Place(index < scene.num_killers, row, (0,), (), (empty,) * len(scene.kinds), ())
        for index in range(scene.num_samples)
    ]
    lives = tuple(Life(worker, kind, "", 0.0) for worker, kind in enumerate(scene.kinds))
    hands = tuple(Hand(worker, 0.0) for worker in range(len(scene.kinds)))
    number = 0 if rules.draws_ids else len(hands) - 1
    whole = Whole(0.0, scene.faults, "no", False, lives, (), False, hands, number, 0)
    return State(whole, tuple(places))


def moves(state: State, scene: Scene) -> Iterator[Move]:
    """All that may happen next. Some of it changes nothing."""
    return (move for move in _moves(state, scene) if move.name not in scene.never)


def _moves(state: State, scene: Scene) -> Iterator[Move]:
    faults = scene.which if state.whole.faults else frozenset[str]()
    yield from _moves_of_samples(state, scene, faults)
    yield from _moves_of_processes(state, scene, faults)
    if any(life.ended for life in state.whole.lives):
        yield Move("settle", (), False)
    yield Move("publish_again", (), False)
    if state.whole.is_cancelled:
        yield Move("cancel_samples", (), False)
    elif "cancel" in faults:
        yield Move("cancel", (), True)
    if scene.may_restore and state.whole.restore == "no":
        yield Move("snapshot", (), True)
    elif state.whole.restore == "kept":
        yield Move("restore", (), True)


def _moves_of_samples(state: State, scene: Scene, faults: frozenset[str]) -> Iterator[Move]:
    numbers = [_num_works(state, hand) for hand in range(len(scene.kinds))]
    trials = {work.hand for place in state.places for work in place.works if work.trial}
    for sample, place in enumerate(state.places):
        role = ROLE_OF.get(place.row.state)
        for epoch in place.messages if role else ():
            for hand, process in enumerate(state.whole.hands):
                if process.worker != NOBODY and scene.kinds[hand] == role and hand not in trials:
                    yield Move("claim", (hand, sample, epoch), False)
                    if "claim_unanswered" in faults:
                        yield Move("claim_unanswered", (hand, sample, epoch), True)
        for index, work in enumerate(place.works):
            if work.trial == WAITS and numbers[work.hand] == 1:
                yield Move("begin_trial", (sample, index), False)
            elif work.hand in trials and not work.trial:
                yield Move("release", (sample, index), False)
            process = state.whole.hands[work.hand]
            yield from _moves_of_work(process, sample, index, work, place, faults, max_parts=scene.max_parts)
        if place.messages and "lose" in faults:
            yield Move("lose", (sample,), True)


def _num_works(state: State, hand: int) -> int:
    return sum(work.hand == hand for place in state.places for work in place.works)


def _moves_of_work(
    process: Hand, sample: int, index: int, work: Work, place: Place, faults: frozenset[str], *, max_parts: int
) -> Iterator[Move]:
    """What becomes of a claim. A sample that kills never comes to a commit."""
    if "release" in faults:
        yield Move("release", (sample, index), True)
    if work.trial == WAITS:
        return
    if place.kills:
        yield Move("die", (work.hand,), False)
        if "kill" in faults:
            yield Move("kill", (work.hand,), True)
        return
    if len(work.parts) < max_parts and not (work.is_replaced and work.parts):
        yield Move("store_part", (sample, index), False)
    for worker in {work.worker, process.worker}:
        yield Move("commit", (sample, index, worker), False)
        for fault in faults & {"commit_unanswered", "fail"}:
            yield Move(fault, (sample, index, worker), True)


def _moves_of_processes(state: State, scene: Scene, faults: frozenset[str]) -> Iterator[Move]:
    running = {hand.worker for hand in state.whole.hands}
    for hand, process in enumerate(state.whole.hands):
        if process.worker == NOBODY:
            yield Move("start", (hand,), False)
            continue
        yield Move("renew", (hand,), False)
        for fault in faults & {"kill", "die"}:
            yield Move(fault, (hand,), True)
    for life in state.whole.lives:
        if not life.ended and (life.worker not in running or "lapse" in faults):
            yield Move("lapse", (life.worker,), life.worker in running)


def apply(state: State, move: Move, scene: Scene, rules: Rules) -> State:
    world = World(state, scene, rules)
    world.faults -= move.is_fault and move.name not in ("snapshot", "restore")
    getattr(world, move.name)(*move.args)
    return world.value()
