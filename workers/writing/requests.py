"""What a policy asks for, as the engine takes it: ids, seed, priority, watcher, signals and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never

from pipeline.chat.frames import split_text
from pipeline.errors import PipelineError, PromptTooLong
from pipeline.policies.protocol import Watcher
from pipeline.policies.requests import Ask, Generate, Request
from pipeline.samples import Author, SegmentFinish
from pipeline.seeds import aside_seed, segment_seed
from pipeline.segments import Segment
from pipeline.signals import Readings
from workers.engine.base import GenerateRequest
from workers.writing.active import ActiveSample
from workers.writing.job_setup import JobSetup
from workers.writing.questions import Question


def engine_request(active: ActiveSample, request: Request) -> GenerateRequest | None:
    """The request as the engine takes it; None where the model's context has no room for its first token."""
    setup = active.setup
    match request:
        case Generate():
            token_ids = _prompt(active, active.text)
            more = _of_generate(active, min(request.max_tokens, setup.max_model_len - len(token_ids)))
        case Ask():
            question = setup.questions.get(request)
            heads = [active.take(index, num_tokens) for index, num_tokens in request.after]
            token_ids = _asked(active, request, [*active.text, *heads], question)
            more = _of_ask(active, request, question.labels)
        case _:
            assert_never(request)
    room = setup.max_model_len - len(token_ids)
    if room <= 0:
        if isinstance(request, Generate):
            _require_progress(active, len(token_ids))
        return None
    return GenerateRequest(
        request_id=active.request_id,
        prompt_ids=token_ids,
        max_tokens=min(request.max_tokens, room),
        watcher=_listening(active),
        signals=request.signals,
        think_end_id=setup.chat.think_end_id,
        priority=_priority(active, request),
        context=active.sample.sample_id,
        **more,
    )


def _priority(active: ActiveSample, request: Request) -> int:
    """What this model wrote of goes first, then what another one has begun: who is further on ends sooner and frees its
    cache. Of each kind asides go first, which are short."""
    rank = 2 if active.was_here else 1 if active.is_begun else 0
    return -2 * rank - isinstance(request, Ask)


def _prompt(active: ActiveSample, text: Iterable[Segment]) -> list[int]:
    """The prompt and the text so far as this worker's ids, as they were generated wherever that can be: the prefix
    cache has those."""
    return [*active.prompt_ids, *active.setup.translator.output_ids(text, own=Author(active.setup.role.value))]


def _asked(active: ActiveSample, ask: Ask, text: Sequence[Segment], question: Question) -> list[int]:
    """What a model is given for a question: a judge its frame, any other the text so far and the question."""
    if ask.frame is None:
        return [*_prompt(active, text), *question.token_ids]
    written = "".join([segment.kept.text for segment in text])
    steps = split_text(written, think_start=active.context.think_start)
    if not steps:
        raise PipelineError(f"{active.setup.policy_label} asks a judge {ask.purpose!r} before there is a step")
    return list(active.setup.questions.ids_within(ask, active.setup.config.question(active.sample.problem), steps))


def _of_generate(active: ActiveSample, max_tokens: int) -> dict[str, Any]:
    setup = active.setup
    written = _written_before(active, max_tokens)
    seed = segment_seed(
        job_seed=active.context.job_seed,
        problem_id=active.context.problem_id,
        sample_index=active.context.sample_index,
        segment_index=active.num_segments,
        role=setup.role,
        start_token=len(written),
    )
    return {"sampling": setup.sampling, "seed": seed, "written": written}


def _written_before(active: ActiveSample, max_tokens: int) -> Sequence[int]:
    """What is stored of the open segment, where this request is the one that was lost and has room for more."""
    open_segment = active.sample.open_segment
    is_that_request = active.num_segments == len(active.sample.context.segments) and not active.asides
    if open_segment is None or not is_that_request or len(open_segment.token_ids) >= max_tokens:
        return ()
    return open_segment.token_ids


def _of_ask(active: ActiveSample, ask: Ask, labels: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    setup = active.setup
    more = {"labels": labels, "reads_top": True}
    if ask.greedy:
        return more | {"sampling": replace(setup.sampling, temperature=0.0), "seed": None}
    seed = aside_seed(
        job_seed=active.context.job_seed,
        problem_id=active.context.problem_id,
        sample_index=active.context.sample_index,
        aside_index=active.num_asides,
        role=setup.role,
    )
    return more | {"sampling": setup.sampling, "seed": seed}


def _require_progress(active: ActiveSample, num_tokens: int) -> None:
    """Raises where there was no room for a first word, and where a policy was told so and asks again."""
    setup = active.setup
    written = [segment for segment in active.text if segment.author is not Author.INSERTED]
    if not written:
        raise PromptTooLong(setup.chat.name, num_tokens, setup.max_model_len)
    if written[-1].finish is SegmentFinish.LENGTH and not written[-1].tokens_generated:
        raise PipelineError(
            f"{setup.policy_label} goes on, but nobody has room in a context of {setup.max_model_len} tokens"
        )


class _Translated:
    """A watcher that reads the job's text while the model writes its own."""

    def __init__(self, watcher: Watcher, setup: JobSetup) -> None:
        self._watcher = watcher
        self._to_job = setup.translator.to_job

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        return self._watcher.feed(self._to_job(text), readings)


def _listening(active: ActiveSample) -> Watcher | None:
    watcher = active.setup.policy.watcher(active.context, active.state)
    return _Translated(watcher, active.setup) if watcher and active.setup.translator.translates else watcher
