"""The command url."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.addresses import Tool, address_for
from pipeline.cli.options import StateDir, make_group, settings_of
from pipeline.errors import ConfigurationError
from pipeline.texts import visible

commands = make_group()

_EXAMPLES = """Examples:

psql "$(specthink url)"

duckdb -init <(specthink url --for duckdb)

specthink url --for dbeaver

specthink url --for grafana > provisioning/datasources/specthink.yaml
"""


@commands.command(rich_help_panel="Questions", epilog=_EXAMPLES)
def url(
    context: typer.Context,
    tool: Annotated[Tool, typer.Option("--for", help="In the form that this tool takes.")] = Tool.PSQL,
    state_dir: StateDir = None,
) -> None:
    """Print the read-only address of the database, with its password: reference answers can be read there."""
    from pipeline.embedded import resolve_connections

    found = resolve_connections(settings_of(context, state_dir)).reader_url
    if found is None:
        raise ConfigurationError(
            "there is no login that only reads: set SPECTHINK_LOGINS__READER=NAME:PASSWORD, then run `specthink "
            "migrate` once"
        )
    typer.echo(visible(address_for(tool, found)))
