"""Policies of steps and sentences read text: a pair with two vocabularies writes what a pair with one does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.chat.model import ChatModel
from pipeline.chat.tokens import TextStream
from pipeline.chat.translation import settle_think_phase
from pipeline.db.commits import SampleCommit
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.policies import parse_policy
from pipeline.samples import WRITING_ROLES, ModelRole, Piece, SampleState, SegmentFinish
from pipeline.signals import Signal, SignalValues
from tests.permuted import permute_vocabulary
from tests.turns import MODELS, Way, as_claimed, result_of
from workers.engine.base import GenerateRequest, GenerateResult
from workers.writing.job_setup import JobSetup
from workers.writing.latch import Latch
from workers.writing.turn import apply_result, begin

SMALL, LARGE, JUDGE = ModelRole.SMALL, ModelRole.LARGE, ModelRole.JUDGE
Chats = Mapping[ModelRole, ChatModel]
WORDS = (
    "First", " add", " 3", ",", " 4", " So", " the", " result", " is", ".\n\n", "\n\n", "Wait", " Let", " check", ".",
    " Then", " so",
)  # fmt: skip
SIGNS = {"good": "+", "bad": "-", "opening": 'The sign of the last step is "'}
"""Labels that the demo's vocabulary has tokens for."""
POLICIES: dict[str, dict[str, Any]] = {
    "glimpse": {"first_steps": 1, "threshold": 0.9},
    "first-steps": {"first_steps": 4},
    "redo": {"threshold": -0.9},
    "redo:trig": {"first_steps": 1, "threshold": 0.6, "streak": 1},
    "relay": {"switch_cues": ["so", "then"]},
    "rsd": {"threshold": 0.5, **SIGNS},
    "specsearch": {"first_steps": 1, "decay": 0.5, **SIGNS},
}


@pytest.fixture(scope="module")
def chats() -> Chats:
    chats = {role: ChatModel.load(MODELS / f"demo-{role.value}") for role in WRITING_ROLES}
    return chats | {JUDGE: chats[LARGE]}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    """The large model with other ids."""
    folder: Path = tmp_path_factory.mktemp("permuted") / "permuted-large"
    return ChatModel.load(permute_vocabulary(MODELS / "demo-large", folder, seed=2))


def rote(chat: ChatModel, request: GenerateRequest, seed: int) -> GenerateResult:
    """Words drawn by seed and text, and how likely each was; read along by the request's watcher."""
    before = chat.tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False)
    draws, ids, texts = Random(f"{seed} {before}"), list[int](), list[str]()
    readings: dict[Signal, list[float]] = {signal: [] for signal in request.signals}
    stream = chat.decode_stream(request.prompt_ids)
    if request.labels:
        return judged(request, stream, draws)
    while len(ids) < request.max_tokens:
        if draws.random() < 0.003:
            return made(request, ids, texts, SegmentFinish.EOS, readings)
        word = "</think>" if draws.random() < 0.01 else draws.choice(WORDS)
        for token_id in chat.encode_text(word)[: request.max_tokens - len(ids)]:
            ids.append(token_id)
            texts.append(stream.step(token_id))
            value = draws.choice([-0.01, -0.01, -0.5, -1.0])
            for signal, values in readings.items():
                values.append(value if signal is Signal.LOGPROB else -value)
            read = {signal: values[-1] for signal, values in readings.items()} or None
            if request.watcher is not None and request.watcher.feed(texts[-1], read):
                return made(request, ids, texts, SegmentFinish.WATCH, readings)
    return made(request, ids, texts, SegmentFinish.LENGTH, readings)


def judged(request: GenerateRequest, stream: TextStream, draws: Random) -> GenerateResult:
    """One of the labels, and how likely each was; of them all much or little."""
    mass = draws.choice([0.2, 0.9, 0.9])
    good = draws.random()
    (token_id, *_), _ = request.labels.values()
    piece = Piece(token_ids=(token_id,), texts=(stream.step(token_id),))
    likely = dict(zip(request.labels, (round(math.log(mass * p), 5) for p in (good, 1 - good)), strict=True))
    return result_of(request, piece, SegmentFinish.LENGTH, labels=likely)


def made(
    request: GenerateRequest,
    ids: list[int],
    texts: list[str],
    finish: SegmentFinish,
    readings: Mapping[Signal, list[float]],
) -> GenerateResult:
    signals: SignalValues = {signal: tuple(values) for signal, values in readings.items()}
    return result_of(request, Piece(token_ids=tuple(ids), texts=tuple(texts)), finish, signals=signals)


def written_by(chats: Chats, policy: str, seed: int) -> list[tuple[Any, ...]]:
    """A sample's segments, as far as ids do not matter."""
    config = JobConfig(
        small=ModelSpec(name="S"), large=ModelSpec(name="L"), judge=ModelSpec(name="J"),
        policy=parse_policy(policy, POLICIES[policy]), sampling=SamplingSpec(max_tokens=250), seed=7,
    )  # fmt: skip
    phase = settle_think_phase(chats[SMALL], chats[LARGE])
    setups = {role: JobSetup.of(config, phase, chats[role], role=role, max_model_len=2048) for role in chats}
    way, role = Way(), LARGE if policy in ("first-steps", "relay") or "first_steps" in POLICIES[policy] else SMALL
    while not way.commits or way.commits[-1].to_state is not SampleState.FINISHED:
        active, step = begin(way.end, setups[role], Latch(1))
        while not isinstance(step, SampleCommit):
            step = apply_result(active, rote(chats[role], step, seed))
        way.commits.append(step)
        way.end = as_claimed(way.end, step)
        role = step.next_request.role if step.next_request else role
    return [
        (g.author, g.trigger, g.cue, g.takes_over, g.text, len(g.token_ids), g.discarded_text, g.value, g.outcome)
        for g in way.segments
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pair_with_two_vocabularies_writes_the_same(chats: Chats, other: ChatModel, policy: str) -> None:
    assert chats[SMALL].vocabulary_sha256 != other.vocabulary_sha256
    triggers = set()
    for seed in range(20):
        expected = written_by(chats, policy, seed)
        triggers |= {row[1] for row in expected}
        assert written_by({SMALL: chats[SMALL], LARGE: other, JUDGE: chats[SMALL]}, policy, seed) == expected
        assert written_by({**chats, JUDGE: other}, policy, seed) == expected
    assert (
        triggers
        >= {
            "glimpse": {"opening", "glimpse"},
            "first-steps": {"opening"},
            "redo": {"start", "redo"},
            "redo:trig": {"opening", "offload", "hesitation"},
            "relay": {"start", "relay", "lead"},
            "rsd": {"draft", "rejected"},
            "specsearch": {"draft", "opening", "rejected"},
        }[policy]
    )
