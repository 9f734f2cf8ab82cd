"""A job's configuration with some of its values changed: what ``specthink clone JOB --set KEY=VALUE`` runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import ConfigurationError
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.policies import PolicySpec, parse_policy, policy_names
from pipeline.samples import ModelRole

_FIXED = ("version", "name", "preset", "fingerprint")
"""Keys of a stored configuration that follow from others."""


def changed_policy(config: JobConfig, name: str) -> tuple[str, PolicySpec]:
    """Another policy for a job, with its name. name: NAME[:PRESET], or another PRESET of the job's policy.

    Raises ConfigurationError that lists the choices.
    """
    preset = f"{config.policy.name}:{name}"
    known = preset if preset in policy_names() else name
    return known, parse_policy(known)


def changed_config(
    config: JobConfig, changes: Mapping[str, Any], *, policy: PolicySpec, models: Mapping[ModelRole, ModelSpec]
) -> JobConfig:
    """A configuration with the values at some dotted keys changed, and with a policy and the models that are given.

    changes: e.g. {"sampling.temperature": 0.9, "policy.n1": "30", "num_samples": 8}; a value may be text. ``policy``
    and the models are given whole. A model that the policy has no use for is left out. Raises ConfigurationError for a
    key that it has not, naming those it has, and for a model that is missing; pydantic's ValidationError for a value.
    """
    values = config.model_dump(mode="json") | {"policy": policy.model_dump(mode="json")}
    values |= {role.value: model.model_dump(mode="json") for role, model in models.items()}
    known = list(_keys(values))
    for key, value in changes.items():
        if key not in known:
            raise ConfigurationError(f"a job has no {key!r} to set; it has: {', '.join(known)}")
        _set(values, key.split("."), value)
    checked = JobConfig.model_validate(values | {"small": _ANY, "large": _ANY})
    roles = checked.build_policy().roles
    for role in ModelRole:
        if role not in roles:
            values[role.value] = None
        elif values[role.value] is None:
            raise ConfigurationError(
                f"policy {policy.name!r} needs a {role} model, and the job has none; give --set {role}=MODEL"
            )
    return JobConfig.model_validate(values)


_ANY = {"name": "any"}


def _keys(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Every key that can be set, dotted; one whose value has keys of its own comes before them."""
    for name, value in values.items():
        key = before + name
        if name in _FIXED or key == "sampling":
            continue
        yield key
        if isinstance(value, Mapping) and name not in tuple(ModelRole):
            yield from _keys(value, f"{key}.")
    if not before:
        yield from _keys(values["sampling"], "sampling.")


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        values = values[name]
    values[last] = value
