"""Plain values of a row: numbers in the form of their text, what can be stored, what a value is called."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

MAX_DEPTH = 100
"""Deepest nesting of a value."""


class NumberText(str):
    """A number in the form in which the file has it."""

    __slots__ = ()


def parse_json(text: str) -> Any:
    """A JSON value with its numbers as NumberText. Raises ValueError with a reason that a person can act on."""
    try:
        return json.loads(text, **MAKE_VALUES)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("broken JSON: nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"broken JSON: {name} is not a JSON number")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"the key {first_repeated(name for name, _ in pairs)!r} occurs twice in one object")
    return values


def first_repeated(names: Iterable[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if name and times > 1), None)


MAKE_VALUES: dict[str, Any] = {
    "parse_int": NumberText,
    "parse_float": NumberText,
    "parse_constant": _refuse_constant,
    "object_pairs_hook": _refuse_repeated_keys,
}
"""How a JSON decoder makes values of a row."""


def to_plain(value: Any, *, depth: int = 0) -> Any:
    """The value with numbers as int and float, ready for a database. Raises ValueError where one cannot keep it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case NumberText():
            return _to_number(value)
        case str():
            check_text(value)
            return value
        case list():
            return [to_plain(item, depth=depth + 1) for item in value]
        case dict():
            for name in value:
                check_text(name)
            return {name: to_plain(item, depth=depth + 1) for name, item in value.items()}
    return value


def _to_number(text: NumberText) -> int | float:
    if text.removeprefix("-").isdigit():
        return int(text)  # ValueError beyond Python's limit of digits
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def check_text(text: str) -> None:
    """Raises ValueError for characters that cannot be stored: NUL, and halves of surrogate pairs."""
    if "\0" in text:
        raise ValueError("a NUL byte (written as \\u0000)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair (\\u{ord(text[error.start]):04x})") from error


def footprint(value: Any) -> int:
    """Bytes of memory that a row's values take."""
    total, rest = 0, [value]
    while rest:
        part = rest.pop()
        total += sys.getsizeof(part)
        if isinstance(part, dict):
            rest.extend(part)
            rest.extend(part.values())
        elif isinstance(part, list):
            rest.extend(part)
    return total


def type_name(value: Any) -> str:
    """What a person calls the type of a JSON value."""
    names = {NumberText: "a number", str: "text", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def text_of(value: Any) -> str:
    """A value as text: a number in the form of the file, a list or an object as JSON."""
    if isinstance(value, NumberText):
        return str.__str__(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
