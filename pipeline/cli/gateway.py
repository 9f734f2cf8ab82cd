"""Commands of the gateway: gateway, key, alias."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import AsJson, StateDir, make_group, once, settings_of
from pipeline.cli.render import console, print_json, table
from pipeline.key_roles import KeyRole

if TYPE_CHECKING:
    from sqlalchemy import Connection

PANEL = "Over HTTP"

commands = make_group()


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink gateway · specthink gateway --port 8081 · specthink gateway --address 0.0.0.0 (lets "
    "in who has a key)",
)
def gateway(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="Where it listens.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.", show_default="8080")] = None,
    state_dir: StateDir = None,
) -> None:
    """Serve files, batches, models and chat as OpenAI's API has them, and pages of jobs and samples for a browser.

    It needs Postgres only. Any number of them may run; one that is killed loses nothing.
    """
    from pipeline.embedded.connections import resolve_gateway
    from pipeline.logs import configure_logging

    settings = settings_of(context, state_dir)
    configure_logging(settings)
    given = {name: value for name, value in {"address": address, "port": port}.items() if value is not None}
    with _extra():
        from pipeline.gateway.serving import serve
    out = console()

    def started(url: str, lacks_key: bool) -> None:
        out.print(f"gateway at {url}", soft_wrap=True, highlight=False)
        out.print(f"pages at {url.removesuffix('/v1')}", soft_wrap=True, highlight=False)
        if lacks_key:
            told = "nobody is let in before there is a key: specthink key add NAME makes one"
            out.print(told, soft_wrap=True, highlight=False)

    serve(
        resolve_gateway(settings),
        settings.gateway.model_copy(update=given),
        refresh_s=settings.metrics.refresh_s,
        on_start=started,
    )


@contextmanager
def _extra() -> Iterator[None]:
    """Raises ConfigurationError where the packages of the extra are not here."""
    from pipeline.errors import ConfigurationError

    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the gateway needs the package {error.name}, which is not here: pip install 'specthink[gateway]'"
        ) from error


key = typer.Typer(rich_markup_mode="markdown", no_args_is_help=True)
commands.add_typer(key, name="key", rich_help_panel=PANEL, help="Make, list and revoke the keys that open the gateway.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, for people.")]


@contextmanager
def _owner(context: typer.Context, state_dir: Path | None) -> Iterator[Connection]:
    from pipeline.cli.removal import owner_database
    from pipeline.db.session import transaction

    with owner_database(context, state_dir) as db_engine, transaction(db_engine) as connection:
        yield connection


@key.command(epilog="Examples: specthink key add ann · specthink key add dashboard --role read")
def add(
    context: typer.Context,
    name: Name,
    role: Annotated[
        KeyRole, typer.Option(help="read: looks only; submit: its own files and batches; admin: everybody's.")
    ] = KeyRole.SUBMIT,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Most requests a minute to each gateway.", show_default="no limit")
    ] = None,
    max_file_mib: Annotated[
        int | None, typer.Option(min=1, help="Largest upload.", show_default="the gateway's")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Make a key, and print it this once: only its hash is stored. Needs the login that owns the schema."""
    from pipeline.db.gateway.keys import insert_key
    from pipeline.gateway.keys import check_name, hash_of, make_key

    check_name(name)
    made = make_key()
    with _owner(context, state_dir) as connection:
        insert_key(
            connection,
            name=name,
            sha256=hash_of(made),
            role=role,
            requests_per_minute=requests_per_minute,
            max_file_bytes=None if max_file_mib is None else max_file_mib * 2**20,
        )
    typer.echo(made)


@key.command("list")
def list_keys(context: typer.Context, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """The keys there are, and when each was last used. The keys themselves are stored nowhere."""
    from pipeline.db.gateway import keys

    with _owner(context, state_dir) as connection:
        found = keys.list_keys(connection)
    if as_json:
        print_json(found)
        return
    rows = [[one.name, one.role.value, one.created_at, one.last_used_at, one.revoked_at] for one in found]
    columns = ["name", "role", "made", "last used", "revoked"]
    console().print(table(columns, rows) if rows else "no keys yet; specthink key add NAME makes one")


@key.command()
def revoke(context: typer.Context, name: Name, state_dir: StateDir = None) -> None:
    """Let a key open nothing from now on. What its owner has stays."""
    from pipeline.db.gateway.keys import revoke_key

    with _owner(context, state_dir) as connection:
        revoke_key(connection, name)


alias = typer.Typer(rich_markup_mode="markdown", no_args_is_help=True)
commands.add_typer(
    alias, name="alias", rich_help_panel=PANEL, help="Give a pair of models a name that requests may use."
)

AliasName = Annotated[str, typer.Argument(metavar="NAME", help="What requests write as their model.")]


@alias.command(
    epilog="Examples: specthink alias save pair --small org/a-1b --large org/b-32b · specthink alias save careful "
    "--small org/a-1b --large org/b-32b --policy speculative-thinking:paper --set temperature=0.2"
)
def save(
    context: typer.Context,
    name: AliasName,
    small: Annotated[str | None, typer.Option(metavar="MODEL", help="The name that workers serve it under.")] = None,
    large: Annotated[str | None, typer.Option(metavar="MODEL", help="The same of the large model.")] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME[:PRESET]", help="Who writes what.", show_default="as for submit")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another option, as temperature or max_tokens; JSON or text."),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Save a name for a pair and how it is asked. Requests that were made before keep what they had."""
    from pipeline.db.gateway.keys import save_alias

    with _extra():
        from pipeline.gateway.aliases import check_alias
    given = {"small": small, "large": large, "policy": policy}
    named = [(option, value) for option, value in given.items() if value is not None]
    options: dict[str, Any] = once(chain(named, map(_parsed, changes or ())), option="--set")
    check_alias(name, options)
    with _owner(context, state_dir) as connection:
        save_alias(connection, name, options)


def _parsed(change: str) -> tuple[str, Any]:
    """KEY=VALUE with its value as JSON, or as text where it is none."""
    import json

    option, equals, value = change.partition("=")
    if not equals:
        raise typer.BadParameter(f"{change!r} is not KEY=VALUE", param_hint="--set")
    try:
        return option, json.loads(value)
    except ValueError:
        return option, value


@alias.command("list")
def list_aliases(context: typer.Context, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """The saved names."""
    from pipeline.db.gateway import keys

    with _owner(context, state_dir) as connection:
        found = keys.list_aliases(connection)
    if as_json:
        print_json(found)
        return
    rows = [
        [name, options.get("policy"), options.get("small"), options.get("large")] for name, options in found.items()
    ]
    columns = ["name", "policy", "small", "large"]
    console().print(table(columns, rows) if rows else "no saved names yet; specthink alias save NAME makes one")


@alias.command()
def rm(context: typer.Context, name: AliasName, state_dir: StateDir = None) -> None:
    """Forget a saved name."""
    from pipeline.db.gateway.keys import drop_alias

    with _owner(context, state_dir) as connection:
        drop_alias(connection, name)
