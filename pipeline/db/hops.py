"""The statements of a hop: claim, load, commit, release. Every one is fenced by the sample's epoch.

A claim raises the epoch; a message that names another epoch finds nothing and is dropped. A commit or release
touches only rows that still have the epoch and the holder under which they were claimed. Rows are locked in the order
of their ids, so that two workers never wait for each other in a circle.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import orjson
from sqlalchemy import Connection, RowMapping, text

from pipeline.chat.steps import Step
from pipeline.chat.translation import ThinkPhase, first_prompt_tokens
from pipeline.jobs.config import JobConfig
from pipeline.policies.base import PolicyState
from pipeline.problems import Problem
from pipeline.results.replay import segment_sha256
from pipeline.samples import (
    RUNNABLE_STATE,
    SUSPECT_AFTER,
    WRITING_STATE,
    Author,
    FinishReason,
    ModelRole,
    Piece,
    SampleState,
    SegmentFinish,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSegment:
    """Kept text that a sample already has."""

    author: Author
    trigger: str
    piece: Piece
    vocabulary_sha256: str
    prompt_tokens: int
    """Given to its author's engine: the prompt, and the output so far; 0 for an inserted sentence."""
    epoch: int
    """Of the claim under which it was stored: with the sample and the segment's place it names this very text."""


Context: TypeAlias = tuple[ContextSegment, ...]


class ContextMemory:
    """The contexts that this process has loaded, so that a claim reads only the segments that came after. Thread-safe.

    A memory and no more: claims check it against the database. max_tokens, max_samples: most that it holds (about 100
    bytes per token); what was not used for longest goes first. Whoever takes over in a sample is not told of its end.
    """

    def __init__(self, max_tokens: int = 1_000_000, max_samples: int = 10_000) -> None:
        self._max_tokens = max_tokens
        self._max_samples = max_samples
        self._num_tokens = 0
        self._contexts: OrderedDict[int, tuple[Context, int]] = OrderedDict()
        """By sample id, each with its number of tokens."""
        self._lock = threading.Lock()

    def recall(self, sample_id: int) -> Context:
        """As it was last kept; () where it was not."""
        with self._lock:
            return self._contexts.get(sample_id, ((), 0))[0]

    def keep(self, sample_id: int, context: Context) -> None:
        with self._lock:
            self._forget(sample_id)
            num_tokens = sum(1 + len(segment.piece.token_ids) for segment in context)  # an empty one takes memory too
            self._contexts[sample_id] = context, num_tokens
            self._num_tokens += num_tokens
            while self._num_tokens > self._max_tokens or len(self._contexts) > self._max_samples:
                self._forget(next(iter(self._contexts)))

    def forget(self, sample_id: int) -> None:
        """Nobody will go on with this sample."""
        with self._lock:
            self._forget(sample_id)

    def _forget(self, sample_id: int) -> None:
        _, num_tokens = self._contexts.pop(sample_id, ((), 0))
        self._num_tokens -= num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedSample:
    """A sample this worker holds, with all it needs to go on writing."""

    sample_id: int
    job_id: int
    epoch: int
    problem_id: int
    problem: Problem
    sample_index: int
    policy_state: PolicyState | None
    budget: int | None
    """Most output tokens, where it has a larger budget than its job's."""
    max_tokens: int | None
    """Of the next piece of writing."""
    trigger: str | None
    cue: str
    wait_seconds: float | None
    """Since a message was sent for it; None: none was."""
    context: Context
    num_prompt_tokens: int | None
    """Of the rendered prompt, as the first writer read it; None where nobody has written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """A segment as it is stored: the first num_kept tokens of the piece are kept, the rest is discarded."""

    author: Author
    trigger: str
    cue: str
    piece: Piece
    num_kept: int
    finish: SegmentFinish | None = None
    tokens_generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    seed: int | None = None
    wait_seconds: float | None = None
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    write_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """What a worker commits for one sample: new segments and the state they lead to."""

    sample_id: int
    epoch: int
    to_state: SampleState
    segments: tuple[SegmentRecord, ...] = ()
    num_segments_before: int = 0
    is_takeover: bool = False
    policy_state: PolicyState | None = None
    next_max_tokens: int | None = None
    next_trigger: str | None = None
    next_cue: str | None = None
    finish_reason: FinishReason | None = None
    steps: tuple[Step, ...] = ()
    error_class: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """A sample that now waits for somebody, and the queue of the worker that has its context cached, if it lives."""

    sample_id: int
    job_id: int
    epoch: int
    state: SampleState
    model: str | None
    """The model it waits for; None where it waits for a grader."""
    home_queue: str | None
    resumed: bool
    is_suspect: bool
    """Its workers died with it: upkeep sends it alone, nobody else does."""


_HOME_QUEUE = """
    (SELECT w.queue FROM workers w WHERE w.ended_at IS NULL
     AND w.id = CASE s.state WHEN 'ready' THEN s.small_worker_id WHEN 'awaiting_large' THEN s.large_worker_id END)
