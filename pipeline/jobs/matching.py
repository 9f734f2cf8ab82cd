"""Random control at a matched budget: what random delegation must be set to so that another job is its fair rival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigurationError
from pipeline.policies import PolicySpec
from pipeline.policies.random_delegation import matched_rate


def matched_values(spec: PolicySpec, *, num_breaks: int, takeovers: Mapping[str, int]) -> dict[str, Any]:
    """The fields of RandomDelegationSpec that match a job.

    spec: the job's policy. num_breaks: breaks that its small model wrote in the think phase of the kept text.
    takeovers: how many segments took over, by trigger.

    rate: takeovers per break. tokens: the mean of what those takeovers were allowed, R3's growth left out. Hand-backs
    are the job's own. So both call the large model as often, for as long, and differ in where.
    Raises ConfigurationError for a job that cannot be matched.
    """
    total = sum(takeovers.values())
    if total == 0 or num_breaks < 1:
        raise ConfigurationError(
            f"{total} takeovers at {num_breaks} breaks of the small model give no rate to match; match a job whose "
            "large model was called in"
        )
    allowed = sum(count * spec.takeover_limit(trigger) for trigger, count in takeovers.items())
    return {
        "rate": matched_rate(num_breaks=num_breaks, num_takeovers=total),
        "tokens": max(1, round(allowed / total)),
    } | spec.handing_back()
