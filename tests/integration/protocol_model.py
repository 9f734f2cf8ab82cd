"""What the protocol's statements should do, in plain Python: the oracle of the state machine in test_protocol_machine.

One method per statement, with its arguments and what it should return. Time is virtual: ``now`` moves only when the
machine lets it, by steps so large that the real seconds of a test do not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.samples import ALONE_AFTER, GUILTY_AFTER_LAPSES, SUSPECT_AFTER

MINUTE = 60.0
TTL_S = 65 * MINUTE
AGE_S = 25 * MINUTE
"""How long a message may take before it is sent again."""
EARLIEST = float("-inf")

WAITS_FOR = {"small": "ready", "large": "awaiting_large", "judge": "awaiting_judge"}
HELD_BY = {"small": "drafting", "large": "assisting", "judge": "judging"}
RUNNABLE, HELD = tuple(WAITS_FOR.values()), tuple(HELD_BY.values())
ADMITTED = (*RUNNABLE, *HELD)
ROLE_OF_STATE = {state: role for states in (WAITS_FOR, HELD_BY) for role, state in states.items()}
FINAL = ("graded", "failed", "cancelled")
LATEST_ATTEMPT = 3
"""Transient failures after which a sample is set aside."""
GRADING_TRIES = 2
"""Gradings that were begun so often and never ended count as timed out."""
REFUSED = "refused"
"""A control that does not fit the job's state."""
LOST = "lost"
"""A lease that cannot be renewed any more."""


@dataclass(slots=True)
class Worker:
    id: int
    kind: str
    model: str
    queue: str
    slots: int
    renewed: float
    expires: float
    ended: str | None = None
    settled: bool = False
    withdrawn: int = 0


@dataclass(slots=True)
class Job:
    id: int
    small: str
    large: str
    first_role: str
    max_tokens: int
    state: str = "running"
    priority: int = 0
    events: list[tuple[str, str]] = field(default_factory=list)
    judge: str = "J"

    def model_of(self, role: str) -> str:
        return {"small": self.small, "large": self.large, "judge": self.judge}[role]

    def move(self, state: str) -> None:
        self.events.append((self.state, state))
        self.state = state


Base = tuple[tuple[int, float], ...]
"""What somebody went on from: the epoch and the time of the commit of each segment, or of each aside."""


@dataclass(frozen=True, slots=True)
class Segment:
    epoch: int
    worker: int
    author: str
    kept: int
    discarded: int
    at: float = 0.0
    """When it was committed."""
    base: tuple[Base, Base] = ((), ())
    """The segments and the asides that its writer had; only the exhaustive search says it."""


@dataclass(frozen=True, slots=True)
class Aside:
    epoch: int
    worker: int
    author: str
    tokens: int
    after_segment: int
    at: float = 0.0
    base: tuple[Base, Base] = ((), ())


@dataclass(frozen=True, slots=True)
class Part:
    epoch: int
    worker: int
    segment_index: int
    start: int
    tokens: int
    runnable: float | None = None
    """Since when the sample waited as it was claimed; None: however long."""
    at: float = 0.0
    base: tuple[Base, Base, Base] = ((), (), ())
    """The segments, the asides and the parts that its writer had; only the exhaustive search says it."""


@dataclass(frozen=True, slots=True)
class Written:
    """One commit, as far as the model cares: all that one claim wrote."""

    sample: int
    epoch: int
    to_state: str
    segments: tuple[Segment, ...]
    asides: tuple[Aside, ...]
    segments_before: int | None
    """How many it stands on; None: on whatever there is."""
    asides_before: int | None
    runnable: float | None
    """Since when the sample waited as it was claimed; None: however long."""
    num_takeovers: int
    count: int
    """Of the policy's state."""
    finish_reason: str | None
    error_class: str | None


