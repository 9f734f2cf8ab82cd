"""The statements about claims: claim, release, defer. Every one is fenced by the sample's epoch.

A claim raises the epoch; a message that names another epoch finds nothing and is dropped. A release or deferral
touches only rows that still have the epoch and the holder under which they were claimed. Rows are locked in the order
of their ids, so that two workers never wait for each other in a circle.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from pipeline.chat.translation import first_prompt_tokens
from pipeline.db.context_cache import EMPTY, Context, ContextCache, load_contexts
from pipeline.db.parts import OpenSegment, load_open_segments
from pipeline.db.runnable import Runnable, select_runnable
from pipeline.db.states import ADMITTED, waiting_again, why_not_served
from pipeline.errors import LeaseLost
from pipeline.policies.protocol import PolicyState
from pipeline.problems import Problem
from pipeline.samples import ALONE_AFTER, RUNNABLE_STATE, SUSPECT_AFTER, WRITING_STATE, ModelRole
from pipeline.segments import storable


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedSample:
    """A sample this worker holds, with all it needs to go on writing."""

    worker_id: int
    """That claimed it: whatever is made of the claim is stored as that one's."""
    sample_id: int
    job_id: int
    epoch: int
    problem_id: int
    problem: Problem
    sample_index: int
    policy_state: PolicyState | None
    next_request: Any
    """As it is stored: ``policies.requests`` reads it, or says that it is damaged."""
    budget: int | None
    """Most output tokens, where it has a larger budget than its job's."""
    runnable_at: dt.datetime | None
    """Since when it could be claimed. Of two histories of a database only what both have in common gives the same."""
    wait_seconds: float | None
    """Since then, however often a message was sent."""
    context: Context
    num_prompt_tokens: int | None
    """Of the rendered prompt, as the first writer read it; None where nobody has written."""
    num_rescues: int = 0
    """Times its worker died with it since its last commit or part."""
    open_segment: OpenSegment | None = None
    """What is stored of a segment that an earlier claim did not end; None: nothing."""

    @property
    def must_be_alone(self) -> bool:
        """It may be written only with nothing else in the engine (``begin_trial``)."""
        return self.num_rescues >= ALONE_AFTER


_HOME_IS_HERE = ", ".join(
    f"{role.value}_worker_id = CASE s.state WHEN {state.value!r} THEN :worker ELSE s.{role.value}_worker_id END"
    for role, state in RUNNABLE_STATE.items()
)
_FITS = " OR ".join(
    f"w.kind = {role.value!r} AND j.{role.value}_model = w.model AND {why_not_served(role, engine='w')} IS NULL"
    for role in ModelRole
)
# A claim does not wait for the disk: a server that dies in the next moment has lost it alone, as after a restore to an
# earlier moment, and what its worker writes is refused.
# The job is looked at once, not for each of its samples: its configuration may be long. It is found by its id, since
# thousands of others may run; and its samples by theirs, never by their job's (+ 0), since it may have a million.
_CLAIM = text(f"""
    WITH message AS (SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS m(id, epoch)),
    me AS MATERIALIZED (
        SELECT w.kind, w.model, e.model_fingerprint, e.weights_sha256, e.revision,
               set_config('synchronous_commit', 'off', true) AS waits_for_the_disk
        FROM workers w LEFT JOIN engines e ON e.id = w.engine_id
        WHERE w.id = :worker AND w.ended_at IS NULL AND w.expires_at > clock_timestamp() FOR SHARE OF w
    ),
    served AS MATERIALIZED (
        SELECT j.id FROM jobs j, me w
        WHERE j.id IN (
            SELECT CAST(:job AS bigint)
            UNION ALL
            SELECT s.job_id FROM samples s JOIN message m ON m.id = s.id WHERE CAST(:job AS bigint) IS NULL
        ) AND j.state = 'running' AND w.kind = :role AND ({_FITS})
    ),
    suspect AS (
        SELECT min(s.id) AS id FROM samples s JOIN message m ON m.id = s.id AND m.epoch = s.epoch
        WHERE s.state = :runnable AND s.num_rescues >= {SUSPECT_AFTER}
          AND (CAST(:job AS bigint) IS NULL OR s.job_id = :job)
          AND NOT EXISTS (SELECT FROM samples o
                          WHERE o.holder_id = :worker AND o.num_rescues >= {SUSPECT_AFTER} AND o.{ADMITTED})
    ),
    mine AS (
        SELECT s.id
        FROM samples s JOIN message m ON m.id = s.id AND m.epoch = s.epoch JOIN served ON served.id = s.job_id + 0
        WHERE s.state = :runnable AND (s.not_before IS NULL OR s.not_before <= clock_timestamp())
          AND (s.num_rescues < {SUSPECT_AFTER} OR s.id = (SELECT id FROM suspect))
        ORDER BY s.id FOR UPDATE OF s
    ),
    claimed AS (
        UPDATE samples s SET state = :writing, epoch = s.epoch + 1, holder_id = :worker,
               {_HOME_IS_HERE}
        FROM mine WHERE s.id = mine.id
        RETURNING s.id, s.job_id, s.epoch, s.problem_id, s.sample_index, s.policy_state, s.max_tokens, s.next_request,
                  s.num_segments, s.num_asides, s.runnable_at, s.num_rescues,
                  s.part_tokens
    )
    SELECT c.id AS sample_id, c.job_id, c.epoch, c.problem_id, c.sample_index, c.policy_state, c.max_tokens AS budget,
           c.next_request, c.num_segments, c.num_asides, c.num_rescues, c.part_tokens, c.runnable_at,
           greatest(0, extract(epoch FROM clock_timestamp() - c.runnable_at))::float8 AS wait_seconds,
           p.external_id, p.prompt, p.shown
    FROM claimed c JOIN problems p ON p.id = c.problem_id
    ORDER BY c.num_segments + c.num_asides = 0, c.id
""")


