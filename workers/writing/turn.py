"""One sample on its way through a worker: from the claim to the request, from the answer to the hop.

Pure: no engine, no database. ``workers.writing.writer`` calls these between its stages.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.chat.steps import SegmentText, split_steps
from pipeline.chat.translation import Listener, Part, ThinkPhase
from pipeline.db.hops import ClaimedSample, Hop, SegmentRecord, storable
from pipeline.errors import BadProblem, EngineError, PipelineError, PromptTooLong
from pipeline.jobs.config import JobConfig
from pipeline.policies.base import (
    Decision,
    Finish,
    Generate,
    Insert,
    Keep,
    Policy,
    PolicyState,
    SampleContext,
    Watcher,
    Written,
)
from pipeline.policies.reading.cues import CueLists
from pipeline.samples import (
    RUNNABLE_STATE,
    Author,
    ErrorClass,
    FinishReason,
    ModelRole,
    Piece,
    SampleState,
)
from workers.engine.base import GenerateRequest, GenerateResult, Sampling
from workers.writing.seeds import segment_seed

MAX_PROMPTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSetup:
    """What all samples of a job share in one worker."""

    config: JobConfig
    policy: Policy
    think_end: str
    listener: Listener
    sampling: Sampling
    prompts: dict[int, list[int]] = field(default_factory=dict)
    """Rendered prompts by problem id, at most MAX_PROMPTS: a sample comes again after each takeover."""

    @classmethod
    def of(cls, config: JobConfig, think: ThinkPhase, chat: ChatModel) -> JobSetup:
        """Raises ConfigurationError where the model cannot write this job's texts."""
        sampling = config.sampling
        return cls(
            config=config,
            policy=config.build_policy(),
            think_end=think.end,
            listener=Listener(chat, think),
            sampling=Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
            ),
        )


class Countdown:
    """Waits until a number of things have happened; while some have not, more may be added."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()
        self._done = threading.Event()
        if count == 0:
            self._done.set()

    def add(self) -> None:
        with self._lock:
            self._left += 1

    def tick(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._done.wait(timeout_s)


@dataclass(slots=True, kw_only=True, eq=False)
class Work:
    """A claimed sample in this process."""

    sample: ClaimedSample
    setup: JobSetup
    context: SampleContext
    role: ModelRole
    state: PolicyState
    generate: Generate
    inserted: tuple[SegmentRecord, ...]
    """What the policy put in before anybody wrote."""
    request: GenerateRequest
    countdown: Countdown
    abandoned: bool = False
    """Taken away (cancelled, rescued, handed back): whatever it still gives is dropped."""
    committing: bool = False
    """Its hop is on the way to the database, which decides from here on."""


def prepare(
    sample: ClaimedSample,
    setup: JobSetup,
    *,
    role: ModelRole,
    chat: ChatModel,
    countdown: Countdown,
    max_model_len: int,
) -> Work | Hop:
    """The request that goes on with a sample, or the hop that ends it because its model's context is full."""
    prompt_ids = _prompt_ids(sample, setup, chat)
    context = SampleContext(
        job_seed=setup.config.seed,
        problem_id=sample.problem.external_id,
        sample_index=sample.sample_index,
        max_tokens=sample.budget or setup.config.sampling.max_tokens,
        think_end=setup.think_end,
        num_prompt_tokens=sample.num_prompt_tokens or len(prompt_ids),
    )
    state, generate, inserted = _next(sample, setup.policy, context, role, chat)
    token_ids = [*prompt_ids, *output_ids(sample, setup, inserted, role=role, chat=chat)]
    room = max_model_len - len(token_ids)
    if room <= 0:
        return _context_full(sample, setup.config.cues, chat.name, len(token_ids), max_model_len)
    segment_index = len(sample.context) + len(inserted)
    seed = segment_seed(
        job_seed=context.job_seed,
        problem_id=context.problem_id,
        sample_index=context.sample_index,
        segment_index=segment_index,
        role=role,
    )
    request = GenerateRequest(
        request_id=f"{sample.sample_id}-{sample.epoch}",
        prompt_ids=token_ids,
        max_tokens=min(generate.max_tokens, room),
        sampling=setup.sampling,
        seed=seed,
        priority=-1 if sample.context else 0,  # resumed samples first: they end sooner and free their cache
        watcher=_listening(setup.policy.watcher(context, state), setup.listener),
    )
    return Work(
        sample=sample,
        setup=setup,
        context=context,
        role=role,
        state=state,
        generate=generate,
        inserted=inserted,
        request=request,
        countdown=countdown,
    )


