"""One sample as Inspect's ``EvalSample``: its text, score and tokens by role, and an event for each piece of writing.

Inspect's sample is our problem, its epoch our sample. Import this where Inspect is wanted: it takes seconds to load.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from inspect_ai.dataset import Sample
from inspect_ai.event import Event, InfoEvent, ModelEvent, SampleInitEvent, ScoreEvent, SpanBeginEvent, SpanEndEvent
from inspect_ai.log import EvalError, EvalSample, EvalSampleLimit
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.scorer import Score

from pipeline.results.samples import Result
from pipeline.results.written import PieceKind, WrittenJob, WrittenPiece, WrittenSample
from pipeline.samples import Author, FinishReason, ModelRole, SegmentFinish

_STOP_REASONS: dict[str | None, StopReason] = {
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.CONTEXT: "model_length",
    SegmentFinish.WATCH: "stop",  # the policy ended it
}


def model_name(job: WrittenJob) -> str:
    """Of the pair, as Inspect names models."""
    return f"specthink/{job.job.small_model or job.job.large_model or 'pair'}"


def token_usage(piece: WrittenPiece) -> ModelUsage:
    """Inspect counts cached tokens apart from the other input."""
    if piece.tokens_written == 0 and piece.is_taken:
        return ModelUsage()
    fresh = piece.prompt_tokens - piece.cached_tokens
    return ModelUsage(
        input_tokens=fresh,
        input_tokens_cache_read=piece.cached_tokens,
        output_tokens=piece.tokens_written,
        total_tokens=piece.prompt_tokens + piece.tokens_written,
    )


@dataclass(frozen=True, kw_only=True)
class SampleMaker:
    """Makes Inspect's samples of a job's. created: an id of the log, of which those of its samples are made."""

    job: WrittenJob
    eval_id: str
    configs: dict[ModelRole, GenerateConfig] = field(default_factory=dict)

    @property
    def scorer(self) -> str:
        config = self.job.job.stored_config
        return config.grader if config else "score"

    def make(self, written: WrittenSample) -> EvalSample:
        result = written.result
        told = f"{self.eval_id} {result.sample_id}"
        question = ChatMessageUser(content=result.rendered_prompt or result.prompt, id=_id(told, "question"))
        target = [result.reference or "", *result.also_accepted] if result.also_accepted else result.reference or ""
        score = self._score(result)
        models = [piece for piece in written.pieces if piece.author is not Author.INSERTED]
        usage = {role: _sum(piece for piece in models if piece.author.value == role.value) for role in ModelRole}
        started = min((piece.started_at for piece in written.pieces), default=None)
        working = sum(piece.seconds or 0.0 for piece in models)
        metadata = dict(result.metadata)
        choices = metadata.pop("choices", None)
        return EvalSample(
            id=result.problem,
            epoch=result.sample_index + 1,
            input=question.text,
            choices=[str(choice) for choice in choices] if isinstance(choices, list) else None,
            target=target,
            messages=[question, self._answer(result, _id(told, "answer"))],
            output=self._output(result, sum(usage.values(), ModelUsage()), working, _id(told, "answer")),
            scores=None if score is None else {self.scorer: score},
            metadata=metadata | {"specthink": _facts(result)},
            events=list(_Events(self, written, told, question, started).all(score, target)),
            model_usage=_by_model(self.job, usage),
            role_usage={role.value: used for role, used in usage.items() if used.total_tokens},
            started_at=None if started is None else started.isoformat(),
            completed_at=None if result.finished_at is None else result.finished_at.isoformat(),
            total_time=None
            if started is None or result.finished_at is None
            else max(0.0, (result.finished_at - started).total_seconds()),
            working_time=working,
            uuid=_id(told, "sample"),
            error=_error(result),
            limit=self._limit(result),
            turn_count=1,
        )

    def _answer(self, result: Result, message_id: str) -> ChatMessageAssistant:
        thoughts, answer = self.job.parted(result.output)
        text = ContentText(text=answer)
        return ChatMessageAssistant(
            content=[ContentReasoning(reasoning=thoughts), text] if thoughts else [text],
            source="generate",
            model=model_name(self.job),
            id=message_id,
        )

    def _output(self, result: Result, usage: ModelUsage, seconds: float, message_id: str) -> ModelOutput:
        choice = ChatCompletionChoice(
            message=self._answer(result, message_id),
            stop_reason=_STOP_REASONS.get(result.finish_reason, "unknown"),
        )
        return ModelOutput(model=model_name(self.job), choices=[choice], usage=usage, time=seconds)

    def _score(self, result: Result) -> Score | None:
        """None for a sample that nobody has graded. Unscored is not wrong."""
        if result.state != "graded":
            return None
        if result.score is None:
            return Score.unscored(reason="unscored", answer=result.predicted_answer, explanation=result.grade_detail)
        return Score(value=result.score, answer=result.predicted_answer, explanation=result.grade_detail)

    def _limit(self, result: Result) -> EvalSampleLimit | None:
        config = self.job.job.stored_config
        match result.finish_reason:
            case FinishReason.LENGTH:
                budget = config.sampling.max_tokens if config else result.output_tokens
                return EvalSampleLimit(type="token", limit=budget, reason="its budget of output tokens is used up")
            case FinishReason.CONTEXT:
                return EvalSampleLimit(type="context", limit=result.output_tokens, reason="the model's context is full")
            case FinishReason.REPETITION:
                return EvalSampleLimit(type="custom", limit=result.output_tokens, reason="the loop guard ended it")
        return None


@dataclass(kw_only=True)
class _Place:
    """Where the next event stands."""

    span: str
    at: dt.datetime
    working: float = 0.0


class _Events:
    """The events of one sample, in order."""

    def __init__(
        self,
        maker: SampleMaker,
        written: WrittenSample,
        told: str,
        question: ChatMessageUser,
        started: dt.datetime | None,
    ) -> None:
        self._maker = maker
        self._written = written
        self._told = told
        self._question = question
        started = started or written.result.finished_at or maker.job.job.submitted_at
        self._place = _Place(span=self._id("solvers"), at=started)

    def all(self, score: Score | None, target: str | list[str]) -> Iterator[Event]:
        result, solver = self._written.result, self._id("solver")
        asked = Sample(input=self._question.text, target=target, id=result.problem)
        yield SampleInitEvent(sample=asked, state={}, **self._stamp("init"))
        yield self._begin("solvers", "solvers", parent=None)
        self._place.span = solver
        yield self._begin("solver", self._maker.job.job.policy, parent=self._id("solvers"))
        for piece in self._written.pieces:
            yield from self._piece(piece, parent=solver)
        if self._written.steps:
            yield InfoEvent(source="specthink.steps", data=_steps(self._written), **self._stamp("steps"))
        yield self._end("solver")
        self._place.span = self._id("solvers")
        yield self._end("solvers")
        if score is not None:
            self._place.at = result.finished_at or self._place.at
            yield ScoreEvent(score=score, target=target, scorer=self._maker.scorer, **self._stamp("score"))

    def _piece(self, piece: WrittenPiece, *, parent: str) -> Iterator[Event]:
        name = f"{piece.kind.value} {piece.index}"
        self._place.at = piece.started_at
        if piece.author is Author.INSERTED:
            data = {"text": piece.text, "trigger": piece.reason, "segment_index": piece.index}
            yield InfoEvent(source="policy", data=data, **self._stamp(name))
            return
        facts = _piece_facts(piece)
        self._place.span = self._id(name)
        yield self._begin(piece.kind.value, f"{piece.author} · {piece.reason}", parent=parent, told=name, facts=facts)
        yield self._model_event(piece, name, facts)
        self._place.at = piece.ended_at
        self._place.working += piece.seconds or 0.0
        yield self._end(name)
        self._place.span = parent

    def _model_event(self, piece: WrittenPiece, name: str, facts: dict[str, object]) -> ModelEvent:
        """Its input is the question alone: the text so far, in each of many pieces, would make a log of squares."""
        message = ChatMessageAssistant(
            content=piece.text, source="generate", model=piece.model, id=self._id(f"text {name}")
        )
        choice = ChatCompletionChoice(message=message, stop_reason=_STOP_REASONS.get(piece.finish, "unknown"))
        return ModelEvent(
            model=piece.model,
            role=piece.author.value,
            input=[self._question],
            tools=[],
            tool_choice="none",
            config=self._maker.configs.get(ModelRole(piece.author.value), GenerateConfig()),
            output=ModelOutput(model=piece.model, choices=[choice], usage=token_usage(piece), time=piece.seconds),
            completed=piece.ended_at,
            working_time=piece.seconds,
            metadata=facts,
            **self._stamp(f"model {name}"),
        )

    def _begin(
        self,
        kind: str,
        name: str,
        *,
        parent: str | None,
        told: str | None = None,
        facts: dict[str, object] | None = None,
    ) -> SpanBeginEvent:
        return SpanBeginEvent(
            id=self._id(told or kind), parent_id=parent, type=kind, name=name, metadata=facts,
            **self._stamp(f"begin {told or kind}"),
        )  # fmt: skip

    def _end(self, told: str) -> SpanEndEvent:
        return SpanEndEvent(id=self._id(told), **self._stamp(f"end {told}"))

    def _stamp(self, told: str) -> dict[str, object]:
        """What Inspect would take from the run that it thinks it is in."""
        return {
            "uuid": self._id(f"event {told}"),
            "span_id": self._place.span,
            "timestamp": self._place.at,
            "working_start": self._place.working,
        }

    def _id(self, told: str) -> str:
        return _id(self._told, told)


def _id(*told: str) -> str:
    """Letters and digits, the same each time that the sample is written to a log."""
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:22]


def _sum(pieces: Iterator[WrittenPiece]) -> ModelUsage:
    return sum(map(token_usage, pieces), ModelUsage())


def _by_model(job: WrittenJob, usage: dict[ModelRole, ModelUsage]) -> dict[str, ModelUsage]:
    names = {ModelRole.SMALL: job.job.small_model, ModelRole.LARGE: job.job.large_model}
    found: dict[str, ModelUsage] = {}
    for role, used in usage.items():
        if used.total_tokens:
            found[names[role] or role.value] = found.get(names[role] or role.value, ModelUsage()) + used
    return found


def _facts(result: Result) -> dict[str, object]:
    names = (
        "sample_id", "state", "finish_reason", "subject", "level", "num_takeovers", "num_segments", "output_tokens",
        "tokens_small", "tokens_large", "tokens_inserted", "discarded_small", "discarded_large", "seed",
    )  # fmt: skip
    return {name: getattr(result, name) for name in names if getattr(result, name) is not None}


def _piece_facts(piece: WrittenPiece) -> dict[str, object]:
    facts: dict[str, object] = {
        "author": piece.author.value,
        f"{piece.kind.value}_index": piece.index,
        "trigger" if piece.kind is PieceKind.SEGMENT else "purpose": piece.reason,
        "cue": piece.cue or None,
        "takes_over": piece.takes_over or None,
        "start_token": piece.start_token,
        "discarded_text": piece.discarded_text or None,
        "tokens_discarded": piece.tokens_discarded or None,
        "taken_from_aside": piece.is_taken or None,
        "value": piece.value,
        "threshold": piece.threshold,
        "outcome": piece.outcome,
        "seed": piece.seed,
        "worker": piece.worker_id,
        "wait_seconds": piece.wait_seconds,
        "queue_seconds": piece.queue_seconds,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _steps(written: WrittenSample) -> list[dict[str, object]]:
    """The steps without their texts, which stand in the pieces."""
    lengths = [step.tokens_small + step.tokens_large + step.tokens_inserted for step in written.steps]
    return [
        {
            "step_index": step.step_index,
            "author": str(step.author),
            "start_token": start,
            "tokens": length,
            "class": step.sentence_class,
            "trigger": step.trigger,
        }
        for step, length, start in zip(written.steps, lengths, accumulate(lengths, initial=0), strict=False)
    ]


def _error(result: Result) -> EvalError | None:
    if result.state != "failed":
        return None
    message = ": ".join(filter(None, [result.error_class, result.error])) or "failed"
    return EvalError(message=message, traceback="", traceback_ansi="")
