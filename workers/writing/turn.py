"""One sample in a worker's hands: from the claim to requests, from their results to the commit.

Pure: no engine, no database. ``workers.writing.writer`` calls these between its stages. What the policy asks of the
role that this worker has is carried out at once; what was written is gathered, and committed once when the role
changes, at the end, or after so much that a crash would cost too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, assert_never

from pydantic import ValidationError

from pipeline.chat.steps import split_steps
from pipeline.db.claims import ClaimedSample
from pipeline.db.commits import SampleCommit
from pipeline.errors import BadProblem, DamagedRow, EngineError, PipelineError, PromptTooLong
from pipeline.policies.protocol import Reading, SampleContext, Transition
from pipeline.policies.requests import (
    Answered,
    Ask,
    Finish,
    Generate,
    Insert,
    Request,
    Take,
    Written,
    request_from_json,
)
from pipeline.samples import RUNNABLE_STATE, Author, ErrorClass, FinishReason, Piece, SampleState, SegmentFinish
from pipeline.segments import WrittenAside, WrittenSegment, storable
from workers.engine.base import GenerateRequest, GenerateResult
from workers.writing.active import ActiveSample
from workers.writing.job_setup import JobSetup
from workers.writing.latch import Latch
from workers.writing.requests import engine_request

STAY_TOKENS = 2048
STAY_REQUESTS = 64
"""A claim ends between two requests once it has so many tokens or requests, whoever writes next. No request is cut for
that: a crash loses fewer than STAY_TOKENS gathered tokens, and the running request."""

_EMPTY = Piece(token_ids=(), texts=())

Step: TypeAlias = GenerateRequest | SampleCommit
"""What comes next of a claimed sample: another request to the engine, or its end here."""


# From the claim to the first request.


def begin(sample: ClaimedSample, setup: JobSetup, latch: Latch) -> tuple[ActiveSample, Step]:
    """What a claimed sample needs first.

    Raises DamagedRow for a row that nobody can go on with, and PromptTooLong where the model has no room for the first
    word.
    """
    if sample.context.fault is not None:
        raise DamagedRow(f"what is stored of the sample's text cannot be read: {sample.context.fault}")
    prompt_ids = setup.prompt_ids(sample.problem_id, sample.problem)
    context = SampleContext(
        job_seed=setup.config.seed,
        problem_id=sample.problem.external_id,
        sample_index=sample.sample_index,
        max_tokens=sample.budget or setup.config.sampling.max_tokens,
        think_start=setup.think.start,
        think_end=setup.think.end,
        think_opened=setup.think.opened,
        num_prompt_tokens=sample.num_prompt_tokens or len(prompt_ids),
    )
    first = _first_transition(sample, setup, context)
    active = ActiveSample(
        sample=sample, setup=setup, context=context, prompt_ids=prompt_ids, state=first.state, latch=latch
    )
    _insert(active, first.insert)
    return active, _go_on(active, first.then, may_stay=True)


def _first_transition(sample: ClaimedSample, setup: JobSetup, context: SampleContext) -> Transition:
    """How a claim begins: as the policy starts, or where the sample's last commit left it."""
    if sample.policy_state is None and sample.next_request is None:
        first = _decided(setup, partial(setup.policy.start, context))
        if first.keep is not None or (not isinstance(first.then, Finish) and first.then.role is not setup.role):
            raise PipelineError(f"{setup.policy_label} opens with {first}, but a {setup.role} worker has the sample")
        return first
    request = request_from_json(sample.next_request)
    if sample.policy_state is None or request.role is not setup.role:
        raise DamagedRow(f"the stored request {request} is not one that a {setup.role} worker can go on with")
    return Transition(state=sample.policy_state, then=request)


# From a result to what comes next.


def apply_result(
    active: ActiveSample, result: GenerateResult, *, may_stay: bool = True, ended_at: float | None = None
) -> Step:
    """What the policy makes of what was written.

    may_stay: whether another request may be carried out in this claim. ended_at: when the result came, by
    ``time.monotonic``.
    """
    active.num_tokens += result.num_generated_tokens
    active.ended_at = ended_at
    return _go_on(active, _advance(active, result), may_stay=may_stay)


