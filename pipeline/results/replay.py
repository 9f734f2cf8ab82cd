"""Replay: what is stored of a sample is fed through its policy again, and every decision is compared.

A policy is a pure function of what the models wrote, so that a stored run decides the same again, to the token, or
something is wrong with what is stored or with the policy. Replay needs no model: ids are checked against the hash that
was stored with them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import orjson

from pipeline.chat.steps import SegmentText, split_steps
from pipeline.chat.translation import first_prompt_tokens
from pipeline.errors import PipelineError
from pipeline.jobs.config import JobConfig
from pipeline.policies.base import Finish, Generate, Insert, Keep, PolicyState, SampleContext, Transition, Written
from pipeline.samples import FINAL_STATES, Author, FinishReason, ModelRole, Piece, SampleState, SegmentFinish

WRITTEN_COLUMNS = ("segment_index", "author", "trigger", "cue", "token_ids", "text", "discarded_ids", "discarded_text",
                   "token_lengths", "finish", "tokens_generated", "seed")  # fmt: skip
"""Columns of a segment that say what was written; ``content_sha256`` is of them."""


def segment_sha256(row: Mapping[str, Any]) -> str:
    """The hash of what a segment's row says was written. row: has at least WRITTEN_COLUMNS."""
    return hashlib.sha256(orjson.dumps([row[column] for column in WRITTEN_COLUMNS])).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """A row of segments, as far as replay reads it."""

    segment_index: int
    author: Author
    trigger: str
    cue: str
    token_ids: Sequence[int]
    text: str
    discarded_ids: Sequence[int]
    discarded_text: str
    token_lengths: Sequence[int]
    finish: SegmentFinish | None
    tokens_generated: int
    prompt_tokens: int
    seed: int | None
    content_sha256: str | None

    @property
    def sha256(self) -> str:
        return segment_sha256({column: getattr(self, column) for column in WRITTEN_COLUMNS})

    @property
    def texts(self) -> tuple[str, ...]:
        """What each token added, the discarded ones included."""
        written, texts, start = self.text + self.discarded_text, [], 0
        for length in self.token_lengths:
            texts.append(written[start : start + length])
            start += length
        return tuple(texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStep:
    """A row of steps."""

    step_index: int
    text: str
    author: Author
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    start_token: int
    sentence_class: str
    trigger: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """A sample with its segments and steps, in order, and what of its job decides."""

    sample_id: int
    job_id: int
    config: JobConfig
    think_end: str | None
    problem: str
    sample_index: int
    state: SampleState
    policy_state: PolicyState | None
    next_max_tokens: int | None
    next_trigger: str | None
    next_cue: str | None
    num_segments: int
    num_takeovers: int
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    discarded_small: int
    discarded_large: int
    finish_reason: FinishReason | None
    segments: tuple[StoredSegment, ...]
    steps: tuple[StoredStep, ...]
    max_tokens: int | None = None
    """Its own budget, where that is larger than its job's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first place where what is stored is not what the policy decides.

    segment_index: None where it is about the sample as a whole. what: the thing that differs, e.g. "kept tokens".
    """

    segment_index: int | None
    what: str
    stored: Any
    replayed: Any

    def __str__(self) -> str:
        place = "the sample" if self.segment_index is None else f"segment {self.segment_index}"
        return f"{place}: {self.what}: stored {self.stored!r}, replayed {self.replayed!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What replaying one sample found."""

    sample_id: int
    job_id: int
    num_segments: int
    num_steps: int
    divergence: Divergence | None

    def __str__(self) -> str:
        counted = f"{self.num_segments} segments and {self.num_steps} steps"
        if self.divergence is None:
            return f"sample {self.sample_id}: {counted} are what the policy decides"
        return f"sample {self.sample_id}, {counted}, diverges at {self.divergence}"


def replay(sample: StoredSample) -> Replay:
    """Feed a sample's segments through its policy; says the first divergence. A sample at work is replayed so far.

    Raises PipelineError where the sample was written before what replay needs was stored.
    """
    divergence = None
    if sample.segments or sample.num_segments:
        try:
            _Replayer(sample).run()
        except _Diverged as found:
            divergence = found.divergence
    return Replay(
        sample_id=sample.sample_id,
        job_id=sample.job_id,
        num_segments=len(sample.segments),
        num_steps=len(sample.steps),
        divergence=divergence,
    )


class _Diverged(Exception):
    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence)
        self.divergence = divergence


