"""The exits there are, and how a job names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from pipeline.errors import ConfigurationError
from pipeline.policies.exits.controls import CutExit, RandomExit
from pipeline.policies.exits.spec import ExitSpec
from pipeline.policies.exits.think_brake import ThinkBrakeExit
from pipeline.policies.exits.trials import AgreementExit, DeerExit, LargeExtractExit

_EXITS: dict[str, type[ExitSpec]] = {
    "cut": CutExit,
    "random": RandomExit,
    "deer": DeerExit,
    "agreement": AgreementExit,
    "large-extract": LargeExtractExit,
    "think_brake": ThinkBrakeExit,
}


def exit_names() -> tuple[str, ...]:
    return tuple(_EXITS)


def exit_type(name: str) -> type[ExitSpec]:
    """The spec of a name. Raises ConfigurationError that lists the choices."""
    if name not in _EXITS:
        raise ConfigurationError(f"there is no exit {name!r}; choose one of: {', '.join(_EXITS)}")
    return _EXITS[name]


def exit_defaults(name: str) -> dict[str, Any]:
    """All values of an exit as it comes; None for one that has no default."""
    fields = exit_type(name).model_fields
    return {field: None if info.is_required() else info.default for field, info in fields.items()}


def _named(value: Any) -> Any:
    """The name alone is the exit as it comes; values without a name are those of ``cut``."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    name = value.get("name", "cut")
    if name not in _EXITS:
        raise ValueError(f"there is no exit {name!r}; choose one of: {', '.join(_EXITS)}")
    return {**value, "name": name}


AnyExitSpec: TypeAlias = Annotated[
    CutExit | RandomExit | DeerExit | AgreementExit | LargeExtractExit | ThinkBrakeExit,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
"""An exit as a job stores it."""