"""
_MODEL = """
    (SELECT CASE s.state WHEN 'ready' THEN j.small_model WHEN 'awaiting_large' THEN j.large_model END
     FROM jobs j WHERE j.id = s.job_id)
"""
RUNNABLE_COLUMNS = (
    f"s.id AS sample_id, s.job_id, s.epoch, s.state, {_MODEL} AS model, {_HOME_QUEUE} AS home_queue, "
    f"s.num_segments > 0 AS resumed, s.num_rescues >= {SUSPECT_AFTER} AS is_suspect"
)
"""What to select FROM samples s to make a Runnable."""


def runnable(row: RowMapping) -> Runnable:
    return Runnable(**{**row, "state": SampleState(row["state"])})


_CLAIM = text(f"""
    WITH message AS (SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS m(id, epoch)),
    me AS MATERIALIZED (
        SELECT w.model FROM workers w
        WHERE w.id = :worker AND w.ended_at IS NULL AND w.expires_at > clock_timestamp() FOR SHARE
    ),
    suspect AS (
        SELECT min(s.id) AS id FROM samples s JOIN message m ON m.id = s.id AND m.epoch = s.epoch
        WHERE s.state = :runnable AND s.num_rescues >= {SUSPECT_AFTER}
          AND (CAST(:job AS bigint) IS NULL OR s.job_id = :job)
          AND NOT EXISTS (SELECT FROM samples o WHERE o.holder_id = :worker AND o.num_rescues >= {SUSPECT_AFTER})
    ),
    mine AS (
        SELECT s.id, j.first_claimed_at IS NULL AS is_first
        FROM samples s JOIN message m ON m.id = s.id AND m.epoch = s.epoch JOIN jobs j ON j.id = s.job_id
        WHERE s.state = :runnable AND j.state = 'running'
          AND (CAST(:job AS bigint) IS NULL OR s.job_id = :job)
          AND (s.not_before IS NULL OR s.not_before <= clock_timestamp())
          AND CASE s.state WHEN 'ready' THEN j.small_model ELSE j.large_model END = (SELECT model FROM me)
          AND (s.num_rescues < {SUSPECT_AFTER} OR s.id = (SELECT id FROM suspect))
        ORDER BY s.id FOR UPDATE OF s
    ),
    claimed AS (
        UPDATE samples s SET state = :writing, epoch = s.epoch + 1, holder_id = :worker,
               small_worker_id = CASE s.state WHEN 'ready' THEN :worker ELSE s.small_worker_id END,
               large_worker_id = CASE s.state WHEN 'ready' THEN s.large_worker_id ELSE :worker END
        FROM mine WHERE s.id = mine.id
        RETURNING s.*, mine.is_first
    )
    SELECT c.id AS sample_id, c.job_id, c.epoch, c.problem_id, c.sample_index, c.policy_state, c.max_tokens AS budget,
           c.next_max_tokens AS max_tokens, c.next_trigger AS trigger, coalesce(c.next_cue, '') AS cue,
           c.num_segments, c.is_first,
           CASE WHEN isfinite(c.published_at)
                THEN extract(epoch FROM clock_timestamp() - c.published_at)::float8 END AS wait_seconds,
           p.external_id, p.prompt, p.subject, p.level, p.extra
    FROM claimed c JOIN problems p ON p.id = c.problem_id
    ORDER BY c.num_segments = 0, c.id