@dataclass(slots=True)
class Sample:
    id: int
    job: int
    state: str = "pending"
    epoch: int = 0
    holder: int | None = None
    homes: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(WAITS_FOR))
    """By role the worker whose cache has its context."""
    published: float | None = None
    runnable: float = 0.0
    """Since when it waits for a worker, or waited."""
    num_rescues: int = 0
    trial_epoch: int | None = None
    num_attempts: int = 0
    not_before: float | None = None
    next_role: str | None = None
    max_tokens: int | None = None
    num_takeovers: int = 0
    count: int | None = None
    finish_reason: str | None = None
    error_class: str | None = None
    score: float | None = None
    segments: list[Segment] = field(default_factory=list)
    asides: list[Aside] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    events: list[tuple[str, str, int]] = field(default_factory=list)

    def move(self, state: str) -> None:
        if state != self.state:
            self.events.append((self.state, state, self.epoch))
            self.state = state

    def give_back(self, now: float) -> None:
        """To its last committed segment, under a new epoch."""
        self.epoch += 1
        self.runnable = now
        self.holder = None
        self.move(WAITS_FOR[self.role])

    def fail(self, error_class: str) -> None:
        self.holder = None
        self.move("failed")
        self.error_class = error_class

    @property
    def is_suspect(self) -> bool:
        return self.num_rescues >= SUSPECT_AFTER

    @property
    def part_tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def must_be_alone(self) -> bool:
        return self.num_rescues >= ALONE_AFTER

    @property
    def role(self) -> str:
        return ROLE_OF_STATE[self.state]

    def tokens(self, author: str, *, kept: bool) -> int:
        return sum((g.kept if kept else g.discarded) for g in self.segments if g.author == author)

    @property
    def writers(self) -> set[tuple[int, int]]:
        """The claims and workers under which something is stored."""
        return {(g.epoch, g.worker) for g in self.segments} | {(a.epoch, a.worker) for a in self.asides}

    def aside_tokens(self, author: str) -> int:
        return sum(a.tokens for a in self.asides if a.author == author)


@dataclass(slots=True)
class Grade:
    status: str = "running"
    started: float = EARLIEST
    tries: int = 0


Runnables = tuple[tuple[int, int, str, str | None, bool, bool], ...]
"""(sample, epoch, state, home queue, resumed, suspect), in the order of ids."""


