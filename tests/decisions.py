"""Transitions spelled as one list, for tests that say in one line what a policy decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.policies.protocol import PolicyState, Transition
from pipeline.policies.requests import Ask, Finish, Generate, Insert, Take


@dataclass(frozen=True)
class Keep:
    """What stays of a piece."""

    num_tokens: int


Decision: TypeAlias = Keep | Take | Insert | Generate | Ask | Finish


def decided(transition: Transition) -> tuple[Decision, ...]:
    """What is kept, where something was written; what is put in; what is next."""
    kept = () if transition.keep is None else (Keep(num_tokens=transition.keep),)
    return (*kept, *transition.insert, transition.then)


def delegation_state(state: PolicyState) -> dict[str, Any]:
    """The state of the delegation itself, whatever guards and exits are around it."""
    while "policy" in state:
        state = state["policy"]
    return state