""")

# No claim waits for a job's row: who holds that may wait for the samples of this claim.
_MARK_FIRST_CLAIM = text("""
    UPDATE jobs SET first_claimed_at = clock_timestamp() WHERE id IN (
        SELECT id FROM jobs WHERE id = ANY(:jobs) AND first_claimed_at IS NULL
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
""")

_LOAD_CONTEXT = text("""
    SELECT g.sample_id, g.author, g.trigger, g.token_ids, g.text, g.token_lengths, g.prompt_tokens, g.epoch,
           e.vocabulary_sha256
    FROM unnest(CAST(:ids AS bigint[]), CAST(:starts AS integer[])) AS wanted(id, start)
    JOIN segments g ON g.sample_id = wanted.id AND g.segment_index >= wanted.start
    JOIN engines e ON e.id = g.engine_id
    ORDER BY g.sample_id, g.segment_index
""")


def claim_samples(
    connection: Connection,
    *,
    worker_id: int,
    role: ModelRole,
    epochs: Mapping[int, int],
    job_id: int | None = None,
    memory: ContextMemory | None = None,
) -> list[ClaimedSample]:
    """Take the samples that still wait at the epochs a message names; resumed ones come first.

    epochs: sample id → epoch. Samples that moved on meanwhile, and those of another job than job_id, are left out; so
    are suspects beside a first one: of two that lose their worker together, nobody could tell who killed it.
    memory: what this process remembers of their contexts; the contexts that are loaded now are kept there. A
    worker whose lease lapsed gets nothing: its row is locked before any sample's, so that a claim and the winding up
    of its worker never pass each other.
    Plan: samples by primary key, at most as many as the message names.
    """
    rows = connection.execute(
        _CLAIM,
        {
            "ids": list(epochs),
            "epochs": list(epochs.values()),
            "worker": worker_id,
            "job": job_id,
            "runnable": RUNNABLE_STATE[role].value,
            "writing": WRITING_STATE[role].value,
        },
    ).mappings()
    claimed = [dict(row) for row in rows]
    if not claimed:
        return []
    first_of = {row["job_id"] for row in claimed if row.pop("is_first")}
    if first_of:
        connection.execute(_MARK_FIRST_CLAIM, {"jobs": sorted(first_of)})
    resumed = [row["sample_id"] for row in claimed if row.pop("num_segments")]
    contexts = _load_contexts(connection, resumed, memory or ContextMemory())
    return [_claimed_sample(row, contexts.get(row["sample_id"], ())) for row in claimed]


def _claimed_sample(row: dict[str, Any], context: Context) -> ClaimedSample:
    problem = Problem(
        external_id=row.pop("external_id"),
        prompt=row.pop("prompt"),
        answer=None,
        subject=row.pop("subject"),
        level=row.pop("level"),
        metadata=row.pop("extra"),
    )
    num_prompt_tokens = first_prompt_tokens([(segment.prompt_tokens, len(segment.piece)) for segment in context])
    return ClaimedSample(problem=problem, context=context, num_prompt_tokens=num_prompt_tokens, **row)


def _load_contexts(connection: Connection, sample_ids: Sequence[int], memory: ContextMemory) -> dict[int, Context]:
    """The contexts of claimed samples: what is remembered of each, and what was stored after it.

    The last segment that is remembered is read again. Its epoch tells whether it, and all before it, are still those
    that are stored: a sample that was begun anew has others in their places.
    """
    known = {sample_id: memory.recall(sample_id) for sample_id in sample_ids}
    loaded = _load_segments(connection, {sample_id: len(context) - 1 for sample_id, context in known.items()})
    contexts = {
        sample_id: context[:-1] + loaded.get(sample_id, ())
        for sample_id, context in known.items()
        if not context or _begins_with(loaded.get(sample_id, ()), context[-1])
    }
    contexts |= _load_segments(connection, dict.fromkeys(known.keys() - contexts.keys(), 0))
    for sample_id, context in contexts.items():
        memory.keep(sample_id, context)
    return contexts


def _begins_with(segments: Context, remembered: ContextSegment) -> bool:
    return bool(segments) and segments[0].epoch == remembered.epoch


def _load_segments(connection: Connection, starts: Mapping[int, int]) -> dict[int, Context]:
    """Stored segments of samples. starts: sample id → the first segment_index of interest."""
    if not starts:
        return {}
    rows = connection.execute(_LOAD_CONTEXT, {"ids": list(starts), "starts": list(starts.values())})
    by_sample: Iterable[tuple[int, Iterable[Any]]] = groupby(rows, lambda row: row.sample_id)
    return {sample_id: tuple(_context_segment(row) for row in group) for sample_id, group in by_sample}


def _context_segment(row: Any) -> ContextSegment:
    return ContextSegment(
        author=Author(row.author),
        trigger=row.trigger,
        piece=_piece(row.token_ids, row.text, row.token_lengths),
        vocabulary_sha256=row.vocabulary_sha256,
        prompt_tokens=row.prompt_tokens,
        epoch=row.epoch,
    )


def _piece(token_ids: Sequence[int], written: str, token_lengths: Sequence[int]) -> Piece:
    """The kept piece again, from what is stored of it."""
    texts, start = [], 0
    for length in token_lengths[: len(token_ids)]:
        texts.append(written[start : start + length])
        start += length
    return Piece(token_ids=tuple(token_ids), texts=tuple(texts))


def get_job_config(connection: Connection, job_id: int) -> JobConfig:
    """The frozen configuration of a job."""
    config = connection.execute(text("SELECT config FROM jobs WHERE id = :job"), {"job": job_id}).scalar_one()
    return JobConfig.model_validate(config)


_FIX_THINK_PHASE = text("""
    UPDATE jobs SET think_end = :end, think_opened = :opened WHERE id = :job AND think_end IS NULL
""")


def fix_think_phase(connection: Connection, job_id: int, phase: ThinkPhase) -> ThinkPhase:
    """How a job's texts mark the think phase: as was settled before, else from now on as phase says."""
    values = {"job": job_id, "end": phase.end, "opened": phase.opened}
    connection.execute(_FIX_THINK_PHASE, values)
    found = text("SELECT think_end, think_opened FROM jobs WHERE id = :job")
    row = connection.execute(found, values).one()
    return ThinkPhase(end=row.think_end, opened=row.think_opened)


_SEGMENT_COLUMNS = (
    "segment_index integer, author text, trigger text, cue text, token_ids integer[], text text, "
    "discarded_ids integer[], discarded_text text, token_lengths integer[], finish text, tokens_generated integer, "
    "prompt_tokens integer, cached_tokens integer, seed bigint, content_sha256 text, wait_seconds float8, "
    "queue_seconds float8, first_token_seconds float8, write_seconds float8"
)
_STEP_COLUMNS = (
    "step_index integer, text text, author text, tokens_small integer, tokens_large integer, tokens_inserted integer, "
    "start_token integer, sentence_class text, trigger text"
)


def _names(columns: str) -> str:
    return ", ".join(column.split()[0] for column in columns.split(", "))


# One statement: the round trips of several, and what SQLAlchemy adds to each row of an INSERT, cost more than the work.
_COMMIT = text(f"""
    WITH hop AS (
        SELECT * FROM jsonb_to_recordset(CAST(:hops AS jsonb)) AS r(
            sample_id bigint, epoch integer, to_state text, policy_state jsonb, next_max_tokens integer,
            next_trigger text, next_cue text, num_segments integer, num_takeovers integer, tokens_small integer,
            tokens_large integer, tokens_inserted integer, discarded_small integer, discarded_large integer,
            finish_reason text, error_class text, error text)
    ),
    mine AS (
        SELECT s.id, hop.epoch FROM samples s JOIN hop ON hop.sample_id = s.id
        WHERE s.epoch = hop.epoch AND s.holder_id = :worker
        ORDER BY s.id FOR UPDATE OF s
    ),
    moved AS (
        UPDATE samples s SET
            state = hop.to_state, holder_id = NULL, published_at = clock_timestamp(),
            num_rescues = CASE WHEN hop.to_state = 'failed' THEN s.num_rescues ELSE 0 END,
            num_attempts = CASE WHEN hop.to_state = 'failed' THEN s.num_attempts ELSE 0 END, not_before = NULL,
            policy_state = CASE WHEN hop.to_state = 'failed' THEN s.policy_state ELSE hop.policy_state END,
            next_max_tokens = CASE WHEN hop.to_state = 'failed' THEN s.next_max_tokens ELSE hop.next_max_tokens END,
            next_trigger = CASE WHEN hop.to_state = 'failed' THEN s.next_trigger ELSE hop.next_trigger END,
            next_cue = CASE WHEN hop.to_state = 'failed' THEN s.next_cue ELSE hop.next_cue END,
            next_role = CASE hop.to_state WHEN 'failed' THEN s.next_role WHEN 'ready' THEN 'small'
                                          WHEN 'awaiting_large' THEN 'large' END,
            num_segments = s.num_segments + hop.num_segments, num_takeovers = s.num_takeovers + hop.num_takeovers,
            tokens_small = s.tokens_small + hop.tokens_small, tokens_large = s.tokens_large + hop.tokens_large,
            tokens_inserted = s.tokens_inserted + hop.tokens_inserted,
            discarded_small = s.discarded_small + hop.discarded_small,
            discarded_large = s.discarded_large + hop.discarded_large,
            finish_reason = hop.finish_reason, error_class = hop.error_class, error = hop.error,
            finished_at = CASE WHEN hop.to_state = 'finished' THEN clock_timestamp() END,
            ended_at = CASE WHEN hop.to_state = 'failed' THEN clock_timestamp() END
        FROM hop JOIN mine ON mine.id = hop.sample_id AND mine.epoch = hop.epoch
        WHERE s.id = mine.id
        RETURNING {RUNNABLE_COLUMNS}
    ),
    new_segments AS (
        INSERT INTO segments (sample_id, epoch, worker_id, engine_id, {_names(_SEGMENT_COLUMNS)})
        SELECT moved.sample_id, moved.epoch, :worker, :engine, {_names(_SEGMENT_COLUMNS)}
        FROM jsonb_to_recordset(CAST(:segments AS jsonb)) AS r(sample_id bigint, epoch integer, {_SEGMENT_COLUMNS})
        JOIN moved USING (sample_id, epoch)
    ),
    new_steps AS (
        INSERT INTO steps (sample_id, {_names(_STEP_COLUMNS)})
        SELECT moved.sample_id, {_names(_STEP_COLUMNS)}
        FROM jsonb_to_recordset(CAST(:steps AS jsonb)) AS r(sample_id bigint, epoch integer, {_STEP_COLUMNS})
        JOIN moved USING (sample_id, epoch)
    )
    SELECT * FROM moved ORDER BY sample_id
""")

_STORED_BEFORE = text("""
    SELECT DISTINCT g.sample_id, g.epoch FROM segments g
    JOIN unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS refused(id, epoch)
      ON g.sample_id = refused.id AND g.epoch = refused.epoch
    WHERE g.worker_id = :worker
""")

_SELECT_RUNNABLE = text(f"SELECT {RUNNABLE_COLUMNS} FROM samples s WHERE s.id = ANY(:ids) ORDER BY s.id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What was stored: claims as (sample id, epoch), and the samples as whoever goes on with them must be told."""

    claims: frozenset[tuple[int, int]]
    samples: list[Runnable]


def commit_hops(connection: Connection, *, worker_id: int, engine_id: int, hops: Sequence[Hop]) -> Committed:
    """Store what a worker wrote, for those samples it still holds, and move their states; the rest is dropped.

    Returns what is stored, with what this worker had stored before under the same claim: a commit whose answer was
    lost with the connection is sent again. A sample that fails stays as it was after its last segment, for a retry.
    """
    values = {
        "hops": _json(_hop_row(hop) for hop in hops),
        "segments": _json(row for hop in hops for row in _segment_rows(hop)),
        "steps": _json(row for hop in hops for row in _step_rows(hop)),
        "worker": worker_id,
        "engine": engine_id,
    }
    moved = [runnable(row) for row in connection.execute(_COMMIT, values).mappings()]
    claims = {(sample.sample_id, sample.epoch) for sample in moved}
    stored_before = _stored_before(
        connection, [hop for hop in hops if (hop.sample_id, hop.epoch) not in claims], worker_id
    )
    again = select_runnable(connection, sorted({sample_id for sample_id, _ in stored_before}))
    return Committed(claims=frozenset(claims | stored_before), samples=[*moved, *again])


def _json(rows: Iterable[Mapping[str, Any]]) -> str:
    return orjson.dumps(list(rows)).decode()


def _stored_before(connection: Connection, hops: Sequence[Hop], worker_id: int) -> set[tuple[int, int]]:
    """The claims under which this worker has stored segments."""
    if not hops:
        return set()
    claims = {"ids": [hop.sample_id for hop in hops], "epochs": [hop.epoch for hop in hops]}
    rows = connection.execute(_STORED_BEFORE, claims | {"worker": worker_id})
    return {(row.sample_id, row.epoch) for row in rows}


def select_runnable(connection: Connection, sample_ids: Sequence[int]) -> list[Runnable]:
    """The present state of some samples, as a message about them needs it."""
    if not sample_ids:
        return []
    return [runnable(row) for row in connection.execute(_SELECT_RUNNABLE, {"ids": list(sample_ids)}).mappings()]


def _hop_row(hop: Hop) -> dict[str, Any]:
    kept = dict.fromkeys(Author, 0)
    discarded = dict.fromkeys(Author, 0)
    for segment in hop.segments:
        kept[segment.author] += segment.num_kept
        discarded[segment.author] += len(segment.piece) - segment.num_kept
    return {
        "sample_id": hop.sample_id,
        "epoch": hop.epoch,
        "to_state": hop.to_state.value,
        "policy_state": _storable_state(hop.policy_state),
        "next_max_tokens": hop.next_max_tokens,
        "next_trigger": hop.next_trigger,
        "next_cue": hop.next_cue,
        "num_segments": len(hop.segments),
        "num_takeovers": int(hop.is_takeover),
        "tokens_small": kept[Author.SMALL],
        "tokens_large": kept[Author.LARGE],
        "tokens_inserted": kept[Author.INSERTED],
        "discarded_small": discarded[Author.SMALL],
        "discarded_large": discarded[Author.LARGE],
        "finish_reason": hop.finish_reason,
        "error_class": hop.error_class,
        "error": hop.error,
    }


def _segment_rows(hop: Hop) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "sample_id": hop.sample_id,
            "segment_index": hop.num_segments_before + offset,
            "author": segment.author,
            "trigger": segment.trigger,
            "cue": segment.cue,
            "token_ids": list(segment.piece.token_ids[: segment.num_kept]),
            "text": storable("".join(segment.piece.texts[: segment.num_kept])),
            "discarded_ids": list(segment.piece.token_ids[segment.num_kept :]),
            "discarded_text": storable("".join(segment.piece.texts[segment.num_kept :])),
            "token_lengths": [len(piece) for piece in segment.piece.texts],
            "finish": segment.finish,
            "tokens_generated": segment.tokens_generated,
            "prompt_tokens": segment.prompt_tokens,
            "cached_tokens": segment.cached_tokens,
            "seed": segment.seed,
            "epoch": hop.epoch,
            "wait_seconds": segment.wait_seconds,
            "queue_seconds": segment.queue_seconds,
            "first_token_seconds": segment.first_token_seconds,
            "write_seconds": segment.write_seconds,
        }
        for offset, segment in enumerate(hop.segments)
    ]
    return [row | {"content_sha256": segment_sha256(row)} for row in rows]


