"""A policy that a guard watches over: the guard ends a sample for a fault in one piece of writing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.policies.around import AroundPolicy, either, place_of_stop, writer_of
from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.requests import Event, Finish, Written
from pipeline.samples import FinishReason, ModelRole


class Guard(Protocol):
    """Ends a sample for a fault in one piece of writing. Immutable."""

    @property
    def role(self) -> ModelRole | None:
        """Whose writing is watched; None: everybody's."""
        ...

    @property
    def reason(self) -> FinishReason: ...

    @property
    def min_tokens(self) -> int:
        """A piece of fewer tokens is never ended."""
        ...

    def watcher(self) -> Watcher:
        """A watcher of one piece; what it has read up to its True is kept."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _GuardedState:
    """policy: of the policy inside. writer: who writes now, None while an aside is written."""

    policy: PolicyState
    writer: ModelRole | None

    @classmethod
    def read(cls, state: PolicyState) -> _GuardedState:
        """As it is stored. Raises ValueError for any other."""
        if state.keys() != {"policy", "writer"}:
            raise ValueError(f"no state of a policy with a guard: {state!r}")
        policy, writer = state["policy"], state["writer"]
        return cls(policy=policy, writer=None if writer is None else ModelRole(writer))


class Guarded(AroundPolicy):
    """A policy that a guard watches over."""

    def __init__(self, policy: Policy, guard: Guard) -> None:
        super().__init__(policy)
        self._guard = guard

    def start(self, context: SampleContext) -> Transition:
        return self._wrap(self._policy.start(context))

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _GuardedState.read(state)
        inner = self._policy.watcher(context, stored.policy)
        return either(inner, self._guard.watcher() if self._watches(stored.writer) else None)

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _GuardedState.read(state)
        if isinstance(event, Written) and self._watches(stored.writer) and len(event.piece) >= self._guard.min_tokens:
            place = place_of_stop(self._guard.watcher(), event)
            if place is not None and not self._is_ended(context, stored.policy, event, place):
                return Transition(state={}, keep=place, then=Finish(reason=self._guard.reason))
        return self._wrap(self._policy.advance(context, stored.policy, event))

    def _watches(self, writer: ModelRole | None) -> bool:
        return writer is not None and self._guard.role in (None, writer)

    def _wrap(self, transition: Transition) -> Transition:
        if isinstance(transition.then, Finish):
            return transition
        return replace(transition, state={"policy": transition.state, "writer": writer_of(transition)})
