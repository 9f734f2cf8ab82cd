"""Policies: who writes what. A spec says which one with every number, ``make_policy`` gives the policy itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Field, ValidationError

from pipeline.errors import ConfigurationError
from pipeline.policies.baselines import LargeOnlySpec, SingleModelPolicy, SmallOnlySpec
from pipeline.policies.protocol import Policy
from pipeline.policies.random_delegation import RandomDelegationPolicy, RandomDelegationSpec, matched_rate
from pipeline.policies.speculative_thinking.improved import SpeculativeThinkingPolicy, SpeculativeThinkingSpec
from pipeline.policies.speculative_thinking.paper import PaperPolicy, PaperSpec
from pipeline.policies.speculative_thinking.released_code import CodePolicy, CodeSpec
from pipeline.samples import ModelRole

__all__ = [
    "CodeSpec",
    "LargeOnlySpec",
    "PaperSpec",
    "Policy",
    "PolicySpec",
    "RandomDelegationSpec",
    "SmallOnlySpec",
    "SpeculativeThinkingSpec",
    "make_policy",
    "matched_rate",
    "parse_policy",
    "policy_names",
]

SpeculativeThinkingPreset: TypeAlias = Annotated[
    SpeculativeThinkingSpec | PaperSpec | CodeSpec, Field(discriminator="preset")
]
PolicySpec: TypeAlias = Annotated[
    SpeculativeThinkingPreset | SmallOnlySpec | LargeOnlySpec | RandomDelegationSpec, Field(discriminator="name")
]
"""A policy as a job stores it."""

_SPECS: dict[str, PolicySpec] = {
    "speculative-thinking:improved": SpeculativeThinkingSpec(),
    "speculative-thinking:paper": PaperSpec(),
    "speculative-thinking:code": CodeSpec(),
    "small-only": SmallOnlySpec(),
    "large-only": LargeOnlySpec(),
    "random": RandomDelegationSpec(),
}
"""By NAME[:PRESET]; the first preset of a name is its default."""


def policy_names() -> tuple[str, ...]:
    """Every NAME[:PRESET] there is."""
    return tuple(_SPECS)


def parse_policy(text: str, values: Mapping[str, Any] | None = None) -> PolicySpec:
    """The spec of ``NAME[:PRESET]``, with some of its fields set; a value may be text, as in {"n1": "30"}.

    Raises ConfigurationError that lists the choices, or says what is wrong with which value.
    """
    for known, spec in _SPECS.items():
        if text in (known, spec.name):
            return _with_values(known, spec, values) if values else spec
    raise ConfigurationError(f"there is no policy {text!r}; choose one of: {', '.join(_SPECS)}")


def _with_values(known: str, spec: PolicySpec, values: Mapping[str, Any]) -> PolicySpec:
    fields = [field for field in type(spec).model_fields if field not in ("name", "preset")]
    unknown = ", ".join(sorted(set(values).difference(fields)))
    if unknown:
        raise ConfigurationError(f"policy {known} has no {unknown}; it has: {', '.join(fields) or 'nothing to set'}")
    try:
        return type(spec).model_validate(spec.model_dump() | dict(values))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'its values'}: {fault['msg']}" for fault in error.errors())
        raise ConfigurationError(f"policy {known} cannot be set so: {'; '.join(faults)}") from error


def make_policy(spec: PolicySpec) -> Policy:
    """The policy that a spec describes."""
    match spec:
        case SpeculativeThinkingSpec():
            return SpeculativeThinkingPolicy(spec)
        case PaperSpec():
            return PaperPolicy(spec)
        case CodeSpec():
            return CodePolicy(spec)
        case SmallOnlySpec():
            return SingleModelPolicy(ModelRole.SMALL)
        case LargeOnlySpec():
            return SingleModelPolicy(ModelRole.LARGE)
        case RandomDelegationSpec():
            return RandomDelegationPolicy(spec)