def _go_on(active: ActiveSample, then: Request | Finish, *, may_stay: bool) -> Step:
    """Carry out what the policy decided last, as far as this worker can."""
    while not isinstance(then, Finish):
        if then.role is not active.setup.role or not (may_stay and _stays(active)):
            return _commit(active, RUNNABLE_STATE[then.role], then=then)
        active.request = then
        active.num_requests += 1
        active.engine_request = engine_request(active, then)
        if active.engine_request is not None:
            return active.engine_request
        then = _advance(active, None)
    _require_room(active, then)
    return _commit(active, SampleState.FINISHED, then=then)


def _require_room(active: ActiveSample, end: Finish) -> None:
    """Raises PromptTooLong where a text ends before its first word, for want of room behind the prompt."""
    if end.reason is not FinishReason.CONTEXT or active.text:
        return
    if not any(len(active.aside(index).piece) for index in range(active.num_asides)):
        raise PromptTooLong(active.setup.chat.name, len(active.prompt_ids), active.setup.max_model_len)


def _stays(active: ActiveSample) -> bool:
    return active.num_requests < STAY_REQUESTS and active.num_tokens < STAY_TOKENS


def _advance(active: ActiveSample, result: GenerateResult | None) -> Request | Finish:
    """Gather what was written and take the policy's next step. result: None where the context had no room."""
    request = active.request
    match request:
        case Generate():
            transition = _keep(active, request, result)
        case Ask():
            transition = _answer(active, request, result)
        case None:
            raise PipelineError("a result came for a sample that has asked for nothing")
        case _:
            assert_never(request)
    active.state = transition.state
    _insert(active, transition.insert)
    return transition.then


def _keep(active: ActiveSample, request: Generate, result: GenerateResult | None) -> Transition:
    event = Written(
        role=request.role,
        piece=_piece(active, result),
        finish=result.finish if result else SegmentFinish.LENGTH,
        start_token=active.num_kept,
        signals=result.signals if result else dict.fromkeys(request.signals, ()),
    )
    transition = _decided(active.setup, partial(active.setup.policy.advance, active.context, active.state, event))
    if transition.keep is None or not 0 <= transition.keep <= len(event.piece):
        raise PipelineError(
            f"{active.setup.policy_label} keeps {transition.keep} of {len(event.piece)} tokens that were written; "
            "give keep a number from 0 to that"
        )
    active.segments.append(
        WrittenSegment(
            author=Author(request.role.value),
            trigger=request.trigger,
            cue=request.cue,
            takes_over=request.takes_over,
            piece=event.piece,
            num_kept=transition.keep,
            finish=event.finish,
            vocabulary_sha256=active.setup.chat.vocabulary_sha256,
            signals=event.signals,
            resumed_at=_resumed_at(active),
            **_reading(active.setup, transition.reading),
            **_costs(active, result),
        )
    )
    return transition


def _resumed_at(active: ActiveSample) -> tuple[int, ...] | None:
    """Where this and earlier claims went on within the segment; None where it was written in one go."""
    open_segment = active.sample.open_segment
    if active.engine_request is None or not active.engine_request.written or open_segment is None:
        return None
    return (*open_segment.resumed_at, len(open_segment.token_ids))


def _answer(active: ActiveSample, request: Ask, result: GenerateResult | None) -> Transition:
    event = Answered(
        index=active.num_asides,
        role=request.role,
        piece=_piece(active, result),
        finish=result.finish if result else SegmentFinish.LENGTH,
        start_token=active.num_kept,
        top=result.top if result else (),
        labels=result.labels if result else {},
        signals=result.signals if result else dict.fromkeys(request.signals, ()),
    )
    transition = _decided(active.setup, partial(active.setup.policy.advance, active.context, active.state, event))
    if transition.keep is not None:
        raise PipelineError(
            f"{active.setup.policy_label} keeps {transition.keep} tokens of an answer; only Take keeps any"
        )
    active.asides.append(
        WrittenAside(
            author=Author(request.role.value),
            aside_index=event.index,
            after_segment=active.num_segments,
            purpose=request.purpose,
            question=request.question,
            turn=request.turn,
            opening=request.opening,
            after_asides=request.after,
            piece=event.piece,
            finish=event.finish,
            top=event.top,
            labels=event.labels,
            vocabulary_sha256=active.setup.chat.vocabulary_sha256,
            signals=event.signals,
            **_reading(active.setup, transition.reading),
            **_costs(active, result),
        )
    )
    return transition


def _decided(setup: JobSetup, decide: Callable[[], Transition]) -> Transition:
    """What the policy decides. Raises PipelineError that names it, where it makes what no policy may."""
    try:
        return decide()
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors())
        raise PipelineError(f"{setup.policy_label}: {error.title} cannot be so: {'; '.join(faults)}") from error
    except ValueError as error:
        raise PipelineError(f"{setup.policy_label}: {error}") from error


