"""Baselines: one model alone, as policies."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator

from pipeline.policies.protocol import PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.requests import Ask, Event, Finish, Generate, Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.turns import NO_SIGNALS, finish_reason, written_by
from pipeline.samples import ModelRole
from pipeline.signals import Signal


def _read_signals(value: Any) -> Any:
    """Names in one text: "all", or several with commas between them."""
    if not isinstance(value, str):
        return value
    return tuple(Signal) if value == "all" else tuple(filter(None, value.split(",")))


StoredSignals: TypeAlias = Annotated[tuple[Signal, ...], BeforeValidator(_read_signals)]


class SmallOnlySpec(PolicySpec):
    """The small model alone."""

    name: Literal["small-only"] = "small-only"
    signals: StoredSignals = ()
    """What is read of each token and stored, for a pilot that thresholds are calibrated on: "all", or names with commas
    between them. They change no text."""

    def build(self) -> SingleModelPolicy:
        return SingleModelPolicy(ModelRole.SMALL, signals=frozenset(self.signals))


class LargeOnlySpec(PolicySpec):
    """The large model alone."""

    name: Literal["large-only"] = "large-only"
    signals: StoredSignals = ()
    """As of ``small-only``."""

    def build(self) -> SingleModelPolicy:
        return SingleModelPolicy(ModelRole.LARGE, signals=frozenset(self.signals))


class SingleModelPolicy:
    """One model writes from start to end, or from an exit on; its state is how much it was asked for."""

    asks: ClassVar[tuple[Ask, ...]] = ()

    def __init__(
        self, role: ModelRole, *, trigger: Trigger = Trigger.START, signals: frozenset[Signal] = NO_SIGNALS
    ) -> None:
        self._role = role
        self._trigger = trigger
        self._signals = signals

    @property
    def roles(self) -> frozenset[ModelRole]:
        return frozenset({self._role})

    def start(self, context: SampleContext) -> Transition:
        return self.ask(context.max_tokens)

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        return None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        event = written_by(self._role, event)
        keep = len(event.piece)
        remaining = context.max_tokens - event.start_token - keep
        reason = finish_reason(event, asked=state["max_tokens"], remaining=remaining)
        if reason is not None:
            return Transition(state={}, keep=keep, then=Finish(reason=reason))
        return self.ask(remaining, keep)

    def ask(self, max_tokens: int, keep: int | None = None) -> Transition:
        """Let the model write so many tokens at most."""
        then = Generate(role=self._role, max_tokens=max_tokens, trigger=self._trigger, signals=self._signals)
        return Transition(state={"max_tokens": max_tokens}, keep=keep, then=then)