def _compare(segment_index: int | None, **pairs: tuple[Any, Any]) -> None:
    """what=(stored, replayed), …: raises at the first that differ."""
    for what, (stored, replayed) in pairs.items():
        if stored != replayed:
            what = what.replace("_", " ")
            raise _Diverged(Divergence(segment_index=segment_index, what=what, stored=stored, replayed=replayed))


class _Replayer:
    """One run over one sample."""

    def __init__(self, sample: StoredSample) -> None:
        if sample.think_end is None:
            raise PipelineError(
                f"sample {sample.sample_id} cannot be replayed: its job does not say how its texts end the think "
                "phase; it was written by an older version"
            )
        self._sample = sample
        self._policy = sample.config.build_policy()
        lengths = [(segment.prompt_tokens, len(segment.token_ids)) for segment in sample.segments]
        self._context = SampleContext(
            job_seed=sample.config.seed,
            problem_id=sample.problem,
            sample_index=sample.sample_index,
            max_tokens=sample.max_tokens or sample.config.sampling.max_tokens,
            think_end=sample.think_end,
            num_prompt_tokens=first_prompt_tokens(lengths) or 0,
        )
        self._index = 0
        self._num_takeovers = 0
        self._kept: Counter[Author] = Counter()
        self._discarded: Counter[Author] = Counter()

    def run(self) -> None:
        transition = self._policy.start(self._context)
        decisions = transition.decisions
        while True:
            *inserts, last = decisions
            for insert in inserts:
                assert isinstance(insert, Insert)
                self._check_inserted(self._next_segment(insert.trigger), insert)
            if self._index >= len(self._sample.segments) or isinstance(last, Finish):
                break
            assert isinstance(last, Generate)
            transition = self._check_written(self._next_segment(last.trigger), last, transition.state)
            decisions = transition.decisions[1:]
            ahead = decisions[-1]
            goes_to_large = isinstance(ahead, Generate) and ahead.role is ModelRole.LARGE
            self._num_takeovers += last.role is ModelRole.SMALL and goes_to_large
        self._check_counts()
        self._check_end(last, transition.state)
        self._check_steps()

    def _next_segment(self, trigger: str) -> StoredSegment:
        """The segment that stands where the policy wants one."""
        index = self._index
        if index >= len(self._sample.segments):
            raise _Diverged(Divergence(segment_index=index, what="segment", stored=None, replayed=trigger))
        segment = self._sample.segments[index]
        _compare(index, place=(segment.segment_index, index))
        self._index += 1
        return segment

    def _check_inserted(self, segment: StoredSegment, insert: Insert) -> None:
        _compare(
            segment.segment_index,
            author=(segment.author, Author.INSERTED),
            trigger=(segment.trigger, insert.trigger),
            text=(segment.text, insert.text),
            discarded_tokens=(len(segment.discarded_ids), 0),
            finish=(segment.finish, None),
        )
        self._check_row(segment)
        self._kept[segment.author] += len(segment.token_ids)

    def _check_written(self, segment: StoredSegment, asked: Generate, state: PolicyState) -> Transition:
        index = segment.segment_index
        _compare(
            index,
            author=(segment.author, Author(asked.role.value)),
            trigger=(segment.trigger, asked.trigger),
            cue=(segment.cue, asked.cue),
        )
        if segment.finish is None:
            raise _Diverged(Divergence(segment_index=index, what="finish", stored=None, replayed="of a request"))
        token_ids = (*segment.token_ids, *segment.discarded_ids)
        _compare(
            index,
            tokens_with_a_length=(len(segment.token_lengths), len(token_ids)),
            characters=(len(segment.text + segment.discarded_text), sum(segment.token_lengths)),
        )
        piece = Piece(token_ids=token_ids, texts=segment.texts)
        self._check_request(segment, piece, asked, state)
        event = Written(role=asked.role, piece=piece, finish=segment.finish, start_token=self._kept.total())
        transition = self._policy.advance(self._context, state, event)
        keep = transition.decisions[0]
        assert isinstance(keep, Keep)
        _compare(index, kept_tokens=(len(segment.token_ids), keep.num_tokens))
        self._check_row(segment)
        self._kept[segment.author] += keep.num_tokens
        self._discarded[segment.author] += len(segment.discarded_ids)
        return transition

    def _check_request(self, segment: StoredSegment, piece: Piece, asked: Generate, state: PolicyState) -> None:
        """Whether the request ended where, and as, it had to."""
        ended_by_eos = segment.finish is SegmentFinish.EOS
        watcher = self._policy.watcher(self._context, state)
        ended_by_watcher = watcher is not None and any(map(watcher.feed, piece.texts))
        _compare(
            segment.segment_index,
            ended_by_the_watcher=(segment.finish is SegmentFinish.WATCH, ended_by_watcher),
            tokens_generated=(segment.tokens_generated, len(piece) + ended_by_eos),
            is_longer_than_asked=(segment.tokens_generated > asked.max_tokens, False),
        )

    def _check_row(self, segment: StoredSegment) -> None:
        if segment.content_sha256 is not None:
            _compare(segment.segment_index, hash_of_what_was_written=(segment.content_sha256, segment.sha256))

    def _check_counts(self) -> None:
        sample = self._sample
        if self._index < len(sample.segments):
            surplus = sample.segments[self._index]
            raise _Diverged(
                Divergence(segment_index=self._index, what="segment", stored=surplus.trigger, replayed=None)
            )
        _compare(
            None,
            number_of_segments=(sample.num_segments, self._index),
            takeovers=(sample.num_takeovers, self._num_takeovers),
            tokens_small=(sample.tokens_small, self._kept[Author.SMALL]),
            tokens_large=(sample.tokens_large, self._kept[Author.LARGE]),
            tokens_inserted=(sample.tokens_inserted, self._kept[Author.INSERTED]),
            discarded_small=(sample.discarded_small, self._discarded[Author.SMALL]),
            discarded_large=(sample.discarded_large, self._discarded[Author.LARGE]),
        )

    def _check_end(self, last: Any, state: PolicyState) -> None:
        """last: what the policy decided after the last segment."""
        sample = self._sample
        reason = last.reason if isinstance(last, Finish) else None
        is_complete = sample.state in (SampleState.FINISHED, SampleState.GRADED)
        if reason is None and is_complete:
            reason = FinishReason.CONTEXT  # a worker found no room for what the policy asked for
        if is_complete or sample.state not in FINAL_STATES:
            _compare(None, finish_reason=(sample.finish_reason, reason))
        if sample.state is not SampleState.FAILED:
            _compare(None, policy_state=(sample.policy_state, orjson.loads(orjson.dumps(state))))
        if isinstance(last, Generate) and not is_complete and sample.state not in FINAL_STATES:
            _compare(
                None,
                next_max_tokens=(sample.next_max_tokens, last.max_tokens),
                next_trigger=(sample.next_trigger, last.trigger),
                next_cue=(sample.next_cue, last.cue),
            )

    def _check_steps(self) -> None:
        sample = self._sample
        if sample.finish_reason is None:
            _compare(None, number_of_steps=(len(sample.steps), 0))
            return
        texts = [
            SegmentText(author=segment.author, trigger=segment.trigger, texts=segment.texts[: len(segment.token_ids)])
            for segment in sample.segments
        ]
        steps = split_steps(texts, sample.config.cues)
        _compare(None, number_of_steps=(len(sample.steps), len(steps)))
        for stored, step in zip(sample.steps, steps, strict=True):
            for field in fields(StoredStep):
                pair = (getattr(stored, field.name), getattr(step, field.name))
                _compare(None, **{f"step_{step.step_index}_{field.name}": pair})
