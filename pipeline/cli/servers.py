"""Commands for servers and all that runs beside them: up, down, join, migrate."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    Accelerate,
    DraftTokens,
    EngineArg,
    StateDir,
    chosen_state_dir,
    command_line,
    make_group,
    settings_of,
    typed,
)
from pipeline.cli.render import console, table
from pipeline.texts import visible

if TYPE_CHECKING:
    from pydantic import SecretStr

    from pipeline.devices import Pool
    from pipeline.embedded import EmbeddedState, Opened
    from pipeline.samples import ModelRole

PANEL = "Running it"

commands = make_group()

_UP_EXAMPLES = """Examples:

specthink up: Postgres, Redis, grading, upkeep and Flower

specthink up --small examples/models/demo-small --large examples/models/demo-large: the demo pair's workers too

specthink up --small org/a-1b --small org/b-1b --large org/large-32b: two small models

specthink up --small org/small-1b --large org/large-32b --dry-run: which workers would run where

specthink up --small org/small-1b --large org/large-32b --judge org/prm-7b: a judge's worker, too

specthink up --small org/small-1b@0,1 --large org/large-32b@2-5:tp=2: on these GPUs

specthink up --small org/small-1b --large org/large-70b --large-server http://host:8000/v1: large is somebody's server

specthink up --small org/small-1b --large org/large-32b --large-accelerate draft:org/small-1b: small drafts for large

specthink up --file specthink.toml: pools, devices, engine arguments and environment from a file

specthink up --listen 10.0.0.1: hosts that join may have workers of their own here

specthink up small: start the small worker again that `specthink down small` has stopped

specthink --state-dir /data/run-7 up --no-flower: beside another one
"""


@commands.command(rich_help_panel=PANEL, epilog=_UP_EXAMPLES)
def up(
    context: typer.Context,
    programs: Annotated[
        list[str] | None, typer.Argument(metavar="[PROGRAM]...", help="Start only these again, as they were.")
    ] = None,
    small: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL[@GPUS][:tp=N]", help="Start small workers: a folder or hub id, on these GPUs. Repeatable."
        ),
    ] = None,
    large: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL[@GPUS][:tp=N]", help="Start large workers: a folder or hub id, on these GPUs. Repeatable."
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL[@GPUS][:tp=N]", help="Start judge workers: a folder or hub id, on these GPUs. Repeatable."
        ),
    ] = None,
    small_server: Annotated[
        str | None, typer.Option(metavar="URL", help="The small model runs there: an OpenAI-compatible server.")
    ] = None,
    large_server: Annotated[
        str | None, typer.Option(metavar="URL", help="The large model runs there: an OpenAI-compatible server.")
    ] = None,
    judge_server: Annotated[
        str | None, typer.Option(metavar="URL", help="The judge runs there: an OpenAI-compatible server.")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Start the pools of a specthink.toml.")] = None,
    engine_arg: EngineArg = None,
    small_engine_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="The same for small workers alone.")
    ] = None,
    large_engine_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="The same for large workers alone.")
    ] = None,
    judge_engine_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="The same for judge workers alone.")
    ] = None,
    small_accelerate: Accelerate = None,
    large_accelerate: Accelerate = None,
    draft_tokens: DraftTokens = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which workers would run where; start nothing.")
    ] = False,
    machine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --dry-run: plan for the machine that this JSON describes.")
    ] = None,
    flower: Annotated[bool, typer.Option("--flower/--no-flower", help="Serve Flower on localhost.")] = True,
    listen: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS[:PORT]", help="Open the servers to hosts that join, by TLS; port 7432."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK", help="With --listen: hosts of these networks alone.", show_default="those beside ADDRESS"
        ),
    ] = None,
    insecure_network: Annotated[
        bool, typer.Option("--insecure-network", help="With --listen: no TLS, whoever sees the network reads along.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Start embedded servers and workers, and leave them running; what runs already is left as it is.

    On a machine with GPUs it chooses GPUs, tensor parallelism, shares of memory and how many workers, and prints that
    before it starts. What does not fit is refused.

    A worker that runs with another model or other settings is not changed: stop it first, by `specthink down PROGRAM`.

    Without --listen no other host reaches the servers; where they were open they are closed.
    """
    from pipeline.cli.placement import chosen_pools, look, print_plan
    from pipeline.embedded import Listen
    from pipeline.local import start_again, start_local
    from pipeline.samples import ModelRole

    err = console(stderr=True)
    settings = settings_of(context, state_dir)
    if programs:
        _refuse_beside_programs(context)
        _show_programs(start_again(settings, programs, on_event=lambda event: err.print(f"… {event}", style="dim")))
        return
    own = {ModelRole.SMALL: small_engine_arg, ModelRole.LARGE: large_engine_arg, ModelRole.JUDGE: judge_engine_arg}
    arguments = {role: [*(engine_arg or ()), *(given or ())] for role, given in own.items()}
    models = {ModelRole.SMALL: small or [], ModelRole.LARGE: large or [], ModelRole.JUDGE: judge or []}
    servers = {ModelRole.SMALL: small_server, ModelRole.LARGE: large_server, ModelRole.JUDGE: judge_server}
    accelerators = {ModelRole.SMALL: small_accelerate, ModelRole.LARGE: large_accelerate}
    pools = chosen_pools(models, file, arguments, servers, accelerators, draft_tokens)
    _require_engines(pools, engine_arg or (), own, accelerators, draft_tokens)
    if machine and not dry_run:
        raise typer.BadParameter("it is for --dry-run: workers start on this machine", param_hint="--machine")
    if listen is None and (allow or insecure_network):
        hint = "--allow" if allow else "--insecure-network"
        raise typer.BadParameter("it goes with --listen ADDRESS", param_hint=hint)
    place = Listen.parse(listen, networks=tuple(allow or ()), insecure=insecure_network) if listen is not None else None
    if dry_run:
        if not pools:
            raise typer.BadParameter("there are no workers to plan: give models, or a --file", param_hint="--dry-run")
        print_plan(console(), look(settings, pools, machine))
        return
    stack = start_local(
        settings,
        pools=pools,
        flower=flower,
        listen=place,
        on_event=lambda event: err.print(f"… {event}", style="dim"),
        on_plan=lambda plan: print_plan(err, plan),
    )
    _show_programs(stack.state)
    out = console()
    out.print(f"state folder {stack.state.state_dir}, database revision {stack.revision}", soft_wrap=True)
    if stack.flower_url:
        out.print(f"Flower: {stack.flower_url}")
    if stack.opened:
        _show_opened(stack.opened)
    out.print(f"stop all of it: {command_line(chosen_state_dir(context, state_dir))} down", soft_wrap=True)


