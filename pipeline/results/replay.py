"""Replay: what is stored of a sample is fed through its policy again, and every decision is compared.

A policy is a pure function of what the models wrote and of what was read of it, so that a stored run decides the same
again, to the token, or something is wrong with what is stored or with the policy. Replay needs no model: ids and
readings are checked against the hash that was stored with them, and never measured again. Seeds are computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict, assert_never

import orjson

from pipeline.chat.steps import split_steps
from pipeline.chat.translation import first_prompt_tokens
from pipeline.errors import PipelineError
from pipeline.policies.protocol import PolicyState, Reading, SampleContext, Transition
from pipeline.policies.requests import (
    Answered,
    Ask,
    Finish,
    Generate,
    Insert,
    Request,
    Take,
    Written,
    request_to_json,
)
from pipeline.results.stored import StoredSample, StoredStep, UnreadableSample
from pipeline.samples import FINAL_STATES, Author, ModelRole, Piece, SampleState, SegmentFinish
from pipeline.seeds import aside_seed, segment_seed
from pipeline.segments import StoredAside, StoredSegment
from pipeline.signals import Readings, SignalValues


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first place where what is stored is not what the policy decides.

    segment_index, aside_index: where it is; both None where it is about the sample as a whole. what: the thing that
    differs, e.g. "kept tokens".
    """

    segment_index: int | None
    what: str
    stored: Any
    replayed: Any
    aside_index: int | None = None

    def __str__(self) -> str:
        place = "the sample" if self.segment_index is None else f"segment {self.segment_index}"
        place = place if self.aside_index is None else f"aside {self.aside_index}"
        return f"{place}: {self.what}: stored {self.stored!r}, replayed {self.replayed!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What replaying one sample found."""

    sample_id: int
    job_id: int
    num_segments: int
    num_asides: int
    num_steps: int
    divergence: Divergence | None
    unreadable: str | None = None
    """Why what is stored of it cannot be read, and was not replayed."""

    @property
    def is_good(self) -> bool:
        """Whether all that is stored is what the policy decides."""
        return self.divergence is None and self.unreadable is None

    def __str__(self) -> str:
        if self.unreadable is not None:
            return f"sample {self.sample_id}: unreadable: {self.unreadable}"
        asides = f", {self.num_asides} asides" if self.num_asides else ""
        counted = f"{self.num_segments} segments{asides} and {self.num_steps} steps"
        if self.divergence is None:
            return f"sample {self.sample_id}: {counted} are what the policy decides"
        return f"sample {self.sample_id}, {counted}, diverges at {self.divergence}"


def replay(sample: StoredSample | UnreadableSample) -> Replay:
    """Feed what was written of a sample through its policy; says the first divergence. A sample at work is replayed so
    far, one that cannot be read is not.

    Raises PipelineError where the sample was written before what replay needs was stored.
    """
    if isinstance(sample, UnreadableSample):
        return Replay(
            sample_id=sample.sample_id,
            job_id=sample.job_id,
            num_segments=0,
            num_asides=0,
            num_steps=0,
            divergence=None,
            unreadable=sample.why,
        )
    divergence = None
    if _is_begun(sample):
        try:
            _Replayer(sample).run()
        except _Diverged as found:
            divergence = found.divergence
    return Replay(
        sample_id=sample.sample_id,
        job_id=sample.job_id,
        num_segments=len(sample.segments),
        num_asides=len(sample.asides),
        num_steps=len(sample.steps),
        divergence=divergence,
    )


def _is_begun(sample: StoredSample) -> bool:
    """Whether anything is, or must be, stored of what was written: a complete sample that has nothing lost it."""
    written = (sample.num_segments, sample.num_asides, sample.tokens_small, sample.tokens_large, sample.discarded_small)
    is_complete = sample.state in (SampleState.FINISHED, SampleState.GRADED)
    return is_complete or bool(sample.segments or sample.asides or any(written))


class _Diverged(Exception):
    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence)
        self.divergence = divergence


def _compare(at: StoredSegment | StoredAside | int | None, /, **pairs: tuple[Any, Any]) -> None:
    """what=(stored, replayed), …: raises at the first that differ. at: what they are about, or a segment's place."""
    for what, (stored, replayed) in pairs.items():
        if stored != replayed:
            segment_index = at.segment_index if isinstance(at, StoredSegment) else None
            raise _Diverged(
                Divergence(
                    segment_index=at if isinstance(at, int) else segment_index,
                    aside_index=at.aside_index if isinstance(at, StoredAside) else None,
                    what=what.replace("_", " "),
                    stored=stored,
                    replayed=replayed,
                )
            )


