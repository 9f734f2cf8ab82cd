"""The options of submit that say how models are asked and drawn from, for both roles and for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

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
        "--template-var",
        metavar="NAME=VALUE",
        help="A variable of both chat templates, e.g. enable_thinking=true; may be given again.",
        rich_help_panel=PANEL,
    ),
]
SmallTemplateVariables: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--small-template-var", metavar="NAME=VALUE", help="For the small model alone.", rich_help_panel=PANEL
    ),
]
LargeTemplateVariables: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--large-template-var", metavar="NAME=VALUE", help="For the large model alone.", rich_help_panel=PANEL
    ),
]
ThinkTagsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="OPEN,CLOSE",
        help="Tags around the thoughts, where the pipeline does not find them; none: it does not think.",
        rich_help_panel=PANEL,
    ),
]


def asking(system: str | None, variables: list[str] | None, think_tags: str | None) -> dict[str, Any]:
    """The fields of an Asking that were given."""
    given: dict[str, Any] = {}
    if system is not None:
        given["system"] = _text(system)
    if variables:
        given["template_variables"] = dict(map(_variable, variables))
    if think_tags is not None:
        given["think_tags"] = _tags(think_tags)
    return given


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{given[1:]} cannot be read: {error}", param_hint="--system") from error


def _variable(given: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is JSON is read as such, any other is text."""
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise typer.BadParameter(
            f"{given!r}: write NAME=VALUE, as in enable_thinking=true", param_hint="--template-var"
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _tags(given: str) -> tuple[str, ...]:
    if given == "none":
        return ()
    opening, comma, closing = given.partition(",")
    if not (opening and comma and closing):
        raise typer.BadParameter(
            f"{given!r}: write OPEN,CLOSE, as in '<thought>,</thought>', or none", param_hint="--think-tags"
        )
    return opening, closing
