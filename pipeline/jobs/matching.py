"""Random control at a matched budget: what random delegation must be set to so that another job is its fair rival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigurationError
from pipeline.policies import PolicySpec, RandomDelegationSpec, matched_rate
from pipeline.policies.speculative_thinking.rules import Rules

OPENINGS = frozenset({"start", "opening", "resume"})
"""Triggers of the large model's writing that are no takeovers."""
_LIMITS = {"verify": "n2", "repetition": "n2", "too_much_reflection": "n3"}
"""Which number of the rules limits a takeover of a trigger; all others are limited by n1."""


def matched_values(spec: PolicySpec, *, num_breaks: int, takeovers: Mapping[str, int]) -> dict[str, Any]:
    """The fields of RandomDelegationSpec that match a job.

    spec: the job's policy. num_breaks: breaks that its small model wrote in the think phase of the kept text.
    takeovers: how many there were, by trigger.

    rate: takeovers per break. tokens: the mean of what those takeovers were allowed, R3's growth left out. Hand-backs
    are the job's own. So both call the large model as often, for as long, and differ in where.
    Raises ConfigurationError for a job that cannot be matched.
    """
    counted = {trigger: count for trigger, count in takeovers.items() if trigger not in OPENINGS}
    total = sum(counted.values())
    if total == 0 or num_breaks < 1:
        raise ConfigurationError(
            f"{total} takeovers at {num_breaks} breaks of the small model give no rate to match; match a job whose "
            "large model was called in"
        )
    allowed = sum(count * _limit(spec, trigger) for trigger, count in counted.items())
    values: dict[str, Any] = {
        "rate": matched_rate(num_breaks=num_breaks, num_takeovers=total),
        "tokens": max(1, round(allowed / total)),
    }
    stored = spec.model_dump()
    handback = stored.get("handback", "tokens")  # the presets without the field hand back at n tokens
    return values | {"handback": handback} | {name: stored[name] for name in ("handback_from",) if name in stored}


def _limit(spec: PolicySpec, trigger: str) -> int:
    match spec:
        case RandomDelegationSpec():
            return spec.tokens
        case Rules():
            return int(getattr(spec, _LIMITS.get(trigger, "n1")))
    raise ConfigurationError(f"policy {spec.name!r} has no takeovers to match")