def _storable_state(value: Any) -> Any:
    """A policy's state with its texts as they are stored: a replay reads them so, too."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {name: _storable_state(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_storable_state(each) for each in value]
    return value


def storable(written: str) -> str:
    """The text as Postgres takes it: NUL cannot be stored and becomes the replacement character (same length)."""
    return written.replace("\x00", "\ufffd")


def _step_rows(hop: Hop) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": hop.sample_id,
            "epoch": hop.epoch,
            "step_index": step.step_index,
            "text": storable(step.text),
            "author": step.author,
            "tokens_small": step.tokens_small,
            "tokens_large": step.tokens_large,
            "tokens_inserted": step.tokens_inserted,
            "start_token": step.start_token,
            "sentence_class": step.sentence_class,
            "trigger": step.trigger,
        }
        for step in hop.steps
    ]


_MINE = """
    SELECT s.id, s.num_attempts FROM samples s
    JOIN unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS claim(id, epoch)
      ON s.id = claim.id AND s.epoch = claim.epoch
    WHERE s.holder_id = :worker ORDER BY s.id FOR UPDATE OF s
"""
_RELEASE = text(f"""
    WITH mine AS ({_MINE})
    UPDATE samples s SET
        state = CASE s.state WHEN 'drafting' THEN 'ready' ELSE 'awaiting_large' END,
        epoch = s.epoch + 1, holder_id = NULL, published_at = clock_timestamp()
    FROM mine WHERE s.id = mine.id
    RETURNING s.id