def claim_samples(
    connection: Connection,
    *,
    worker_id: int,
    role: ModelRole,
    epochs: Mapping[int, int],
    job_id: int | None = None,
    cache: ContextCache | None = None,
) -> list[ClaimedSample]:
    """Take the samples that still wait at the epochs a message names; resumed ones come first.

    epochs: sample id → epoch. Samples that moved on meanwhile, and those of another job than job_id, are left out; so
    are those of a job that another model writes (``find_misfit`` says why), and suspects beside a first one: of two
    that lose their worker together, nobody could tell who killed it.
    cache: what this process has of their contexts; the contexts that are loaded now are kept there. A worker whose
    lease lapsed gets nothing: its row is locked before any sample's, so that a claim and the winding up of its worker
    never pass each other.
    Plan: samples by primary key, at most as many as the message names.
    """
    rows = connection.execute(_CLAIM, _claim_values(worker_id, role, epochs, job_id)).mappings()
    claimed = [dict(row) for row in rows.all()]  # at once: one by one costs more than what is read
    if not claimed:
        return []
    parts = {row["sample_id"]: row["num_segments"] for row in claimed if row.pop("part_tokens")}
    with_segments = {row["sample_id"] for row in claimed if row.pop("num_segments")}
    with_asides = {row["sample_id"] for row in claimed if row.pop("num_asides")}
    resumed = [row["sample_id"] for row in claimed if row["sample_id"] in with_segments | with_asides]
    contexts = load_contexts(connection, resumed, cache or ContextCache(), with_asides=with_asides)
    open_segments = load_open_segments(connection, parts)
    return [
        _claimed_sample(row, worker_id, contexts.get(row["sample_id"], EMPTY), open_segments.get(row["sample_id"]))
        for row in claimed
    ]


def _claim_values(worker_id: int, role: ModelRole, epochs: Mapping[int, int], job_id: int | None) -> dict[str, Any]:
    """What ``_CLAIM`` names."""
    return {
        "ids": list(epochs),
        "epochs": list(epochs.values()),
        "worker": worker_id,
        "role": role.value,
        "job": job_id,
        "runnable": RUNNABLE_STATE[role].value,
        "writing": WRITING_STATE[role].value,
    }


def _claimed_sample(
    row: dict[str, Any], worker_id: int, context: Context, open_segment: OpenSegment | None
) -> ClaimedSample:
    problem = Problem(
        external_id=row.pop("external_id"),
        prompt=row.pop("prompt"),
        metadata=row.pop("shown"),
    )
    lengths = ((segment.prompt_tokens, len(segment.token_ids)) for segment in context.segments)
    return ClaimedSample(
        worker_id=worker_id,
        problem=problem,
        context=context,
        num_prompt_tokens=first_prompt_tokens(lengths),
        open_segment=open_segment,
        **row,
    )


_BEGIN_TRIAL = text(f"""
    UPDATE samples s SET trial_epoch = s.epoch
    WHERE s.id = :id AND s.epoch = :epoch AND s.holder_id = :worker
      AND NOT EXISTS (SELECT FROM samples o WHERE o.holder_id = :worker AND o.{ADMITTED} AND o.id <> s.id)
""")


def begin_trial(connection: Connection, *, worker_id: int, claim: tuple[int, int]) -> bool:
    """Note that a claimed sample has its worker to itself from now on; False where the worker holds another one.

    claim: sample id and epoch. Raises LeaseLost where the worker does not hold the sample under that claim.
    A claim of the same worker that comes later undoes the trial: see the verdict of ``settle_workers``.
    """
    values = {"worker": worker_id, "id": claim[0], "epoch": claim[1]}
    if connection.execute(_BEGIN_TRIAL, values).rowcount:
        return True
    if held_epochs(connection, worker_id).get(claim[0]) != claim[1]:
        raise LeaseLost(worker_id)
    return False


