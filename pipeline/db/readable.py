"""Rows that this program cannot read, damaged or stored by another version: what can be read of them is shown.

A list shows such a row with the reason; a command about that one row ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from pipeline.errors import ConfigurationError, DamagedRow
from pipeline.jobs.config import JobConfig
from pipeline.results.unreadable import Unreadable
from pipeline.texts import printable

FAULTS = (ValueError, TypeError, LookupError, AttributeError, ConfigurationError)
"""What making a value of a damaged row raises."""
REMEDY = "it is damaged, or another version of specthink stored it"


def why_unreadable(error: BaseException) -> str:
    """One line, without what is stored: it may be a reference answer."""
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        return printable(f"{place}: {fault['msg']}" if place else fault["msg"])
    return printable(f"{type(error).__name__}: {error}")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raises DamagedRow for whatever making values of a row raises. what: the row, as the error names it."""
    try:
        yield
    except FAULTS as error:
        raise DamagedRow(f"{what} cannot be read: {why_unreadable(error)}; {REMEDY}") from error


def read_choice(kind: type[StrEnum], stored: object) -> Any:
    """The choice, or what stands in its place where this program does not know it."""
    try:
        return kind(str(stored))
    except ValueError:
        return Unreadable("unreadable: " + ("null" if stored is None else printable(repr(stored), most=60)))


def require_values(kind: type[Any], values: Mapping[str, Any]) -> None:
    """Raises ValueError where a field of a dataclass has no value and must have one."""
    for field in fields(kind):
        if field.name in values and values[field.name] is None and may_not_miss(field):
            raise ValueError(f"{field.name} is missing")


def may_not_miss(field: Field[Any]) -> bool:
    """Whether a field of a dataclass, in a module with annotations as text, has no None."""
    return "None" not in str(field.type) and field.type != "Any"


def read_config(job_id: int, stored: object) -> JobConfig:
    """A job's frozen configuration. Raises DamagedRow."""
    with reading(f"job {job_id}: its configuration"):
        return JobConfig.model_validate(stored)
