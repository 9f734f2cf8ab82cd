"""Plans a sweep: every policy with every combination of its grid's values, each a row that is one job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.errors import ConfigurationError
from pipeline.jobs.submission import part_values
from pipeline.policies import PluginSpec, PolicySpec, parse_policy, settable_fields

BASELINES = ("small-only", "large-only")
_PARTS = ("policy", "exit", "guard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One option that is varied. key: ``policy.NAME``, ``exit.NAME``, ``guard.NAME``, or ``POLICY.NAME`` for one policy
    alone. values: as they are set."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Thresholds for wanted shares of steps, computed from a pilot for each policy that has a threshold."""

    pilot: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow:
    """A row. options: of its submission, beside those that all rows share."""

    name: str
    policy: str
    options: Mapping[str, Any]


def plan_rows(
    policies: Sequence[str], grid: Sequence[Axis] = (), *, shares: Shares | None = None, baselines: bool = False
) -> list[PlannedRow]:
    """The rows in the order of the policies, baselines first.

    Raises ConfigurationError for a policy or key that there is not, and for shares that no policy has a use for.
    """
    specs: dict[str, PolicySpec] = {}
    for name in policies:
        spec = _loaded(parse_policy(name))
        if spec not in specs.values():  # a name with and without its usual preset is one policy
            specs[name] = spec
    if not specs:
        raise ConfigurationError("no policies: name some, as in --policies glimpse,speculative-thinking:paper")
    for axis in grid:
        _require_use(axis, specs)
    if shares is not None and not any(_takes_shares(spec, grid, name) for name, spec in specs.items()):
        raise ConfigurationError("none of the policies has a threshold to calibrate; leave the shares out")
    rows = [PlannedRow(name=name, policy=name, options={}) for name in BASELINES if baselines]
    for name, spec in specs.items():
        rows += _rows_of(name, spec, grid, shares)
    return list({row.name: row for row in rows}.values())


def _loaded(spec: PolicySpec) -> PolicySpec:
    return spec.load() if isinstance(spec, PluginSpec) else spec


def _rows_of(name: str, spec: PolicySpec, grid: Sequence[Axis], shares: Shares | None) -> Iterator[PlannedRow]:
    axes = [(key, axis.values) for axis in grid if (key := _own_key(axis.key, name, spec)) is not None]
    keys = [key for key, _ in axes]
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        raise ConfigurationError(f"{repeated!r} of {name} is varied twice; give all of its values once, as KEY=V1,V2")
    given = shares.shares if shares is not None and _takes_shares(spec, grid, name) else (None,)
    for share, *values in product(given, *(values for _, values in axes)):
        options = part_values(dict(zip(keys, values, strict=True)))
        told = [f"{key.removeprefix('policy.')}={_told(value)}" for key, value in zip(keys, values, strict=True)]
        if share is not None and shares is not None:
            options["calibrated_from"] = {"job": shares.pilot, "share": share}
            told.insert(0, f"share={share:g}")
        parse_policy(name, options.get("policy_values"))
        yield PlannedRow(name=" ".join([name, *told]), policy=name, options=options)


def _told(value: Any) -> str:
    """A value in the name of a row: a number in one way, however it was typed, since rows are told apart by it."""
    if isinstance(value, bool):
        return str(value)
    try:
        return f"{float(value):.15g}"
    except (TypeError, ValueError, OverflowError):
        return str(value)


def _own_key(key: str, policy: str, spec: PolicySpec) -> str | None:
    """The key as a submission has it; None where this policy has no such number."""
    part, field = _split(key)
    if part in ("exit", "guard"):
        return key
    if part not in ("policy", policy) or field.partition(".")[0] not in type(spec).model_fields:
        return None
    return f"policy.{field}"


def _split(key: str) -> tuple[str, str]:
    """The part and the name in it. A policy's name has no full stop."""
    part, _, field = key.partition(".")
    return part, field


def _require_use(axis: Axis, specs: Mapping[str, PolicySpec]) -> None:
    part, field = _split(axis.key)
    if not field or part not in (*_PARTS, *specs):
        raise ConfigurationError(
            f"there is no {axis.key!r} to vary; write policy.NAME, exit.NAME or guard.NAME, or one of "
            f"{', '.join(f'{name}.NAME' for name in specs)} for that policy alone"
        )
    if not axis.values:
        raise ConfigurationError(f"{axis.key!r} has no values; write KEY=V1,V2")
    if all(_own_key(axis.key, name, spec) is None for name, spec in specs.items()):
        told = "; ".join(
            f"{name} has: {', '.join(settable_fields(type(spec))) or 'nothing to set'}"
            for name, spec in specs.items()
            if part in ("policy", name)
        )
        raise ConfigurationError(f"no policy of the sweep has {axis.key!r}; {told}")


def _takes_shares(spec: PolicySpec, grid: Sequence[Axis], policy: str) -> bool:
    rule = spec.threshold_rule
    return rule is not None and all(_own_key(axis.key, policy, spec) != f"policy.{rule.field}" for axis in grid)
