"""How two jobs differ in what their texts depend on: each difference as a few words, "X instead of Y"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.errors import ConfigurationError
from pipeline.jobs.config import JobConfig
from pipeline.samples import ModelRole


def field_differences(config: JobConfig, other: JobConfig, fields: Iterable[str]) -> Iterator[str]:
    """What a job has otherwise than another one, of these fields of a configuration."""
    for name in fields:
        given, before = getattr(config, name), getattr(other, name)
        if given != before:
            yield f"{name} {given} instead of {before}" if _is_plain(given, before) else f"another {name}"


def model_differences(config: JobConfig, other: JobConfig, roles: Iterable[ModelRole]) -> Iterator[str]:
    """Models that a job has otherwise, of the roles that both have. What is not known counts as the same; two names of
    the same weights do, too."""
    for role in roles:
        model, before = config.model(role), other.model(role)
        if model is None or before is None:
            continue
        if model.name != before.name and (model.weights is None or model.weights != before.weights):
            yield f"{role} {model.name} instead of {before.name}"
        elif _differ(model.weights, before.weights) or _differ(model.revision, before.revision):
            yield f"{role} {model.name} with other weights"
        elif _differ(model.fingerprint, before.fingerprint):
            yield f"{role} {model.name} with another tokenizer or chat template"


def asking_differences(config: JobConfig, other: JobConfig, roles: Iterable[ModelRole]) -> Iterator[str]:
    """Roles of both to which something else is said beside the problem."""
    for role in roles:
        if None not in (config.model(role), other.model(role)) and config.asking(role) != other.asking(role):
            yield f"{role} asked otherwise"


def drawing_differences(config: JobConfig, other: JobConfig, roles: Iterable[ModelRole]) -> Iterator[str]:
    """How the tokens of these roles are drawn otherwise."""
    for role in roles:
        given, before = config.drawing(role), other.drawing(role)
        for name in type(given).model_fields:
            if getattr(given, name) != getattr(before, name):
                yield f"{role} {name} {getattr(given, name)} instead of {getattr(before, name)}"


def policy_roles(config: JobConfig) -> frozenset[ModelRole]:
    """The roles that a job's policy has; all where its package is not here."""
    try:
        return config.build_policy().roles
    except ConfigurationError:
        return frozenset(ModelRole)


def _is_plain(*values: object) -> bool:
    return all(isinstance(value, str | int | float) for value in values)


def _differ(given: str | None, before: str | None) -> bool:
    return None not in (given, before) and given != before
