"""What a policy around a policy is: it calls for the same models and asks the same as the one inside."""

from __future__ import annotations

from pipeline.policies.protocol import Policy
from pipeline.policies.requests import Ask
from pipeline.samples import ModelRole


class AroundPolicy:
    """A base of policies that hold another one, whose state is a part of theirs. Immutable."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def roles(self) -> frozenset[ModelRole]:
        return self._policy.roles

    @property
    def asks(self) -> tuple[Ask, ...]:
        return self._policy.asks