def _prompt_ids(sample: ClaimedSample, setup: JobSetup, chat: ChatModel) -> list[int]:
    known = setup.prompts.get(sample.problem_id)
    if known is not None:
        return known
    try:
        token_ids = chat.prompt_ids(render_user_message(setup.config.prompt_template, sample.problem))
    except Exception as error:  # a template may break on a problem in any way
        raise BadProblem(sample.problem.external_id, error) from error
    if len(setup.prompts) >= MAX_PROMPTS:
        setup.prompts.clear()
    setup.prompts[sample.problem_id] = token_ids
    return token_ids


def _next(
    sample: ClaimedSample,
    policy: Policy,
    context: SampleContext,
    role: ModelRole,
    chat: ChatModel,
) -> tuple[PolicyState, Generate, tuple[SegmentRecord, ...]]:
    if sample.policy_state is not None:
        generate = Generate(
            role=role,
            max_tokens=sample.max_tokens or 1,
            trigger=sample.trigger or "",
            cue=sample.cue,
        )
        return sample.policy_state, generate, ()
    first = policy.start(context)
    *before, generate_first = first.decisions
    if not isinstance(generate_first, Generate) or generate_first.role is not role:
        raise PipelineError(f"the policy opens with {generate_first}, but a {role} worker has the sample")
    return first.state, generate_first, insertions(before, chat)


def insertions(decisions: Sequence[Decision], chat: ChatModel) -> tuple[SegmentRecord, ...]:
    """The segments of the policy's own sentences."""
    records = []
    for decision in decisions:
        if isinstance(decision, Insert):
            piece = chat.piece(chat.encode_text(decision.text))
            records.append(
                SegmentRecord(
                    author=Author.INSERTED,
                    trigger=decision.trigger,
                    cue="",
                    piece=piece,
                    num_kept=len(piece),
                )
            )
    return tuple(records)


def output_ids(
    sample: ClaimedSample, setup: JobSetup, inserted: Sequence[SegmentRecord], *, role: ModelRole, chat: ChatModel
) -> list[int]:
    """All kept output as this worker's ids, as they were generated wherever that can be: the prefix cache has those."""
    parts = [
        Part(
            piece=segment.piece,
            vocabulary_sha256=segment.vocabulary_sha256,
            is_own=segment.author.value == role.value,
        )
        for segment in sample.context
    ]
    parts += [Part(piece=record.piece, vocabulary_sha256=chat.vocabulary_sha256, is_own=True) for record in inserted]
    return setup.listener.output_ids(parts)


class _Translated:
    """A watcher that reads the job's text while the model writes its own."""

    def __init__(self, watcher: Watcher, listener: Listener) -> None:
        self._watcher = watcher
        self._listener = listener

    def feed(self, text: str) -> bool:
        return self._watcher.feed(self._listener.say(text))


def _listening(watcher: Watcher | None, listener: Listener) -> Watcher | None:
    return _Translated(watcher, listener) if watcher and listener.translates else watcher


def _context_full(sample: ClaimedSample, cues: CueLists, model: str, num_tokens: int, max_model_len: int) -> Hop:
    if not sample.context:
        return failed(sample, PromptTooLong(model, num_tokens, max_model_len))
    return Hop(
        sample_id=sample.sample_id,
        epoch=sample.epoch,
        to_state=SampleState.FINISHED,
        num_segments_before=len(sample.context),
        policy_state=sample.policy_state,
        finish_reason=FinishReason.CONTEXT,
        steps=tuple(split_steps(_segment_texts(sample, ()), cues)),
    )


