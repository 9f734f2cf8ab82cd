"""Samples carried through turns without an engine or a database: claims, results and commits made by hand.

What a commit stores goes through the very rows that the database gets, and comes back as a claim loads it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import orjson

from pipeline.chat.model import ChatModel
from pipeline.chat.translation import ThinkTagTranslator, first_prompt_tokens, settle_think_phase
from pipeline.db.claims import ClaimedSample
from pipeline.db.commits import SampleCommit
from pipeline.db.context_cache import EMPTY, Context
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.policies import parse_policy
from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.requests import Event, request_to_json
from pipeline.problems import Problem
from pipeline.samples import Author, ModelRole, Piece, SampleState, SegmentFinish
from pipeline.segments import (
    StoredAside,
    StoredSegment,
    WrittenAside,
    WrittenSegment,
    aside_row,
    segment_row,
)
from workers.engine.base import GenerateRequest, GenerateResult
from workers.writing.active import ActiveSample
from workers.writing.job_setup import JobSetup
from workers.writing.latch import Latch
from workers.writing.questions import Questions
from workers.writing.turn import Step, apply_result, begin

MODELS = Path(__file__).parents[1] / "examples" / "models"
PROBLEM = Problem(external_id="p", prompt="Start at 3. Add 4. What is the result?", answer="7")

Move = Callable[[Event | None], Mapping[str, Any]]
"""Fields of a policy's transition, but for the state; None: the sample starts."""


@cache
def chat_of(role: ModelRole) -> ChatModel:
    """The demo pair's model of a role, the large one as judge; both have one vocabulary."""
    return ChatModel.load(MODELS / ("demo-small" if role is ModelRole.SMALL else "demo-large"))


@dataclass(frozen=True)
class Moves:
    """A policy that makes its moves one after the other; its state counts them."""

    moves: Sequence[Move]
    watch: Callable[[], Watcher | None] = lambda: None
    asks: tuple[Any, ...] = ()

    @property
    def roles(self) -> frozenset[ModelRole]:
        return frozenset(ModelRole)

    def start(self, context: SampleContext) -> Transition:
        return Transition(state={"count": 1}, **self.moves[0](None))

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        return self.watch()

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        return Transition(state={"count": state["count"] + 1}, **self.moves[state["count"]](event))


def setup_of(
    policy: Policy | str, role: ModelRole = ModelRole.SMALL, *, max_model_len: int = 2048, **sampling: Any
) -> JobSetup:
    """A job with this policy, or with one of a name, in a worker of the demo pair."""
    named = policy if isinstance(policy, str) else "speculative-thinking:improved"
    config = JobConfig(
        small=ModelSpec(name="S"),
        large=ModelSpec(name="L"),
        policy=parse_policy(named),
        sampling=SamplingSpec(**{"max_tokens": 300, **sampling}),
        seed=7,
    )
    chat = chat_of(role)
    phase = settle_think_phase(chat)
    setup = JobSetup.of(config, phase, chat, role=role, max_model_len=max_model_len)
    if isinstance(policy, str):
        return setup
    translator = ThinkTagTranslator(chat, phase)
    return replace(setup, policy=policy, translator=translator, questions=Questions(chat, translator))


def claimed(**fields: Any) -> ClaimedSample:
    """A fresh sample, claimed at epoch 1."""
    values: dict[str, Any] = {
        "worker_id": 1, "sample_id": 5, "job_id": 1, "epoch": 1, "problem_id": 1, "problem": PROBLEM, "sample_index": 0,
        "policy_state": None, "next_request": None, "budget": None, "runnable_at": None, "wait_seconds": 0.5,
        "context": EMPTY, "num_prompt_tokens": None,
    }  # fmt: skip
    return ClaimedSample(**{**values, **fields})


def start(setup: JobSetup, **fields: Any) -> tuple[ActiveSample, Step]:
    return begin(claimed(**fields), setup, Latch(1))


def request_of(step: Step) -> GenerateRequest:
    assert isinstance(step, GenerateRequest), step
    return step


def commit_of(step: Step) -> SampleCommit:
    assert isinstance(step, SampleCommit), step
    return step


def result_of(
    request: GenerateRequest, piece: Piece | str, finish: SegmentFinish = SegmentFinish.WATCH, **more: Any
) -> GenerateResult:
    """What an engine would give for a request: a piece, or the demo model's tokens of a text."""
    chat = chat_of(ModelRole.SMALL)
    piece = chat.piece(chat.encode_text(piece)) if isinstance(piece, str) else piece
    return GenerateResult(
        request_id=request.request_id,
        piece=piece,
        finish=finish,
        num_generated_tokens=len(piece) + (finish is SegmentFinish.EOS),
        num_prompt_tokens=len(request.prompt_ids),
        num_cached_tokens=0,
        queue_seconds=0.1,
        first_token_seconds=0.2,
        total_seconds=0.3,
        **more,
    )