""")


def release_samples(connection: Connection, *, worker_id: int, epochs: Mapping[int, int]) -> list[Runnable]:
    """Hand samples back at their last committed segment. epochs: sample id → epoch of the claim."""
    values = {"worker": worker_id, "ids": list(epochs), "epochs": list(epochs.values())}
    released = connection.execute(_RELEASE, values).scalars().all()
    return select_runnable(connection, sorted(released))


_DEFER = text(f"""
    WITH locked AS ({_MINE}), mine AS (SELECT id, num_attempts + 1 >= :max_attempts AS is_last FROM locked)
    UPDATE samples s SET
        epoch = s.epoch + 1, holder_id = NULL, num_attempts = s.num_attempts + 1, published_at = '-infinity',
        not_before = clock_timestamp() + least(interval '1 s' * 2 ^ least(s.num_attempts, 10), interval '1 min'),
        state = CASE WHEN mine.is_last THEN 'failed' WHEN s.state = 'drafting' THEN 'ready' ELSE 'awaiting_large' END,
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


_HELD = text("SELECT id, epoch FROM samples WHERE holder_id = :worker")


def held_epochs(connection: Connection, worker_id: int) -> dict[int, int]:
    """What a worker holds, by the database: sample id → epoch."""
    return {row.id: row.epoch for row in connection.execute(_HELD, {"worker": worker_id})}