def _refuse_beside_programs(context: typer.Context) -> None:
    """Programs start again as they were: no option changes them."""
    if others := typed(context):
        raise typer.BadParameter(
            f"name programs to start again, or give models, not both: leave out {', '.join(others)}",
            param_hint="PROGRAM",
        )


def _require_engines(
    pools: Sequence[Pool],
    arguments: Sequence[str],
    own_arguments: Mapping[ModelRole, Sequence[str] | None],
    accelerators: Mapping[ModelRole, str | None],
    draft_tokens: int | None,
) -> None:
    """Refuse what is told to engines where none of them is to start."""
    roles = {pool.role for pool in pools}
    here = {pool.role for pool in pools if not pool.server}
    if not here and (arguments or any(own_arguments.values())):
        remedy = "servers have all models, and are told by their own command lines" if pools else "give models too"
        raise typer.BadParameter(f"there are no engines to start: {remedy}", param_hint="--engine-arg")
    for role, given in own_arguments.items():
        if given and role not in here:
            where = "a server has its model, and is told by its own command line" if role in roles else "give its model"
            raise typer.BadParameter(
                f"there is no {role.value} engine to start: {where}", param_hint=f"--{role.value}-engine-arg"
            )
    for role, accelerate in accelerators.items():
        if accelerate and role not in roles:
            hint = f"--{role.value}-accelerate"
            raise typer.BadParameter(f"there is no {role.value} engine to start: give its model too", param_hint=hint)
    if draft_tokens and not any(pool.accelerate for pool in pools):
        raise typer.BadParameter("nothing makes drafts: give an accelerator too", param_hint="--draft-tokens")


def _show_opened(opened: Opened) -> None:
    """What to do on another host; the token is a file, and nothing of it is shown."""
    out = console()
    lock = "without TLS: whoever sees this network reads and changes along" if opened.insecure else "by TLS"
    state = "open as it was" if opened.was_open else "open"
    out.print(f"{state} to {', '.join(opened.networks)} at {opened.address} port {opened.port}, {lock}", soft_wrap=True)
    out.print(
        f"on another host: copy {opened.token_file} there (a secret: scp -p keeps its mode), then\n"
        f"  specthink join {opened.token_file.name}\n  specthink worker small --model MODEL",
        soft_wrap=True,
        markup=False,
    )