class _SeedParts(TypedDict):
    job_seed: int
    problem_id: str
    sample_index: int
    role: ModelRole


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
            think_start=sample.think_start or "",
            think_end=sample.think_end,
            think_opened=sample.think_opened is not False,
            num_prompt_tokens=first_prompt_tokens(lengths) or 0,
        )
        self._num_segments = 0
        self._num_asides = 0
        self._num_takeovers = 0
        self._kept: Counter[Author] = Counter()
        self._discarded: Counter[Author] = Counter()
        self._aside: Counter[Author] = Counter()
        self._taken: Counter[Author] = Counter()

    def run(self) -> None:
        transition = self._policy.start(self._context)
        while True:
            self._check_parts(transition.insert)
            following = self._follow(transition.then, transition.state)
            if following is None:
                break
            transition = following
        self._check_counts()
        self._check_end(transition)
        self._check_steps()

    def _follow(self, then: Request | Finish, state: PolicyState) -> Transition | None:
        """What the policy makes of what was written for its request; None where nothing more is stored."""
        sample = self._sample
        if self._num_segments == len(sample.segments) and self._num_asides == len(sample.asides):
            return None
        match then:
            case Finish():
                return None
            case Generate():
                return self._check_written(self._next_segment(then.trigger), then, state)
            case Ask():
                return self._check_answered(self._next_aside(then.purpose), then, state)
            case _:
                assert_never(then)

    def _next_segment(self, trigger: str) -> StoredSegment:
        """The segment that stands where the policy wants one."""
        index = self._num_segments
        if index >= len(self._sample.segments):
            raise _Diverged(Divergence(segment_index=index, what="segment", stored=None, replayed=trigger))
        segment = self._sample.segments[index]
        _compare(index, place=(segment.segment_index, index))
        self._num_segments += 1
        return segment

    def _next_aside(self, purpose: str) -> StoredAside:
        """The aside that stands where the policy asks."""
        index = self._num_asides
        if index >= len(self._sample.asides):
            raise _Diverged(
                Divergence(segment_index=None, aside_index=index, what="aside", stored=None, replayed=purpose)
            )
        aside = self._sample.asides[index]
        _compare(aside, place=(aside.aside_index, index), after_segment=(aside.after_segment, self._num_segments))
        self._num_asides += 1
        return aside

    # What the policy puts in.

    def _check_parts(self, parts: Sequence[Take | Insert]) -> None:
        for part in parts:
            match part:
                case Insert():
                    segment = self._next_segment(part.trigger)
                    _compare(segment, author=(segment.author, Author.INSERTED), text=(segment.text, part.text))
                    _compare(segment, trigger=(segment.trigger, part.trigger), taken_from=(segment.taken_from, None))
                case Take():
                    segment = self._next_segment("take")
                    self._check_taken(segment, part)
                case _:
                    assert_never(part)
            self._check_no_request(segment, takes_over=isinstance(part, Take) and part.takes_over)

    def _check_taken(self, segment: StoredSegment, take: Take) -> None:
        _compare(segment, taken_from=(segment.taken_from, take.index))
        if not 0 <= take.index < self._num_asides:
            raise _Diverged(
                Divergence(segment_index=segment.segment_index, what="aside", stored=None, replayed=take.index)
            )
        aside = self._sample.asides[take.index]
        head = aside.piece.head(take.num_tokens)
        _compare(
            segment,
            author=(segment.author, aside.author),
            trigger=(segment.trigger, aside.purpose),
            taken_tokens=(tuple(segment.token_ids), head.token_ids),
            text=(segment.text, head.text),
        )
        self._taken[segment.author] += len(segment.token_ids)

    def _check_no_request(self, segment: StoredSegment, *, takes_over: bool) -> None:
        """It was put in by the policy, not written for a request."""
        _compare(
            segment,
            takeover=(segment.takes_over, takes_over),
            discarded_tokens=(len(segment.discarded_ids), 0),
            finish=(segment.finish, None),
            tokens_generated=(segment.tokens_generated, 0),
        )
        self._check_hash(segment)
        self._kept[segment.author] += len(segment.token_ids)
        self._num_takeovers += segment.takes_over

    # What was written for its requests.

    def _check_written(self, segment: StoredSegment, asked: Generate, state: PolicyState) -> Transition:
        _compare(
            segment,
            author=(segment.author, Author(asked.role.value)),
            trigger=(segment.trigger, asked.trigger),
            cue=(segment.cue, asked.cue),
            takeover=(segment.takes_over, asked.takes_over),
            taken_from=(segment.taken_from, None),
        )
        self._check_resumptions(segment)
        start_token = segment.resumed_at[-1] if segment.resumed_at else 0
        seed = segment_seed(segment_index=segment.segment_index, start_token=start_token, **self._seeds(asked))
        self._check_seed(segment, seed)
        token_ids = (*segment.token_ids, *segment.discarded_ids)
        _compare(
            segment,
            tokens_with_a_length=(len(segment.token_lengths), len(token_ids)),
            characters=(len(segment.text + segment.discarded_text), sum(segment.token_lengths)),
        )
        piece = Piece(token_ids=token_ids, texts=segment.texts)
        event = Written(
            role=asked.role,
            piece=piece,
            finish=self._check_request(segment, piece, asked, state),
            start_token=self._kept.total(),
            signals=segment.signals,
        )
        transition = self._policy.advance(self._context, state, event)
        _compare(segment, kept_tokens=(len(segment.token_ids), transition.keep))
        self._check_reading(segment, transition.reading)
        self._kept[segment.author] += len(segment.token_ids)
        self._discarded[segment.author] += len(segment.discarded_ids)
        self._num_takeovers += segment.takes_over
        return transition

    def _check_answered(self, aside: StoredAside, asked: Ask, state: PolicyState) -> Transition:
        _compare(
            aside,
            author=(aside.author, Author(asked.role.value)),
            purpose=(aside.purpose, asked.purpose),
            question=(aside.question, asked.question),
            turn=(aside.turn, asked.turn),
            opening=(aside.opening, asked.opening),
            after_asides=([list(pair) for pair in aside.after_asides], [list(pair) for pair in asked.after]),
            is_greedy=(aside.seed is None, asked.greedy or not aside.tokens_generated),
            tokens_with_a_length=(len(aside.token_lengths), len(aside.token_ids)),
            characters=(len(aside.text), sum(aside.token_lengths)),
        )
        if not asked.greedy:
            self._check_seed(aside, aside_seed(aside_index=aside.aside_index, **self._seeds(asked)))
        event = Answered(
            index=aside.aside_index,
            role=asked.role,
            piece=aside.piece,
            finish=self._check_request(aside, aside.piece, asked, state),
            start_token=self._kept.total(),
            top=tuple(aside.top),
            labels=aside.labels,
            signals=aside.signals,
        )
        transition = self._policy.advance(self._context, state, event)
        _compare(aside, kept_tokens=(None, transition.keep))
        self._check_reading(aside, transition.reading)
        self._aside[aside.author] += len(aside.token_ids)
        return transition

    def _seeds(self, asked: Request) -> _SeedParts:
        """What every seed of the sample is made of."""
        return {
            "job_seed": self._context.job_seed,
            "problem_id": self._context.problem_id,
            "sample_index": self._context.sample_index,
            "role": asked.role,
        }

    def _check_resumptions(self, segment: StoredSegment) -> None:
        """Where a later claim went on behind a stored part: within the segment, each behind the one before."""
        places = list(segment.resumed_at or ())
        num_tokens = len(segment.token_ids) + len(segment.discarded_ids)
        possible = sorted({place for place in places if 0 < place <= num_tokens})
        _compare(segment, resumptions=(places, possible))

    def _check_seed(self, stored: StoredSegment | StoredAside, seed: int) -> None:
        """A request that the engine never had drew nothing and has none."""
        _compare(stored, seed=(stored.seed, seed if stored.tokens_generated else None))

    def _check_request(
        self, stored: StoredSegment | StoredAside, piece: Piece, asked: Request, state: PolicyState
    ) -> SegmentFinish:
        """Whether the request ended where, and as, it had to; how it did."""
        if stored.finish is None:
            _compare(stored, finish=(None, "of a request"))
        watcher = self._policy.watcher(self._context, state)
        texts = zip(piece.texts, _readings(stored.signals, len(piece)), strict=True)
        ended_by_watcher = watcher is not None and any(watcher.feed(text, readings) for text, readings in texts)
        finish = SegmentFinish(stored.finish or SegmentFinish.LENGTH)
        _compare(
            stored,
            ended_by_the_watcher=(finish is SegmentFinish.WATCH, ended_by_watcher),
            tokens_generated=(
                stored.tokens_generated,
                len(piece) - _written_before(stored) + (finish is SegmentFinish.EOS),
            ),
            is_longer_than_asked=(stored.tokens_generated + _written_before(stored) > asked.max_tokens, False),
            signals=(sorted(stored.signals), sorted(asked.signals)),
        )
        return finish

    def _check_reading(self, stored: StoredSegment | StoredAside, reading: Reading | None) -> None:
        _compare(
            stored,
            value=(stored.value, reading.value if reading else None),
            threshold=(stored.threshold, reading.threshold if reading else None),
            outcome=(stored.outcome, reading.outcome if reading else None),
        )
        self._check_hash(stored)

    def _check_hash(self, stored: StoredSegment | StoredAside) -> None:
        if stored.content_sha256 is not None:
            _compare(stored, hash_of_what_was_written=(stored.content_sha256, stored.sha256))

    # The sample as a whole.

    def _check_counts(self) -> None:
        sample = self._sample
        for surplus in sample.segments[self._num_segments :]:
            _compare(surplus, segment=(surplus.trigger, None))
        for aside in sample.asides[self._num_asides :]:
            _compare(aside, aside=(aside.purpose, None))
        _compare(
            None,
            number_of_segments=(sample.num_segments, self._num_segments),
            number_of_asides=(sample.num_asides, self._num_asides),
            takeovers=(sample.num_takeovers, self._num_takeovers),
            tokens_small=(sample.tokens_small, self._kept[Author.SMALL]),
            tokens_large=(sample.tokens_large, self._kept[Author.LARGE]),
            tokens_inserted=(sample.tokens_inserted, self._kept[Author.INSERTED]),
            discarded_small=(sample.discarded_small, self._discarded[Author.SMALL]),
            discarded_large=(sample.discarded_large, self._discarded[Author.LARGE]),
            aside_small=(sample.aside_small, self._aside[Author.SMALL]),
            aside_large=(sample.aside_large, self._aside[Author.LARGE]),
            aside_judge=(sample.aside_judge, self._aside[Author.JUDGE]),
            taken_small=(sample.taken_small, self._taken[Author.SMALL]),
            taken_large=(sample.taken_large, self._taken[Author.LARGE]),
        )

    def _check_end(self, last: Transition) -> None:
        """last: the policy's, after all that is stored."""
        sample = self._sample
        reason = last.then.reason if isinstance(last.then, Finish) else None
        request = None if isinstance(last.then, Finish) else _as_stored(request_to_json(last.then))
        is_complete = sample.state in (SampleState.FINISHED, SampleState.GRADED)
        if is_complete or sample.state not in FINAL_STATES:
            _compare(None, finish_reason=(sample.finish_reason, reason))
        if sample.state is not SampleState.FAILED:
            _compare(
                None,
                policy_state=(sample.policy_state, _as_stored(last.state)),
                next_request=(sample.next_request, request),
            )

    def _check_steps(self) -> None:
        sample = self._sample
        if sample.finish_reason is None:
            _compare(None, number_of_steps=(len(sample.steps), 0))
            return
        steps = split_steps(sample.segments, sample.config.cues)
        _compare(None, number_of_steps=(len(sample.steps), len(steps)))
        for stored, step in zip(sample.steps, steps, strict=True):
            for field in fields(StoredStep):
                pair = (getattr(stored, field.name), getattr(step, field.name))
                _compare(None, **{f"step_{step.step_index}_{field.name}": pair})


def _written_before(stored: StoredSegment | StoredAside) -> int:
    """Tokens that earlier claims wrote."""
    return stored.resumed_at[-1] if isinstance(stored, StoredSegment) and stored.resumed_at else 0


def _readings(signals: SignalValues, num_tokens: int) -> Iterable[Readings | None]:
    """What a watcher is given with each token: None where no signal was asked for."""
    if not signals:
        return [None] * num_tokens
    return [{signal: values[place] for signal, values in signals.items()} for place in range(num_tokens)]


def _as_stored(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))
