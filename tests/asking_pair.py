"""A pair of scripted models, and a driver that carries a policy's requests out on them as a worker does.

What a model writes next, and what it would answer, depends on the tokens before it alone. So a plain loop that asks
the same models one token at a time must come to the same text, asides and numbers as the policy.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson
from hypothesis import strategies as st

from pipeline.policies.protocol import Policy, Reading, SampleContext, Transition
from pipeline.policies.requests import Answered, Ask, Finish, Generate, Insert, Request, Take, Written
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
END = "END"
"""A model's end of text; it is no token."""
QUESTION_TOKENS = 3
"""So many tokens a question takes in a model's context."""
WORDS = [
    " a",
    " b",
    ",",
    ".\n\n",
    ".\n\n",
    "\n",
    "\n\n",
    " So",
    "Wait",
    " x\n",
    "</think>",
    "</th",
    "ink>",
    "é",
    "",
    END,
]
Verdict: TypeAlias = tuple[float, float, str] | None


@dataclass(frozen=True)
class Pair:
    """Both models. limits: most tokens in each model's context."""

    seed: int
    words: dict[ModelRole, list[str]]
    limits: dict[ModelRole, int] = field(default_factory=lambda: {SMALL: 10_000, LARGE: 10_000})

    def _drawn(self, *what: object) -> int:
        return zlib.crc32(f"{self.seed}/{what}".encode())

    def next(self, role: ModelRole, before: Sequence[str]) -> str:
        words = self.words[role]
        return words[self._drawn(role.value, tuple(before)) % len(words)]

    def token_id(self, role: ModelRole, before: Sequence[str]) -> int:
        return self._drawn("id", role.value, tuple(before))

    def labels(self, role: ModelRole, before: Sequence[str], labels: Sequence[str]) -> dict[str, float | None]:
        """Log-probabilities: of all labels together much, half, little or nothing."""
        mass = (1.0, 0.9, 0.9, 0.5, 0.3, 0.0)[self._drawn("mass", role.value, tuple(before)) % 6]
        weights = [(0, 1, 1, 2, 5)[self._drawn(label, role.value, tuple(before)) % 5] for label in labels]
        total = sum(weights)
        return {
            label: round(math.log(mass * weight / total), 5) if mass * weight else None
            for label, weight in zip(labels, weights, strict=True)
        }

    def room(self, role: ModelRole, before: Sequence[str], asked: int, *, question: bool = False) -> int:
        """Tokens that the model can write there, of those that are asked for."""
        return max(0, min(asked, self.limits[role] - len(before) - QUESTION_TOKENS * question))


def in_question(before: Sequence[str], question: str, opening: str) -> list[str]:
    """What a model has read when it answers a question."""
    return [*before, f"<{question}|{opening}>"] if question or opening else list(before)


@dataclass
class Aside:
    role: ModelRole
    purpose: str
    question: str
    texts: tuple[str, ...]
    verdict: Verdict = None
    greedy: bool = True


@dataclass
class Story:
    """What became of a sample."""

    tokens: list[tuple[int, str, ModelRole]] = field(default_factory=list)
    segments: list[tuple[ModelRole, str, bool, int]] = field(default_factory=list)
    """Author, trigger, whether it takes over, kept tokens."""
    asides: list[Aside] = field(default_factory=list)
    reason: FinishReason | None = None

    @property
    def texts(self) -> list[str]:
        return [text for _, text, _ in self.tokens]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, pair: Pair, role: ModelRole, texts: Sequence[str]) -> None:
        for text in texts:
            self.tokens.append((pair.token_id(role, self.texts), text, role))

    def put(self, pair: Pair, role: ModelRole, trigger: str, texts: Sequence[str], *, takes_over: bool = False) -> None:
        self.add(pair, role, texts)
        self.segments.append((role, trigger, takes_over, len(texts)))


def verdict_of(reading: Reading | None) -> Verdict:
    return None if reading is None else (reading.value, reading.threshold, reading.outcome)


