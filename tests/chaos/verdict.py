"""What a run came to: is everything there, once, and how long did it take to go on?

All of it is read from the job's rows after its end; nothing is measured while it runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.db.invariants import check_job, snapshot
from pipeline.samples import RUNNABLE_STATE, WRITING_STATE
from tests.chaos.faults import Strike
from tests.chaos.harness import Harness
from tests.chaos.workload import ChaosJob, Ending

_RUNNABLE = {state.value for state in RUNNABLE_STATE.values()}
_WRITING = {state.value: role.value for role, state in WRITING_STATE.items()}
"""State → the kind of worker that writes in it."""


@dataclass(kw_only=True)
class Verdict:
    """Of one run. lost: samples that are missing, failed, ungraded, or whose text is not all there. doubled: samples
    that are there twice, or with more text than theirs. again: claims whose segment was not stored, so that it was
    generated again. recovery_s: None where nothing had to be recovered."""

    lost: int = 0
    doubled: int = 0
    again: int = 0
    recovery_s: float | None = None
    violations: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.violations)


class Event(NamedTuple):
    sample_id: int | None
    from_state: str
    to_state: str
    epoch: int | None
    worker_id: int | None
    at: float


class Claim(NamedTuple):
    """One claim of a sample and how it ended: committed, or lost; ended_at: None where it has not."""

    sample_id: int
    kind: str
    worker_id: int | None
    at: float
    ended_at: float | None
    committed: bool


def judge(harness: Harness, job: ChaosJob, strike: Strike | None) -> Verdict:
    """Look at a job that has ended, or should have."""
    verdict = Verdict()
    _compare_texts(harness, job, verdict)
    with snapshot(harness.db_engine) as connection:
        found = check_job(connection, job.id)
    verdict.violations += [f"{violation.invariant}: {violation.where} {violation.what}" for violation in found]
    events = _events(harness, job)
    claims = _claims(events)
    verdict.again = sum(claim.ended_at is not None and not claim.committed for claim in claims)
    if strike is not None:
        blows = [each for each in (strike, *strike.more) if each.is_blow]
        recoveries = [recovery_s(events, claims, blow, _struck_workers(harness, blow)) for blow in blows]
        verdict.recovery_s = max((seconds for seconds in recoveries if seconds is not None), default=None)
    return verdict


def _compare_texts(harness: Harness, job: ChaosJob, verdict: Verdict) -> None:
    rows = harness.rows(
        """
        SELECT p.external_id, s.sample_index, s.state, s.score,
               (SELECT string_agg(g.text, '' ORDER BY g.segment_index) FROM segments g WHERE g.sample_id = s.id)
        FROM samples s JOIN problems p ON p.id = s.problem_id WHERE s.job_id = :job
        """,
        job=job.id,
    )
    found: dict[tuple[str, int], list[tuple[str, Ending]]] = defaultdict(list)
    for external_id, sample_index, state, score, output in rows:
        found[external_id, sample_index].append((state, Ending(output or "", score)))
    expected = harness.workload.endings(job)
    verdict.lost += len(set(expected) - set(found))
    verdict.doubled += sum(len(samples) - 1 for samples in found.values()) + len(set(found) - set(expected))
    for place in found.keys() & expected.keys():
        for state, ending in found[place]:
            _compare_sample(verdict, place, state, ending, expected[place])


def _compare_sample(verdict: Verdict, place: tuple[str, int], state: str, found: Ending, expected: Ending) -> None:
    where = f"problem {place[0]}, sample {place[1]}"
    if state != "graded":
        verdict.lost += 1
        verdict.violations.append(f"{where}: is {state} with score {found.score}")
    elif found.text != expected.text:
        verdict.doubled += len(found.text) > len(expected.text)
        verdict.lost += len(found.text) <= len(expected.text)
        verdict.violations.append(f"{where}: its text is {found.text!r} and not {expected.text!r}")
    elif found.score != expected.score:
        verdict.lost += 1
        verdict.violations.append(f"{where}: its score is {found.score} and not {expected.score}")


def _events(harness: Harness, job: ChaosJob) -> list[Event]:
    query = """SELECT sample_id, from_state, to_state, epoch, worker_id, extract(epoch FROM at)::float8
               FROM events WHERE job_id = :job ORDER BY id"""
    return [Event(*row) for row in harness.rows(query, job=job.id)]


def _claims(events: Sequence[Event]) -> list[Claim]:
    of_sample: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.sample_id is not None:
            of_sample[event.sample_id].append(event)
    claims = []
    for sample_id, moves in of_sample.items():
        for move, following in zip(moves, [*moves[1:], None], strict=True):
            if move.from_state in _RUNNABLE and move.to_state in _WRITING:
                committed = following is not None and following.epoch == move.epoch
                ended_at = following.at if following else None
                claims.append(Claim(sample_id, _WRITING[move.to_state], move.worker_id, move.at, ended_at, committed))
    return claims


def _struck_workers(harness: Harness, strike: Strike) -> set[int]:
    """The lives of the struck processes at the moment of the strike."""
    rows = harness.rows(
        """
        SELECT id FROM workers WHERE pid = ANY(:pids) AND started_at <= to_timestamp(:at)
          AND (ended_at IS NULL OR ended_at >= to_timestamp(:at))
        """,
        pids=list(strike.pids), at=strike.at,
    )  # fmt: skip
    return {row[0] for row in rows}


def recovery_s(
    events: Sequence[Event], claims: Sequence[Claim], strike: Strike, struck_workers: set[int]
) -> float | None:
    """Seconds from the strike until all goes on; None where the job had nothing left to do.

    Where struck workers held samples and lost them: until the last of these has its next segment stored. Else until
    the next step by the struck kind: a segment claimed after the strike and stored (small, large), a grade (grade), a
    sample let in or the job's end (upkeep); by any of them where no kind is named.
    """
    lost = {
        claim.sample_id
        for claim in claims
        if claim.worker_id in struck_workers
        and claim.at <= strike.at
        and not claim.committed
        and (claim.ended_at is None or claim.ended_at > strike.at)
    }
    again = {
        sample_id: min(
            (
                claim.ended_at
                for claim in claims
                if claim.sample_id == sample_id and claim.committed and claim.at > strike.at and claim.ended_at
            ),
            default=None,
        )
        for sample_id in lost
    }
    back = [at for at in again.values() if at is not None]
    if back:
        return max(back) - strike.at
    steps = [at for kind, at in _steps(events, claims, strike.at) if strike.kind in (None, kind)]
    return min(steps) - strike.at if steps else None


def _steps(events: Sequence[Event], claims: Sequence[Claim], since: float) -> list[tuple[str, float]]:
    """What was done from beginning to end after a moment: by which kind of worker, and when."""
    steps = [
        (claim.kind, claim.ended_at) for claim in claims if claim.at > since and claim.committed and claim.ended_at
    ]
    for event in events:
        if event.at > since and event.to_state == "graded":
            steps.append(("grade", event.at))
        if event.at > since and (event.from_state == "pending" or event.sample_id is None):
            steps.append(("upkeep", event.at))
    return steps
