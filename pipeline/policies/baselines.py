"""Baselines: one model alone, as policies."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.policies.protocol import PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.requests import Ask, Event, Finish, Generate, Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.turns import finish_reason, written_by
from pipeline.samples import ModelRole


class SmallOnlySpec(PolicySpec):
    """The small model alone."""

    name: Literal["small-only"] = "small-only"

    def build(self) -> SingleModelPolicy:
        return SingleModelPolicy(ModelRole.SMALL)


class LargeOnlySpec(PolicySpec):
    """The large model alone."""

    name: Literal["large-only"] = "large-only"

    def build(self) -> SingleModelPolicy:
        return SingleModelPolicy(ModelRole.LARGE)


class SingleModelPolicy:
    """One model writes from start to end, or from an exit on; its state is how much it was asked for."""

    asks: ClassVar[tuple[Ask, ...]] = ()

    def __init__(self, role: ModelRole, *, trigger: Trigger = Trigger.START) -> None:
        self._role = role
        self._trigger = trigger

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
        then = Generate(role=self._role, max_tokens=max_tokens, trigger=self._trigger)
        return Transition(state={"max_tokens": max_tokens}, keep=keep, then=then)