_MISFIT = text(f"""
    SELECT CASE w.kind {" ".join(f"WHEN {role.value!r} THEN {why_not_served(role)}" for role in ModelRole)} END
    FROM workers w JOIN engines e ON e.id = w.engine_id, jobs j WHERE w.id = :worker AND j.id = :job
""")


def find_misfit(connection: Connection, *, worker_id: int, job_id: int) -> str | None:
    """Why a worker's model may not write for a job; None where it may, or where there is no such job."""
    reason: str | None = connection.execute(_MISFIT, {"worker": worker_id, "job": job_id}).scalar()
    return reason


_FITTING = {
    role: text(f"""
        SELECT w.queue FROM workers w JOIN engines e ON e.id = w.engine_id, jobs j
        WHERE j.id = :job AND w.kind = {role.value!r} AND w.model = j.{role.value}_model AND w.id <> :worker
          AND w.ended_at IS NULL AND w.expires_at > clock_timestamp() AND {why_not_served(role)} IS NULL
          AND NOT EXISTS (SELECT FROM samples s
                          WHERE s.holder_id = w.id AND s.{ADMITTED} AND s.num_rescues >= {ALONE_AFTER})
        ORDER BY random() LIMIT 1
    """)
    for role in ModelRole
}


def find_fitting_queue(connection: Connection, *, worker_id: int, role: ModelRole, job_id: int) -> str | None:
    """The own queue of another live worker whose model may write for a job, and which is not kept for one sample alone;
    None where there is none. A message that goes there does not come back."""
    queue: str | None = connection.execute(_FITTING[role], {"job": job_id, "worker": worker_id}).scalar()
    return queue


_MINE = """
    SELECT s.id, s.num_attempts FROM samples s
    JOIN unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS claim(id, epoch)
      ON s.id = claim.id AND s.epoch = claim.epoch
    WHERE s.holder_id = :worker ORDER BY s.id FOR UPDATE OF s
"""
_RELEASE = text(f"""
    WITH mine AS ({_MINE})
    UPDATE samples s SET
        state = {waiting_again("s.state")},
        epoch = s.epoch + 1, holder_id = NULL, runnable_at = clock_timestamp(), published_at = clock_timestamp()
    FROM mine WHERE s.id = mine.id
    RETURNING s.id
""")


def release_samples(connection: Connection, *, worker_id: int, epochs: Mapping[int, int]) -> list[Runnable]:
    """Hand samples back at their last committed segment. epochs: sample id → epoch of the claim."""
    values = {"worker": worker_id, "ids": list(epochs), "epochs": list(epochs.values())}
    released = connection.execute(_RELEASE, values).scalars().all()
    return select_runnable(connection, sorted(released))


_DEFER = text(f"""
    WITH locked AS ({_MINE}),
    mine AS (
        SELECT id, num_attempts + 1 >= :max_attempts AS is_last,
               clock_timestamp() + least(interval '1 s' * 2 ^ least(num_attempts, 10), interval '1 min') AS not_before
        FROM locked
    )
    UPDATE samples s SET
        epoch = s.epoch + 1, holder_id = NULL, num_attempts = s.num_attempts + 1, published_at = '-infinity',
        not_before = mine.not_before, runnable_at = mine.not_before,
        state = CASE WHEN mine.is_last THEN 'failed' ELSE {waiting_again("s.state")} END,
        error_class = CASE WHEN mine.is_last THEN 'engine_refused' END, error = CASE WHEN mine.is_last THEN :error END,
        ended_at = CASE WHEN mine.is_last THEN clock_timestamp() END
    FROM mine WHERE s.id = mine.id
""")


def defer_samples(
    connection: Connection, *, worker_id: int, epochs: Mapping[int, int], error: str, max_attempts: int
) -> None:
    """Hand back samples that an engine refused for the moment: to be claimed again after 1, 2, 4 … 60 seconds.

    epochs: sample id → epoch of the claim. error: why; it is kept where this was the last of max_attempts without a
    commit between them, and the sample fails. The delay lives in the row: upkeep publishes when it is over.
    """
    claims = {"worker": worker_id, "ids": list(epochs), "epochs": list(epochs.values())}
    connection.execute(_DEFER, claims | {"error": storable(error), "max_attempts": max_attempts})


_HELD = text(f"SELECT id, epoch FROM samples WHERE holder_id = :worker AND {ADMITTED}")


def held_epochs(connection: Connection, worker_id: int) -> dict[int, int]:
    """What a worker holds, by the database: sample id → epoch."""
    return {row.id: row.epoch for row in connection.execute(_HELD, {"worker": worker_id})}