# What the database does.


def as_claimed(before: ClaimedSample, commit: SampleCommit) -> ClaimedSample:
    """The sample as the next claim gets it after this commit."""
    context = Context(
        segments=(
            *before.context.segments,
            *(stored_again(segment, index, commit.epoch) for index, segment in commit.numbered_segments),
        ),
        asides=(*before.context.asides, *(aside_again(aside, commit.epoch) for aside in commit.asides)),
    )
    request = request_to_json(commit.next_request) if commit.next_request else None
    lengths = [(segment.prompt_tokens, len(segment.token_ids)) for segment in context.segments]
    return replace(
        before,
        epoch=commit.epoch + 1,
        policy_state=through_json(commit.policy_state),
        next_request=through_json(request),
        context=context,
        num_prompt_tokens=first_prompt_tokens(lengths),
    )


def through_json(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


def stored_again(segment: WrittenSegment, index: int, epoch: int) -> StoredSegment:
    return StoredSegment(
        **_read(segment_row(segment, index, now=0.0), epoch),
        vocabulary_sha256=segment.vocabulary_sha256,
        signals=segment.signals,
    )


def aside_again(aside: WrittenAside, epoch: int) -> StoredAside:
    return StoredAside(
        **_read(aside_row(aside, now=0.0), epoch), vocabulary_sha256=aside.vocabulary_sha256, signals=aside.signals
    )


def _read(row: dict[str, Any], epoch: int) -> dict[str, Any]:
    values = through_json(row)
    finish = SegmentFinish(values["finish"]) if values["finish"] else None
    engine_id = values["engine_id"] or 1
    of_claim = {"epoch": epoch, "engine_id": engine_id, "committed_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}
    return values | of_claim | {"author": Author(values["author"]), "finish": finish}


# A sample's whole way.


@dataclass
class Way:
    """What became of a sample. commits: of its claims, in order; requests: all that an engine was asked for."""

    commits: list[SampleCommit] = field(default_factory=list)
    requests: list[GenerateRequest] = field(default_factory=list)
    end: ClaimedSample = field(default_factory=claimed)

    @property
    def segments(self) -> tuple[StoredSegment, ...]:
        return cast("tuple[StoredSegment, ...]", self.end.context.segments)  # as ``as_claimed`` makes them

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


def walk(
    setups: Mapping[ModelRole, JobSetup],
    write: Callable[[GenerateRequest], GenerateResult],
    *,
    first: ModelRole = ModelRole.SMALL,
    may_stay: bool = True,
) -> Way:
    """Carry a sample from its first claim to its end."""
    way, role = Way(), first
    while True:
        active, step = begin(way.end, setups[role], Latch(1))
        while isinstance(step, GenerateRequest):
            way.requests.append(step)
            step = apply_result(active, write(step), may_stay=may_stay)
        way.commits.append(step)
        way.end = as_claimed(way.end, step)
        if step.to_state is SampleState.FINISHED:
            return way
        assert step.next_request is not None
        role = step.next_request.role


WORDS = (
    "First", " add", " 3", ",", " 4", " So", " the", " result", " is", ".\n\n", "\n\n", "Wait", "Yes", "Let", " check",
    ".", "Then",
)  # fmt: skip


def babble(request: GenerateRequest) -> GenerateResult:
    """Words drawn by the request's seed and prompt, read along by its watcher, as an engine would write them."""
    chat = chat_of(ModelRole.SMALL)
    draw = random.Random(f"{request.seed} {list(request.prompt_ids)}")
    stream = chat.decode_stream(request.prompt_ids)
    ids: list[int] = []
    texts: list[str] = []
    finish = SegmentFinish.LENGTH
    while len(ids) < request.max_tokens:
        if draw.random() < 0.004:
            finish = SegmentFinish.EOS
            break
        for token_id in chat.encode_text(draw.choice(WORDS))[: request.max_tokens - len(ids)]:
            ids.append(token_id)
            texts.append(stream.step(token_id))
            if request.watcher is not None and request.watcher.feed(texts[-1]):
                return result_of(request, Piece(token_ids=tuple(ids), texts=tuple(texts)), SegmentFinish.WATCH)
    return result_of(request, Piece(token_ids=tuple(ids), texts=tuple(texts)), finish)
