"""Composition: a delegation, at most one exit, and guards make one policy.

Each part is pure and knows nothing of the others. ``Guarded`` and ``Exiting`` are policies around a policy; their state
holds its state. At one token the exit comes first, then the delegation, then the guards: a takeover that the exit makes
needless is dropped, and a takeover goes before a guard that would end the sample.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.policies.exits.exiting import Exiting
from pipeline.policies.exits.protocol import Exit
from pipeline.policies.guarded import Guard, Guarded
from pipeline.policies.protocol import Policy


def compose(policy: Policy, *, exit: Exit | None = None, guards: Iterable[Guard] = ()) -> Policy:
    """A policy with an exit and guards around it; the very policy where there are none."""
    composed = policy if exit is None else Exiting(policy, exit)
    for guard in guards:
        composed = Guarded(composed, guard)
    return composed