@dataclass(slots=True)
class Model:
    """Everything the protocol's tables should say about the jobs and workers of one example."""

    now: float = 0.0
    workers: dict[int, Worker] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    samples: dict[int, Sample] = field(default_factory=dict)
    locked: frozenset[int] = frozenset()
    """Samples that another transaction holds: upkeep passes over them where it only publishes."""
    locked_jobs: frozenset[int | None] = frozenset()
    grading: dict[int, Grade] = field(default_factory=dict)
    """By sample: there is one grader."""

    # -- looking -----------------------------------------------------------------------------------------------------

    def of_job(self, job: int) -> Iterator[Sample]:
        return (sample for sample in self.samples.values() if sample.job == job)

    def held_by(self, worker: int) -> dict[int, int]:
        return {s.id: s.epoch for s in self.samples.values() if s.holder == worker}

    def is_live(self, worker: Worker) -> bool:
        return worker.ended is None and worker.expires > self.now

    def wanted_model(self, sample: Sample) -> str:
        return self.jobs[sample.job].model_of(sample.role)

    def is_of(self, sample: Sample, model: str) -> bool:
        return self.wanted_model(sample) == model

    def runs(self, sample: Sample) -> bool:
        return self.jobs[sample.job].state == "running"

    def is_due(self, sample: Sample) -> bool:
        return sample.not_before is None or sample.not_before <= self.now

    def runnables(self, ids: Iterable[int]) -> Runnables:
        return tuple(self._runnable(self.samples[i]) for i in sorted(ids))

    def _runnable(self, s: Sample) -> tuple[int, int, str, str | None, bool, bool]:
        writer = s.homes[s.role] if s.state in RUNNABLE else None
        home = self.workers.get(writer) if writer is not None else None
        queue = home.queue if home is not None and home.ended is None else None
        return (s.id, s.epoch, s.state, queue, bool(s.segments or s.asides), s.is_suspect)

    # -- workers -----------------------------------------------------------------------------------------------------

    def register(self, worker: Worker) -> None:
        self.workers[worker.id] = worker

    def renew(self, worker: int, since: float | None = None) -> str | None:
        w = self.workers.get(worker)
        if w is None or w.ended is not None or not self.is_as_left(w, since):
            return LOST
        w.renewed, w.expires = self.now, self.now + TTL_S
        return None

    def is_as_left(self, worker: Worker, since: float | None) -> bool:
        """Whether a life's row is not older than what its last heartbeat returned."""
        return since is None or worker.renewed >= since

    def end(self, worker: int, reason: str) -> None:
        if worker in self.workers:
            w = self.workers[worker]
            w.ended = w.ended or reason

    # -- claims -------------------------------------------------------------------------------------------------------

    def claimable(self, worker: int, epochs: Mapping[int, int], job: int) -> list[Sample]:
        w = self.workers.get(worker)
        if w is None:
            return []
        state = WAITS_FOR[w.kind]
        named = [s for s in self.samples.values() if epochs.get(s.id) == s.epoch and s.state == state and s.job == job]
        free = not any(s.holder == worker and s.is_suspect for s in self.samples.values())
        suspect = min((s.id for s in named if s.is_suspect), default=None) if free else None
        named = [s for s in named if not s.is_suspect or s.id == suspect]
        return [s for s in named if self.is_live(w) and self.runs(s) and self.is_due(s) and self.is_of(s, w.model)]

    def claim(self, worker: int, epochs: Mapping[int, int], job: int) -> dict[int, tuple[Any, ...]]:
        taken: dict[int, tuple[Any, ...]] = {}
        for s in self.claimable(worker, epochs, job):
            s.epoch += 1
            s.holder = worker
            s.homes[s.role] = worker
            s.move(HELD_BY[s.role])
            taken[s.id] = (s.epoch, len(s.segments), len(s.asides), s.count, s.max_tokens, s.part_tokens)
        return taken

    def store_part(self, sample: int, part: Part) -> frozenset[int]:
        s = self.samples[sample]
        if not self.accepts_part(s, part):
            return frozenset()
        s.parts.append(replace(part, at=self.now))
        s.num_rescues = 0
        return frozenset({sample})

    def accepts_part(self, s: Sample, part: Part) -> bool:
        """Whether a part is of the claim under which the sample is held, and goes on from the parts that it has."""
        is_held = (s.epoch, s.holder) == (part.epoch, part.worker) and part.runnable in (None, s.runnable)
        return is_held and (len(s.segments), s.part_tokens) == (part.segment_index, part.start)

    def begin_trial(self, worker: int, sample: int, epoch: int) -> bool | str:
        held = self.held_by(worker)
        if held.get(sample) != epoch:
            return LOST
        if len(held) > 1:
            return False
        self.samples[sample].trial_epoch = epoch
        return True

    def commit(self, worker: int, commits: Sequence[Written]) -> tuple[frozenset[tuple[int, int]], Runnables]:
        stored = set()
        for commit in commits:
            s = self.samples[commit.sample]
            if self.accepts(s, worker, commit):
                self._store(s, commit)
                stored.add((s.id, commit.epoch))
            elif (commit.epoch, worker) in s.writers:
                stored.add((s.id, commit.epoch))
        return frozenset(stored), self.runnables({sample for sample, _ in stored})

    def accepts(self, s: Sample, worker: int, commit: Written) -> bool:
        """Whether a commit is of the claim under which the sample is held, and of the text that it has."""
        return s.epoch == commit.epoch and s.holder == worker and self.goes_on(s, commit)

    def goes_on(self, s: Sample, commit: Written) -> bool:
        return commit.runnable in (None, s.runnable) and self.counts(s, commit)

    def counts(self, s: Sample, commit: Written) -> bool:
        return commit.segments_before in (None, len(s.segments)) and commit.asides_before in (None, len(s.asides))

    def _store(self, s: Sample, commit: Written) -> None:
        s.holder, s.published, s.not_before, s.runnable = None, self.now, None, self.now
        if commit.to_state == "failed":
            s.fail(commit.error_class or "")
            return
        s.move(commit.to_state)
        s.num_rescues = s.num_attempts = 0
        s.parts = []
        s.count = commit.count
        s.next_role = ROLE_OF_STATE.get(commit.to_state)
        s.num_takeovers += commit.num_takeovers
        s.finish_reason = commit.finish_reason
        s.segments += (replace(segment, at=self.now) for segment in commit.segments)
        s.asides += (replace(aside, at=self.now) for aside in commit.asides)

    def release(self, worker: int, epochs: Mapping[int, int]) -> Runnables:
        mine = [s for s in self.samples.values() if s.holder == worker and epochs.get(s.id) == s.epoch]
        for s in mine:
            s.give_back(self.now)
            s.published = self.now
        return self.runnables(s.id for s in mine)

    def defer(self, worker: int, epochs: Mapping[int, int], delay_s: float) -> None:
        for s in self.samples.values():
            if s.holder != worker or epochs.get(s.id) != s.epoch:
                continue
            s.num_attempts += 1
            s.published, s.not_before = EARLIEST, self.now + delay_s
            if s.num_attempts >= LATEST_ATTEMPT:
                s.epoch += 1
                s.fail("engine_refused")
            else:
                s.give_back(self.now)

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def settle(self, awake_s: float) -> tuple[frozenset[int], int, int, Runnables] | None:
        for w in self.workers.values():
            if w.ended is None and w.expires < self.now and w.expires - w.renewed < awake_s:
                w.ended = "lapsed"
        gone = [w for w in self.workers.values() if w.ended is not None and not w.settled]
        if not gone:
            return None
        rescued = failed = 0
        told: set[int] = set()
        for w in gone:
            w.settled = True
            back, lost = self._rescue(w)
            rescued, failed = rescued + len(back), failed + lost
            told |= back
        dead = {w.id for w in gone}
        for s in self.samples.values():
            home = s.homes[s.role] if s.state in RUNNABLE else None
            if home in dead and not s.is_suspect and s.id not in self.locked:
                s.published = self.now
                told.add(s.id)
        return frozenset(dead), rescued, failed, self.runnables(told)

    def _rescue(self, w: Worker) -> tuple[set[int], int]:
        held = [s for s in self.samples.values() if s.holder == w.id]
        tried = [s for s in held if self.is_tried(s, held)]
        for s in held:
            s.num_rescues += w.ended != "stopped"
        back: set[int] = set()
        for s in held:
            s.published = EARLIEST if s.is_suspect else self.now
            may_blame = w.ended != "lapsed" or s.num_rescues >= GUILTY_AFTER_LAPSES
            if w.ended != "stopped" and s in tried and may_blame:
                s.epoch += 1
                s.fail({"engine_stalled": "timed_out", "writer_failed": "internal"}.get(w.ended or "", "engine_died"))
            else:
                s.give_back(self.now)
                back.add(s.id)
        return back, len(held) - len(back)

    def is_tried(self, s: Sample, held: Sequence[Sample]) -> bool:
        """Whether a sample had the worker that died to itself."""
        return s.must_be_alone and s.trial_epoch == s.epoch and len(held) == 1

    def overdue(self) -> Runnables:
        due = [s for s in self.samples.values() if s.published is not None and s.published < self.now - AGE_S]
        due = [s for s in due if s.state == "finished" or (s.state in RUNNABLE and self.runs(s))]
        sent = [s for s in due if not s.is_suspect and self.is_due(s) and s.id not in self.locked]
        for s in sent:
            s.published = self.now
        return self.runnables(s.id for s in sent)

    def try_suspects(self) -> Runnables:
        supply: dict[tuple[str, str], int] = defaultdict(int)
        for w in self.workers.values():
            supply[w.kind, w.model] += self.is_live(w)
        waiting: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        alone: set[tuple[str, str]] = set()
        for s in sorted(self.samples.values(), key=lambda s: s.id):
            if not s.is_suspect or s.state not in ADMITTED or not self.runs(s):
                continue
            place = s.role, self.wanted_model(s)
            if s.state in HELD or (s.published or 0.0) > self.now - AGE_S:
                supply[place] -= 1
                alone |= {place} if s.must_be_alone else set()
            elif self.is_due(s):
                waiting[place].append(s)
        tried = []
        for place, queue in waiting.items():
            first = [s for s in queue if s.must_be_alone and place not in alone][:1]
            queue = first + [s for s in queue if not s.must_be_alone]
            tried += queue[: max(0, supply[place])]
        sent = [s for s in tried if s.id not in self.locked]
        for s in sent:
            s.published = self.now
        return self.runnables(s.id for s in sent)

    def halt(self) -> int:
        held = [s for s in self.samples.values() if s.state in HELD and self.jobs[s.job].state == "paused"]
        for s in held:
            s.give_back(self.now)
            s.published = self.now
        return len(held)

    def admit(self) -> Runnables:
        slots: dict[tuple[str, str], int] = defaultdict(int)
        for w in self.workers.values():
            slots[w.kind, w.model] += w.slots if self.is_live(w) else 0
        running = [job for job in self.jobs.values() if job.state == "running"]
        for job in running:
            slots[self._opening(job)] -= sum(s.state in ADMITTED for s in self.of_job(job.id))
        admitted = []
        for job in sorted(running, key=lambda job: (-job.priority, job.id)):
            pending = sorted((s for s in self.of_job(job.id) if s.state == "pending"), key=lambda s: s.id)
            chosen = pending[: max(0, slots[self._opening(job)])]
            slots[self._opening(job)] -= len(chosen)
            for s in chosen:
                s.move(WAITS_FOR[s.next_role or job.first_role])
                s.published = s.runnable = self.now
            admitted += chosen
        return self.runnables(s.id for s in admitted)

    @staticmethod
    def _opening(job: Job) -> tuple[str, str]:
        return job.first_role, job.model_of(job.first_role)

    def close(self) -> dict[int, str]:
        closed = {}
        for job in self.jobs.values():
            states = {s.state for s in self.of_job(job.id)}
            if job.state == "running" and job.id not in self.locked_jobs and states <= set(FINAL):
                job.move("completed_with_errors" if "failed" in states else "completed")
                closed[job.id] = job.state
        return closed

    def cancel_leftovers(self) -> int:
        for job in self.jobs.values():
            if job.state == "cancelled" and any(s.state not in FINAL for s in self.of_job(job.id)):
                return self.cancel_samples(job.id, len(self.samples))
        return 0

    def open_jobs(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state in ("running", "paused")]

    # -- control -----------------------------------------------------------------------------------------------------

    def cancel_job(self, job: int) -> bool | str:
        return self._change(job, "cancelled", ("running", "paused"))

    def cancel_samples(self, job: int, limit: int) -> int:
        if self.jobs[job].state != "cancelled":
            return 0
        samples = sorted(self.of_job(job), key=lambda s: s.id)
        chosen = [s for s in samples if s.state in ADMITTED][:limit]
        chosen = chosen or [s for s in samples if s.state not in FINAL][:limit]
        for s in chosen:
            s.epoch += 1
            s.holder = None
            s.move("cancelled")
        return len(chosen)

    def pause_job(self, job: int) -> bool | str:
        return self._change(job, "paused", ("running",))

    def release_job(self, job: int) -> int:
        if self.jobs[job].state != "paused":
            return 0
        admitted = [s for s in self.of_job(job) if s.state in ADMITTED]
        held = sum(s.state in HELD for s in admitted)
        for s in admitted:
            s.give_back(self.now)
            s.published = self.now
        return held

    def resume_job(self, job: int) -> int | str | None:
        changed = self._change(job, "running", ("paused",))
        if isinstance(changed, str):
            return changed
        if not changed:
            return None
        waiting = [s for s in self.of_job(job) if s.state in (*RUNNABLE, "finished")]
        for s in waiting:
            s.epoch += s.state != "finished"
            s.published, s.runnable = EARLIEST, self.now
        return sum(s.state != "finished" for s in waiting)

    def _change(self, job: int, to: str, allowed: tuple[str, ...]) -> bool | str:
        j = self.jobs[job]
        if j.state == to:
            return False
        if j.state not in allowed:
            return REFUSED
        j.move(to)
        return True

    def _reopen(self, job: int) -> bool:
        j = self.jobs[job]
        if j.state in ("completed", "completed_with_errors"):
            j.move("running")
        return j.state != "cancelled"

    def retry_failed(self, job: int, ids: Collection[int]) -> int | str:
        if not self._reopen(job):
            return REFUSED
        failed = [s for s in self.of_job(job) if s.state == "failed" and s.id in ids]
        for s in failed:
            s.epoch += 1
            s.move("pending")
            s.num_rescues = s.num_attempts = 0
            s.published = s.not_before = s.error_class = None
        return len(failed)

    def retry_cut(self, job: int, ids: Collection[int], max_tokens: int) -> int | str:
        if not self._reopen(job):
            return REFUSED
        cut = [s for s in self.of_job(job) if s.id in ids and self.is_cut(s, max_tokens)]
        for s in cut:
            for segment in s.segments:
                self.workers[segment.worker].withdrawn += segment.kept + segment.discarded
            for aside in s.asides:
                self.workers[aside.worker].withdrawn += aside.tokens
            s.segments, s.asides, s.parts = [], [], []
            s.epoch += 1
            s.move("pending")
            s.max_tokens = max_tokens
            s.num_rescues = s.num_attempts = s.num_takeovers = 0
            s.published = s.not_before = s.finish_reason = s.next_role = s.count = s.score = None
            s.homes = dict.fromkeys(WAITS_FOR)
            self.grading.pop(s.id, None)
        return len(cut)

    def is_cut(self, s: Sample, max_tokens: int) -> bool:
        budget = s.max_tokens or self.jobs[s.job].max_tokens
        return s.state == "graded" and s.finish_reason == "length" and budget < max_tokens

    def set_priority(self, job: int, priority: int) -> bool | str:
        j = self.jobs[job]
        if j.state not in ("running", "paused"):
            return REFUSED
        changed, j.priority = j.priority != priority, priority
        return changed

    # -- grading -----------------------------------------------------------------------------------------------------

    def begin_grade(self, sample: int, epoch: int) -> bool:
        grade = self.grading.get(sample, Grade())
        if self.samples[sample].epoch != epoch or grade.status != "running" or grade.started > self.now - AGE_S:
            return False
        self.grading[sample] = Grade(started=self.now, tries=grade.tries + 1)
        return True

    def end_grade(self, sample: int, epoch: int, score: float) -> bool:
        s, grade = self.samples[sample], self.grading.get(sample)
        if s.epoch != epoch or grade is None or grade.status != "running":
            return False
        grade.status = "done"
        s.move("graded")
        s.score = score
        return True

    def store_grade(self, sample: int, epoch: int, score: float) -> bool:
        s = self.samples[sample]
        if s.epoch != epoch or s.state != "finished" or sample in self.grading:
            return False
        return self.begin_grade(sample, epoch) and self.end_grade(sample, epoch, score)

    def time_out_grades(self) -> frozenset[int]:
        running = [i for i, g in self.grading.items() if g.status == "running" and g.started < self.now - AGE_S]
        late = [i for i in running if self.grading[i].tries >= GRADING_TRIES and i not in self.locked]
        for i in late:
            self.grading[i].status = "timeout"
        ended = [self.samples[i] for i in late if self.samples[i].state == "finished"]
        for s in ended:
            s.move("graded")
        return frozenset(s.id for s in ended)

    # -- comparing ---------------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, dict[Any, Any]]:
        """As test_protocol_machine reads it from the database. Ages are in units of ten minutes."""
        lease = {w.id: None if w.ended else self._age(w.renewed) for w in self.workers.values()}
        return {
            "jobs": {j.id: (j.state, j.priority) for j in self.jobs.values()},
            "grades": {i: (g.status, g.tries) for i, g in self.grading.items()},
            "workers": {
                w.id: (w.ended, w.settled, lease[w.id], round((w.expires - w.renewed) / 60), w.withdrawn)
                for w in self.workers.values()
            },
            "samples": {
                s.id: (
                    s.state, s.epoch, s.holder, *s.homes.values(), self._age(s.published), s.num_rescues,
                    s.trial_epoch, s.num_attempts, not self.is_due(s), s.next_role, s.max_tokens, s.num_takeovers,
                    s.count, s.finish_reason, s.error_class, s.score, len(s.segments), s.tokens("small", kept=True),
                    s.tokens("large", kept=True), s.tokens("small", kept=False), s.tokens("large", kept=False),
                    len(s.asides), s.aside_tokens("small"), s.aside_tokens("large"), s.aside_tokens("judge"),
                    s.part_tokens,
                )
                for s in self.samples.values()
            },
            "segments": {
                (s.id, index): (g.epoch, g.worker, g.author, g.kept, g.discarded)
                for s in self.samples.values()
                for index, g in enumerate(s.segments)
            },
            "parts": {
                (s.id, part.start): (part.segment_index, part.epoch, part.worker, part.tokens)
                for s in self.samples.values()
                for part in s.parts
            },
            "asides": {
                (s.id, index): (a.epoch, a.worker, a.author, a.tokens, a.after_segment)
                for s in self.samples.values()
                for index, a in enumerate(s.asides)
            },
        }  # fmt: skip

    def _age(self, at: float | None) -> int | str | None:
        if at is None:
            return None
        return "-infinity" if at == EARLIEST else round((self.now - at) / 600)