def failed(sample: ClaimedSample, error: BaseException) -> Hop:
    """The hop that sets a sample aside with its error, at its last committed segment."""
    return set_aside(Hop(sample_id=sample.sample_id, epoch=sample.epoch, to_state=SampleState.FAILED), error)


def set_aside(hop: Hop, error: BaseException) -> Hop:
    """The hop that ends a sample with an error instead of storing what was to be stored."""
    return Hop(
        sample_id=hop.sample_id,
        epoch=hop.epoch,
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


def conclude(work: Work, result: GenerateResult, chat: ChatModel) -> Hop:
    """What the policy makes of what was written: the segments to store and the state they lead to."""
    start_token = sum(len(segment.piece) for segment in work.sample.context)
    start_token += sum(len(record.piece) for record in work.inserted)
    piece = work.setup.listener.said(result.piece)
    event = Written(role=work.role, piece=piece, finish=result.finish, start_token=start_token)
    transition = work.setup.policy.advance(work.context, work.state, event)
    keep, *between, last = transition.decisions
    if not isinstance(keep, Keep) or not isinstance(last, Generate | Finish):
        raise PipelineError(
            f"the policy answered {transition.decisions}; it must begin with Keep and end with one of Generate, Finish"
        )
    segments = (
        *work.inserted,
        _record(work, result, piece, keep.num_tokens),
        *insertions(between, chat),
    )
    if isinstance(last, Finish):
        return _hop(work, segments, SampleState.FINISHED, transition.state, finish=last)
    return _hop(work, segments, RUNNABLE_STATE[last.role], transition.state, generate=last)


def _hop(
    work: Work,
    segments: tuple[SegmentRecord, ...],
    to_state: SampleState,
    policy_state: PolicyState,
    *,
    generate: Generate | None = None,
    finish: Finish | None = None,
) -> Hop:
    steps = split_steps(_segment_texts(work.sample, segments), work.setup.config.cues) if finish else ()
    return Hop(
        sample_id=work.sample.sample_id,
        epoch=work.sample.epoch,
        to_state=to_state,
        segments=segments,
        num_segments_before=len(work.sample.context),
        is_takeover=work.role is ModelRole.SMALL and to_state is SampleState.AWAITING_LARGE,
        policy_state=policy_state,
        next_max_tokens=generate.max_tokens if generate else None,
        next_trigger=generate.trigger if generate else None,
        next_cue=generate.cue if generate else None,
        finish_reason=finish.reason if finish else None,
        steps=tuple(steps),
    )


def _record(work: Work, result: GenerateResult, piece: Piece, num_kept: int) -> SegmentRecord:
    return SegmentRecord(
        author=Author(work.role.value),
        trigger=work.generate.trigger,
        cue=work.generate.cue,
        piece=piece,
        num_kept=num_kept,
        finish=result.finish,
        tokens_generated=result.num_generated_tokens,
        prompt_tokens=result.num_prompt_tokens,
        cached_tokens=result.num_cached_tokens,
        seed=work.request.seed,
        wait_seconds=work.sample.wait_seconds,
        queue_seconds=result.queue_seconds,
        first_token_seconds=result.first_token_seconds,
        write_seconds=result.total_seconds,
    )


def _segment_texts(sample: ClaimedSample, new: Sequence[SegmentRecord]) -> list[SegmentText]:
    before = [
        SegmentText(author=segment.author, trigger=segment.trigger, texts=segment.piece.texts)
        for segment in sample.context
    ]
    return before + [
        SegmentText(
            author=record.author,
            trigger=record.trigger,
            texts=record.piece.texts[: record.num_kept],
        )
        for record in new
    ]