@dataclass
class Driver:
    """Plays one sample. overrun: engines stop a few tokens late."""

    policy: Policy
    pair: Pair
    context: SampleContext
    overrun: random.Random
    story: Story = field(default_factory=Story)
    _written: list[tuple[ModelRole, str, Piece]] = field(default_factory=list)

    def play(self) -> Story:
        transition = self.policy.start(self.context)
        num_requests = 0
        while isinstance(transition.then, Generate | Ask):
            num_requests += 1
            assert num_requests <= 50 * self.context.max_tokens + 50, "the models make no progress"
            before = transition
            self._check(before)
            transition = self._carry_out(before.then, before)  # type: ignore[arg-type]  # it is a request
            self._insert(transition)
        assert isinstance(transition.then, Finish)
        assert transition.state == {}
        self.story.reason = transition.then.reason
        assert len(self.story.tokens) <= self.context.max_tokens
        return self.story

    def _check(self, transition: Transition) -> None:
        """A state is stored as JSON; nobody asks for more than the budget has."""
        assert orjson.loads(orjson.dumps(transition.state)) == transition.state
        request = transition.then
        assert isinstance(request, Generate | Ask)
        after = sum(num for _, num in request.after) if isinstance(request, Ask) else 0
        if isinstance(request, Generate) or not request.labels:
            assert request.max_tokens <= self.context.max_tokens - len(self.story.tokens) - after

    def _carry_out(self, request: Request, transition: Transition) -> Transition:
        role, before = request.role, self.story.texts
        asked = before
        if isinstance(request, Ask):
            for index, num_tokens in request.after:
                before = [*before, *self._written[index][2].texts[:num_tokens]]
            asked = in_question(before, request.question, request.opening)
        room = self.pair.room(role, before, request.max_tokens, question=len(asked) > len(before))
        texts, ids, finish = self._write(role, asked, room, request, transition)
        piece = Piece(token_ids=tuple(ids), texts=tuple(texts))
        start = len(self.story.tokens)
        if not isinstance(request, Ask):
            event: Any = Written(role=role, piece=piece, finish=finish, start_token=start)
            after = self.policy.advance(self.context, transition.state, event)
            assert after.keep is not None
            self.story.put(self.pair, role, request.trigger, texts[: after.keep], takes_over=request.takes_over)
            return after
        labels = self.pair.labels(role, asked, request.labels) if room else {}
        event = Answered(
            index=len(self._written), role=role, piece=piece, finish=finish, start_token=start, labels=labels
        )
        self._written.append((role, request.purpose, piece))
        after = self.policy.advance(self.context, transition.state, event)
        shown = tuple(texts[: self._stop]) if self._stop else tuple(texts)
        verdict = verdict_of(after.reading)
        self.story.asides.append(Aside(role, request.purpose, request.question, shown, verdict, request.greedy))
        return after

    def _write(
        self, role: ModelRole, before: list[str], room: int, request: Request, transition: Transition
    ) -> tuple[list[str], list[int], SegmentFinish]:
        watcher = self.policy.watcher(self.context, transition.state)
        texts: list[str] = []
        ids: list[int] = []
        self._stop = 0
        late = self.overrun.choice([0, 0, 1, 5])
        while len(texts) < room:
            text = self.pair.next(role, [*before, *texts])
            if text == END:
                return texts, ids, SegmentFinish.WATCH if self._stop else SegmentFinish.EOS
            ids.append(self.pair.token_id(role, [*before, *texts]))
            texts.append(text)
            if self._stop:
                late -= 1
            elif watcher is not None and watcher.feed(text):
                self._stop = len(texts)
            if self._stop and late <= 0:
                return texts, ids, SegmentFinish.WATCH
        return texts, ids, SegmentFinish.WATCH if self._stop else SegmentFinish.LENGTH

    def _insert(self, transition: Transition) -> None:
        for part in transition.insert:
            assert not isinstance(part, Insert)
            assert isinstance(part, Take)
            role, purpose, piece = self._written[part.index]
            start = len(self.story.tokens)
            self.story.put(self.pair, role, purpose, piece.texts[: part.num_tokens], takes_over=part.takes_over)
            assert [token_id for token_id, _, _ in self.story.tokens[start:]] == list(
                piece.token_ids[: part.num_tokens]
            )


def whole(texts: Sequence[str]) -> list[str]:
    """Without the tokens at the end that leave a character unfinished."""
    kept = list(texts)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def answer(pair: Pair, story: Story, role: ModelRole, room: int) -> None:
    """What one model writes to the end of a text that has none yet. room: tokens that are left for it."""
    if story.reason is not None:
        return
    if room < 1:
        story.reason = FinishReason.LENGTH
        return
    texts: list[str] = []
    trigger = "answer" if role is LARGE else "resume"
    can = pair.room(role, story.texts, room)
    story.reason = FinishReason.LENGTH if can == room else FinishReason.CONTEXT
    while len(texts) < can:
        text = pair.next(role, [*story.texts, *texts])
        if text == END:
            story.reason = FinishReason.EOS
            break
        texts.append(text)
    story.put(pair, role, trigger, texts)


def pairs(*more: str, limits: Sequence[int] = (10_000,)) -> st.SearchStrategy[Pair]:
    """Pairs that write WORDS, and some of these words more often."""
    extra = st.lists(st.sampled_from([" a", " b", ".\n\n", "\n", END, "", *more]), max_size=30)
    return st.builds(
        lambda seed, small, large, small_limit, large_limit: Pair(
            seed, {SMALL: [*WORDS, *small], LARGE: [*WORDS, *large]}, {SMALL: small_limit, LARGE: large_limit}
        ),
        st.integers(0, 2**16),
        extra,
        extra,
        st.sampled_from(limits),
        st.sampled_from(limits),
    )
