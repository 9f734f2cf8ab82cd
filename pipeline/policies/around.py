"""What policies around a policy share: the models and questions of the one inside, and what it would do itself."""

from __future__ import annotations

from dataclasses import replace

from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition
from pipeline.policies.requests import Ask, Generate, Written
from pipeline.policies.turns import fires
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

    def _is_ended(self, context: SampleContext, inner: PolicyState, event: Written, num_tokens: int) -> bool:
        """Whether the policy inside ends the piece itself, within its first tokens. inner: its state."""
        signals = {signal: values[:num_tokens] for signal, values in event.signals.items()}
        watcher = self._policy.watcher(context, inner)
        return watcher is not None and fires(
            watcher, replace(event, piece=event.piece.head(num_tokens), signals=signals)
        )


def writer_of(transition: Transition) -> ModelRole | None:
    """Who writes on the text next; None where nobody does, or an aside is asked for."""
    return transition.then.role if isinstance(transition.then, Generate) else None
