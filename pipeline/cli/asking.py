"""The options of submit that say how models are asked and drawn from, for both roles and for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from pipeline.cli.options import once

PANEL = "How models are asked"

System: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="TEXT|@FILE", help="A system message for both models.", rich_help_panel=PANEL),
]
RoleSystem: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TEXT|@FILE", help="For this model alone.", rich_help_panel=PANEL)
]
TemplateVariables: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A variable of both chat templates, e.g. enable_thinking=true; may be given again.",
        rich_help_panel=PANEL,
    ),
]
RoleTemplateVariables: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="For this model alone.", rich_help_panel=PANEL),
]
ThinkTagsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="OPEN,CLOSE",
        help="Tags around the thoughts, where the pipeline does not find them; none: it does not think.",
        rich_help_panel=PANEL,
    ),
]

StopStrings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End a sample where this text comes outside its thoughts; in double quotes it is read as JSON, for "
        "newlines and the like; may be given again.",
        rich_help_panel=PANEL,
    ),
]
RoleStopStrings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="For what this model writes, in the place of --stop.", rich_help_panel=PANEL),
]


def asking(system: str | None, variables: list[str] | None, think_tags: str | None) -> dict[str, Any]:
    """The fields of an Asking that were given."""
    given: dict[str, Any] = {}
    if system is not None:
        given["system"] = _text(system)
    if variables:
        given["template_variables"] = once(map(_variable, variables), option="--template-var")
    if think_tags is not None:
        given["think_tags"] = _tags(think_tags)
    return given


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{given[1:]} cannot be read: {error}", param_hint="--system") from error


_PYTHONS = {"True": "true", "False": "false", "None": "null"}


def _variable(given: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is JSON is read as such, True, False and None as Python means them, others as text."""
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise typer.BadParameter(
            f"{given!r}: write NAME=VALUE, as in enable_thinking=true", param_hint="--template-var"
        )
    try:
        return name, json.loads(_PYTHONS.get(value, value))
    except ValueError:
        return name, value


def stop_strings(given: list[str] | None) -> tuple[str, ...] | None:
    """None where none was given."""
    if not given:
        return None
    return tuple(str(json_value(text, option="--stop")) if text.startswith('"') else text for text in given)


def json_value(text: str, *, option: str) -> Any:
    """Lists, objects, quoted text, true, false and null as JSON; any other text as it is."""
    if not text.startswith(("[", "{", '"')) and text not in ("true", "false", "null"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text}: not JSON ({error})", param_hint=option) from error


def _tags(given: str) -> tuple[str, ...]:
    if given == "none":
        return ()
    opening, comma, closing = given.partition(",")
    if not (opening and comma and closing):
        raise typer.BadParameter(
            f"{given!r}: write OPEN,CLOSE, as in '<thought>,</thought>', or none", param_hint="--think-tags"
        )
    return opening, closing
