"""One sample of a policy, written by hand: a test says what each model writes or answers, and reads what is decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, TypeAlias

from pipeline.policies.protocol import Policy, SampleContext, Transition
from pipeline.policies.requests import Answered, Ask, Event, Generate, Take, Written
from pipeline.samples import ModelRole, Piece, SegmentFinish
from pipeline.signals import Signal
from tests.decisions import Decision, decided

Token: TypeAlias = str | tuple[str, float | None]
"""A token's text, with what the engine reads at it where that is not the usual."""


def context_of(
    max_tokens: int, *, think_end: str = "</think>", job_seed: int = 0, num_prompt_tokens: int = 0
) -> SampleContext:
    """A sample of problem p with so many tokens to write."""
    return SampleContext(
        job_seed=job_seed,
        problem_id="p",
        sample_index=0,
        max_tokens=max_tokens,
        think_end=think_end,
        num_prompt_tokens=num_prompt_tokens,
    )


class ByHand:
    """last: what was decided last. num_tokens: of the text. num_asides: answered so far."""

    signal: ClassVar[Signal | None] = None
    """What tokens carry, for a policy that reads one."""
    usual: ClassVar[float | None] = None
    """What is read at a token that does not say."""

    def __init__(self, policy: Policy, context: SampleContext) -> None:
        self.policy = policy
        self.context = context
        self.last: Transition = policy.start(context)
        self.num_tokens = 0
        self.num_asides = 0

    @property
    def ask(self) -> Ask:
        """The question that is next."""
        assert isinstance(self.last.then, Ask)
        return self.last.then

    def stops_after(self, tokens: Iterable[Token]) -> int | None:
        """How many tokens the watcher reads until it ends the request; None: all of them, or nobody watches."""
        watcher = self.policy.watcher(self.context, self.last.state)
        if watcher is None:
            return None
        for count, token in enumerate(tokens, 1):
            read = () if self.signal is None else ({self.signal: self._reading(token)},)
            if watcher.feed(_text(token), *read):
                return count
        return None

    def has_written(
        self, tokens: Sequence[Token], finish: SegmentFinish, *, role: ModelRole | None = None
    ) -> tuple[Decision, ...]:
        """The role that was asked to write has written this, or another one."""
        request = self.last.then
        assert isinstance(request, Generate)
        event = Written(
            role=role or request.role,
            piece=_piece(tokens),
            finish=finish,
            start_token=self.num_tokens,
            signals=dict.fromkeys(request.signals, tuple(map(self._reading, tokens))),
        )
        return self._advanced(event)

    def has_answered(
        self,
        tokens: Sequence[Token],
        finish: SegmentFinish,
        *,
        labels: Mapping[str, float | None] | None = None,
        signals: Mapping[Signal, tuple[float | None, ...]] | None = None,
    ) -> tuple[Decision, ...]:
        """The role that was asked has written this aside, and gave the labels these log-probabilities."""
        event = Answered(
            index=self.num_asides,
            role=self.ask.role,
            piece=_piece(tokens),
            finish=finish,
            start_token=self.num_tokens,
            labels=labels or {},
            signals=signals or {},
        )
        self.num_asides += 1
        return self._advanced(event)

    def _advanced(self, event: Event) -> tuple[Decision, ...]:
        self.last = self.policy.advance(self.context, self.last.state, event)
        added = (part.num_tokens if isinstance(part, Take) else 1 for part in self.last.insert)
        self.num_tokens += (self.last.keep or 0) + sum(added)
        return decided(self.last)

    def _reading(self, token: Token) -> float | None:
        return self.usual if isinstance(token, str) else token[1]


def _text(token: Token) -> str:
    return token if isinstance(token, str) else token[0]


def _piece(tokens: Sequence[Token]) -> Piece:
    return Piece(token_ids=tuple(range(len(tokens))), texts=tuple(map(_text, tokens)))
