"""Fields of pydantic models as the reference shows them: default, bounds, and the docstring that stands beneath."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Described(NamedTuple):
    """A field with its docstring, '' where it has none."""

    name: str
    field: FieldInfo
    docstring: str


def described_fields(model: type[BaseModel]) -> Iterator[Described]:
    docstrings: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if parent is not BaseModel and issubclass(parent, BaseModel) and parent.__module__.startswith("pipeline."):
            docstrings |= field_docstrings(parent)
    for name, field in model.model_fields.items():
        yield Described(name, field, docstrings.get(name, ""))


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The strings that stand under a class's own fields."""
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(defined, ast.ClassDef)
    found = {}
    for statement, following in zip(defined.body, defined.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            value = ast.literal_eval(following.value)
            found[ast.unparse(statement.target)] = inspect.cleandoc(value)
    return found


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "see meaning"
    value = field.default
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`" if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """The choices of a Literal or the bounds of a number; '' where any value will do."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    signs = {"ge": "≥", "gt": "&gt;", "le": "≤", "lt": "&lt;"}
    bounds = [
        f"{signs[type(bound).__name__.lower()]} {next(iter(vars_of(bound).values())):g}"
        for bound in metadata
        if type(bound).__name__.lower() in signs
    ]
    if bounds:
        return ", ".join(bounds)
    if inspect.isclass(annotation) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    inner = [allowed(part, bounds_of(part)) for part in get_args(annotation) if part is not type(None)]
    return ", ".join(text for text in inner if text)


def bounds_of(annotation: Any) -> list[Any]:
    """The bounds that an Annotated carries inside pydantic's own description of a field."""
    carried = getattr(annotation, "__metadata__", ())
    return [bound for part in carried for bound in (part.metadata if isinstance(part, FieldInfo) else [part])]


def vars_of(bound: Any) -> dict[str, Any]:
    return {name: getattr(bound, name) for name in bound.__dataclass_fields__}


def is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)
