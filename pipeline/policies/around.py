"""What policies around a policy share: the models and questions of the one inside, and what it would do itself."""

from __future__ import annotations

from dataclasses import replace

from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.requests import Ask, Generate, Written
from pipeline.policies.turns import fires, readings_of
from pipeline.samples import ModelRole
from pipeline.signals import Readings


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


class _EitherWatcher:
    """Ends a request where the first of two watchers does."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Watcher, second: Watcher) -> None:
        self._first = first
        self._second = second

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        return self._first.feed(text, readings) or self._second.feed(text, readings)


def either(first: Watcher | None, second: Watcher | None) -> Watcher | None:
    """The watcher that there is; of two, one that ends a request where the first of them does."""
    if first is None or second is None:
        return first or second
    return _EitherWatcher(first, second)


def place_of_stop(watcher: Watcher | None, event: Written) -> int | None:
    """After how many tokens of a piece the watcher ends it, None where it does not."""
    if watcher is None:
        return None
    readings = readings_of(event) if event.signals else (None for _ in event.piece.texts)
    tokens = enumerate(zip(event.piece.texts, readings, strict=True), 1)
    return next((count for count, (text, read) in tokens if watcher.feed(text, read)), None)