def _show_programs(state: EmbeddedState) -> None:
    rows = [[program.name, program.state.value, program.pid] for program in state.program_states()]
    out = console()
    out.print(table(["program", "state", "pid"], rows))
    out.print(f"logs: {state.state_dir}/logs/PROGRAM.log", soft_wrap=True)


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink down small · specthink --state-dir /data/run-7 down · specthink down --purge",
)
def down(
    context: typer.Context,
    programs: Annotated[
        list[str] | None, typer.Argument(metavar="[PROGRAM]...", help="Stop only these, as `specthink up` names them.")
    ] = None,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Then remove the state folder: all jobs and logs, and the system user it made."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --purge: do not ask.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Stop what `up` started in this state folder, and nothing else. The data stay, but for --purge."""
    from pipeline.embedded import find_running, stop

    settings = settings_of(context, state_dir)
    if purge:
        _purge(settings.state_dir, programs or [], yes=yes)
        return
    if not programs:
        stopped = stop(settings.state_dir)
        typer.echo(f"stopped: {', '.join(stopped)}" if stopped else visible(f"nothing runs for {settings.state_dir}"))
        return
    stopped = find_running(settings.state_dir).stop_programs(programs)
    again = f"{command_line(chosen_state_dir(context, state_dir))} up {' '.join(programs)}"
    typer.echo(
        visible(f"stopped: {', '.join(stopped)}; start again: {again}") if stopped else "none of these was running"
    )


def _purge(state_dir: Path, programs: list[str], *, yes: bool) -> None:
    from pipeline.embedded import purge

    if programs:
        raise typer.BadParameter("it removes all of the state folder; name no program", param_hint="--purge")
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is nobody to ask: give --yes", param_hint="--purge")
        typer.confirm(f"remove {visible(str(state_dir))} with all of its jobs, for good?", abort=True)
    done = purge(state_dir)
    typer.echo(visible("\n".join(done) if done else f"{state_dir} is no state folder; nothing was removed"))


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink join join-token · specthink --state-dir run-7 join join-token · specthink join --leave",
)
def join(
    context: typer.Context,
    token: Annotated[
        Path | None, typer.Argument(metavar="TOKEN-FILE", help="The file that `specthink up --listen` names.")
    ] = None,
    leave: Annotated[bool, typer.Option("--leave", help="Forget the servers that this host has joined.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Let workers of this host write for the servers of another one, with the rights of a writer alone.

    The servers must prove by the certificate in the token who they are. The token is kept in the state folder, mode
    0600: `specthink worker small` and `large` use it from then on.
    """
    from pipeline.embedded import is_running
    from pipeline.embedded.folder import StateFolder
    from pipeline.embedded.joining import Token, store_token
    from pipeline.embedded.joining import leave as leave_servers
    from pipeline.errors import ConfigurationError

    settings = settings_of(context, state_dir)
    if (token is None) != leave:
        raise typer.BadParameter("give a token, or --leave", param_hint="TOKEN-FILE")
    if token is None:
        left = leave_servers(settings.state_dir)
        typer.echo("left" if left else visible(f"{settings.state_dir} has joined no servers"))
        return
    if settings.database_url is not None or settings.redis_url is not None:
        raise ConfigurationError(
            "SPECTHINK_DATABASE_URL or SPECTHINK_REDIS_URL names servers, and would win over those that are joined: "
            "unset both"
        )
    read = Token.read(token)
    folder = StateFolder.of(settings.state_dir)
    folder.create()
    with folder.lock():
        if is_running(folder.path):
            raise ConfigurationError(
                f"servers of its own run in {folder.path}: stop them by `specthink down`, or choose another --state-dir"
            )
        store_token(folder, read, _require_usable)
    typer.echo(visible(f"joined {read.host} port {read.port} as {read.login}, {'TLS' if read.authority else 'no TLS'}"))
    typer.echo(
        visible(f"workers here: {command_line(chosen_state_dir(context, state_dir))} worker small --model MODEL")
    )


def _require_usable(database_url: SecretStr, redis_url: SecretStr) -> None:
    """Raises PipelineError where a worker could not work with these servers."""
    from pipeline.db.revision import require_current
    from pipeline.db.session import open_database
    from pipeline.redis_checks import reach_broker

    db_engine = open_database(database_url, pool_size=1, application_name="specthink join")
    try:
        require_current(db_engine)
    finally:
        db_engine.dispose()
    reach_broker(redis_url)


@commands.command(
    rich_help_panel=PANEL,
    epilog="Example: SPECTHINK_DATABASE_URL=postgresql://user:password@host/name specthink migrate",
)
def migrate(
    context: typer.Context,
    lock_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Wait so long for a table in use, then change nothing.")
    ] = 10.0,
    state_dir: StateDir = None,
) -> None:
    """Bring the database to this version's schema, and let its logins do what they need.

    Two at once wait for each other. A migration that is due is refused while workers run: stop them, migrate, start
    them again; their jobs go on. Where none is due, nothing is touched and workers may run.
    """
    import datetime as dt

    from pipeline.db.grants import create_logins, grant_roles
    from pipeline.db.migrate import upgrade
    from pipeline.db.session import open_database, transaction
    from pipeline.embedded import EMBEDDED_LOGINS, resolve_connections

    settings = settings_of(context, state_dir)
    given = settings.logins.all()
    url = settings.database_url or resolve_connections(settings).database_url
    db_engine = open_database(url, application_name="specthink migrate")
    revision = upgrade(
        db_engine,
        lock_timeout=dt.timedelta(seconds=lock_timeout),
        on_wait=lambda what: console(stderr=True).print(f"… {what}", style="dim"),
    )
    with transaction(db_engine) as connection:
        if settings.database_url is None:
            grant_roles(connection, EMBEDDED_LOGINS)
        elif given:
            create_logins(connection, given.values())
            grant_roles(connection, {role: login.name for role, login in given.items()})
    db_engine.dispose()
    typer.echo(f"database at revision {revision}")
