"""Baselines: one model alone, as policies."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.policies.protocol import PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.requests import Event, Finish, Generate, Trigger
from pipeline.policies.turns import finish_reason, written_by
from pipeline.samples import ModelRole


class SmallOnlySpec(BaseModel):
    """The small model alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["small-only"] = "small-only"


class LargeOnlySpec(BaseModel):
    """The large model alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["large-only"] = "large-only"


class SingleModelPolicy:
    """One model writes from start to end; its state is how much it was asked for."""

    def __init__(self, role: ModelRole) -> None:
        self._role = role

    @property
    def roles(self) -> frozenset[ModelRole]:
        return frozenset({self._role})

    def start(self, context: SampleContext) -> Transition:
        return Transition(state={"max_tokens": context.max_tokens}, then=self._generate(context.max_tokens))

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        return None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        event = written_by(self._role, event)
        keep = len(event.piece)
        remaining = context.max_tokens - event.start_token - keep
        reason = finish_reason(event, asked=state["max_tokens"], remaining=remaining)
        if reason is not None:
            return Transition(state={}, keep=keep, then=Finish(reason=reason))
        return Transition(state={"max_tokens": remaining}, keep=keep, then=self._generate(remaining))

    def _generate(self, max_tokens: int) -> Generate:
        return Generate(role=self._role, max_tokens=max_tokens, trigger=Trigger.START)
