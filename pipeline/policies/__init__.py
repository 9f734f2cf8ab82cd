"""Policies: who writes what. A spec says which one with every number, ``make_policy`` gives the policy itself."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from pipeline.errors import ConfigurationError
from pipeline.policies.base import Policy
from pipeline.policies.baselines import LargeOnlySpec, SingleModelPolicy, SmallOnlySpec
from pipeline.policies.speculative_thinking import SpeculativeThinkingPolicy, SpeculativeThinkingSpec
from pipeline.samples import ModelRole

__all__ = [
    "LargeOnlySpec",
    "Policy",
    "PolicySpec",
    "SmallOnlySpec",
    "SpeculativeThinkingSpec",
    "make_policy",
    "parse_policy",
    "policy_names",
]

PolicySpec: TypeAlias = Annotated[SpeculativeThinkingSpec | SmallOnlySpec | LargeOnlySpec, Field(discriminator="name")]
"""A policy as a job stores it."""

_SPECS: dict[str, PolicySpec] = {
    "speculative-thinking:improved": SpeculativeThinkingSpec(),
    "small-only": SmallOnlySpec(),
    "large-only": LargeOnlySpec(),
}
"""By NAME[:PRESET]; the first preset of a name is its default."""


def policy_names() -> tuple[str, ...]:
    """Every NAME[:PRESET] there is."""
    return tuple(_SPECS)


def parse_policy(text: str) -> PolicySpec:
    """The spec of ``NAME[:PRESET]``. Raises ConfigurationError that lists the choices."""
    for known, spec in _SPECS.items():
        if text in (known, spec.name):
            return spec
    raise ConfigurationError(f"there is no policy {text!r}; choose one of: {', '.join(_SPECS)}")


def make_policy(spec: PolicySpec) -> Policy:
    """The policy that a spec describes."""
    match spec:
        case SpeculativeThinkingSpec():
            return SpeculativeThinkingPolicy(spec)
        case SmallOnlySpec():
            return SingleModelPolicy(ModelRole.SMALL)
        case LargeOnlySpec():
            return SingleModelPolicy(ModelRole.LARGE)
