"""The command about models: what the pipeline makes of one, or of a pair."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pipeline.cli.asking import System, TemplateVariables, ThinkTagsOption, asking
from pipeline.cli.options import AsJson, make_group
from pipeline.cli.render import console, print_json

PANEL = "Jobs"

commands = make_group()

_EXAMPLES = """Examples:

specthink model ./models/small ./models/large

specthink model org/hybrid-8b --template-var enable_thinking=true
"""


@commands.command(rich_help_panel=PANEL, epilog=_EXAMPLES)
def model(
    small: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or a hub id.")],
    large: Annotated[
        str | None, typer.Argument(metavar="[LARGE]", help="The large model of a pair.", show_default=False)
    ] = None,
    system: System = None,
    template_var: TemplateVariables = None,
    think_tags: ThinkTagsOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what the pipeline makes of a model or a pair: prompt, think phase, ends, identity. Nothing is stored."""
    from pipeline.chat.asking import Asking
    from pipeline.chat.description import describe_model, describe_pair
    from pipeline.chat.model import ChatModel
    from pipeline.jobs.submission import options_checked

    with options_checked():
        asked = Asking(**asking(system, template_var, think_tags))
    chats = [ChatModel.load(name).asked(asked) for name in (small, large) if name is not None]
    parts = [describe_model(chat) for chat in chats]
    if len(chats) == 2:
        parts.append(describe_pair(*chats))
    if as_json:
        print_json(parts)
    else:
        _print(parts)


def _print(parts: list[dict[str, Any]]) -> None:
    out = console()
    for part in parts:
        width = max(map(len, part))
        for name, value in part.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            out.print(f"{name:{width}}  {json.dumps(shown, ensure_ascii=False) if name == 'prompt' else shown}",
                      markup=False, highlight=False, soft_wrap=True)  # fmt: skip
        out.print()