def _piece(active: ActiveSample, result: GenerateResult | None) -> Piece:
    return active.setup.translator.piece_to_job(result.piece) if result else _EMPTY


def _reading(setup: JobSetup, reading: Reading | None) -> dict[str, Any]:
    if reading is None:
        return {}
    if not (math.isfinite(reading.value) and math.isfinite(reading.threshold)):
        raise PipelineError(f"{setup.policy_label} decided by {reading}, which is no number that can be stored")
    return {"value": float(reading.value), "threshold": float(reading.threshold), "outcome": reading.outcome}


def _costs(active: ActiveSample, result: GenerateResult | None) -> dict[str, Any]:
    """What a request cost; nothing where the engine never had it. Only a claim's first one has waited for a worker."""
    waited = {"wait_seconds": active.sample.wait_seconds} if active.num_requests == 1 else {}
    if result is None or active.engine_request is None:
        return waited
    return waited | {
        "tokens_generated": result.num_generated_tokens,
        "prompt_tokens": result.num_prompt_tokens,
        "cached_tokens": result.num_cached_tokens,
        "seed": active.engine_request.seed,
        "queue_seconds": result.queue_seconds,
        "first_token_seconds": result.first_token_seconds,
        "write_seconds": result.total_seconds,
        "ended_at": active.ended_at,
    }


def _insert(active: ActiveSample, parts: Iterable[Take | Insert]) -> None:
    """Put into the text what the policy puts in."""
    for part in parts:
        match part:
            case Insert():
                active.segments.append(_inserted(active.setup, part))
            case Take():
                active.segments.append(active.take(part.index, part.num_tokens, takes_over=part.takes_over))
            case _:
                assert_never(part)


def _inserted(setup: JobSetup, insert: Insert) -> WrittenSegment:
    token_ids = setup.chat.encode_text(setup.translator.from_job(storable(insert.text)))
    piece = setup.translator.piece_to_job(setup.chat.piece(token_ids))
    return WrittenSegment(
        author=Author.INSERTED,
        trigger=insert.trigger,
        piece=piece,
        num_kept=len(piece),
        vocabulary_sha256=setup.chat.vocabulary_sha256,
    )


# Commits.


def _commit(active: ActiveSample, to_state: SampleState, *, then: Request | Finish) -> SampleCommit:
    """All that was gathered, and the state it leads to."""
    is_finished = isinstance(then, Finish)
    return SampleCommit(
        sample_id=active.sample.sample_id,
        epoch=active.sample.epoch,
        to_state=to_state,
        segments=tuple(active.segments),
        num_segments_before=len(active.sample.context.segments),
        num_asides_before=len(active.sample.context.asides),
        runnable_at=active.sample.runnable_at,
        asides=tuple(active.asides),
        policy_state=active.state,
        next_request=None if isinstance(then, Finish) else then,
        finish_reason=then.reason if isinstance(then, Finish) else None,
        steps=split_steps(active.text, active.setup.config.cues) if is_finished else (),
    )


def commit_gathered(active: ActiveSample) -> SampleCommit | None:
    """Commits what was gathered before the running request, and stores that request for the next claim; None where
    nothing was gathered."""
    if active.request is None or not (active.segments or active.asides):
        return None
    return _commit(active, RUNNABLE_STATE[active.setup.role], then=active.request)


def failed(sample: ClaimedSample | SampleCommit, error: BaseException) -> SampleCommit:
    """What sets a sample aside with its error, at its last committed segment. sample: the claim, or its commit."""
    return SampleCommit(
        sample_id=sample.sample_id,
        epoch=sample.epoch,
        runnable_at=sample.runnable_at,
        to_state=SampleState.FAILED,
        error_class=error_class(error),
        error=storable(f"{type(error).__name__}: {error}"),
    )


_ERROR_CLASSES: tuple[tuple[type[BaseException], ErrorClass], ...] = (
    (PromptTooLong, ErrorClass.BUDGET),
    (EngineError, ErrorClass.ENGINE_REFUSED),
    (BadProblem, ErrorClass.BAD_INPUT),
)


def error_class(error: BaseException) -> ErrorClass:
    """What kind of failure an error is: the first line of the table that fits, else a fault of the pipeline."""
    return next((kind for raised, kind in _ERROR_CLASSES if isinstance(error, raised)), ErrorClass.INTERNAL)
