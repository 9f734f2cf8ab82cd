"""Commands that are one program in the foreground: worker, flower, metrics."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from pipeline.cli.options import Accelerate, DraftTokens, EngineArg, StateDir, make_group, settings_of

if TYPE_CHECKING:
    from pipeline.devices import Pool

PANEL = "Running it"

commands = make_group()

_WORKER_EXAMPLES = """Examples:

specthink worker small --model org/small-1b --device-share 0.3

specthink worker large --model /models/large-32b --name-served org/large-32b --max-in-flight 64

specthink worker large --model org/large-32b-awq --engine-arg max_num_batched_tokens=4096

specthink worker large --model org/large-32b --accelerate ngram --draft-tokens 6: off unless it is asked for

specthink worker large --model org/large-70b --server http://host:8000/v1: through somebody's server

specthink worker large --file specthink.toml: as the file's large pool says, on the GPUs that this process sees

specthink worker grade --concurrency 4 · specthink worker upkeep
"""

worker = typer.Typer(
    help="Run one worker in the foreground, until it is told to stop.", epilog=_WORKER_EXAMPLES, no_args_is_help=True
)
commands.add_typer(worker, name="worker", rich_help_panel=PANEL)

Model = Annotated[
    str | None, typer.Option(help="A local folder or hub id.", show_default="that of the role's pool in --file")
]
PoolFile = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Be a worker of this role's pool in a specthink.toml.")
]
Revision = Annotated[str | None, typer.Option(help="Hub revision.")]
NameServed = Annotated[
    str | None, typer.Option(help="The name jobs use for it.", show_default="the hub id, or the folder's base name")
]
MaxInFlight = Annotated[int | None, typer.Option(min=1, help="Samples written at the same time.", show_default="128")]
DeviceShare = Annotated[
    float | None, typer.Option(min=0.01, max=1.0, help="Share of the GPU's memory.", show_default="0.9")
]
EngineProcess = Annotated[
    str | None,
    typer.Option(
        metavar="inline|separate",
        help="Engine in the worker's process, or in its own.",
        show_default="inline on a CPU, separate on a GPU",
    ),
]

Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Write through the OpenAI-compatible server that has the model: http://host:8000/v1."
    ),
]
ServerModel = Annotated[
    str | None, typer.Option(metavar="NAME", help="The server's name for the model.", show_default="that of --model")
]


def _add_writer(role: str, told: str) -> None:
    """The command of a role that writes. told: what it does."""

    @worker.command(role, help=told)
    def write(
        context: typer.Context,
        model: Model = None,
        file: PoolFile = None,
        name_served: NameServed = None,
        revision: Revision = None,
        max_in_flight: MaxInFlight = None,
        device_share: DeviceShare = None,
        engine_process: EngineProcess = None,
        engine_arg: EngineArg = None,
        server: Server = None,
        server_model: ServerModel = None,
        accelerate: Accelerate = None,
        draft_tokens: DraftTokens = None,
        state_dir: StateDir = None,
    ) -> None:
        engine = EngineOptions(device_share, engine_process, engine_arg, server, server_model, accelerate, draft_tokens)
        options = WriterOptions(name_served, revision, max_in_flight, engine)
        _become_writer(context, role, model, file, options, state_dir)


_add_writer("small", "Draft with a small model.")
_add_writer("large", "Take over with a large model.")


@worker.command()
def judge(
    context: typer.Context,
    model: Model = None,
    file: PoolFile = None,
    name_served: NameServed = None,
    revision: Revision = None,
    max_in_flight: MaxInFlight = None,
    device_share: DeviceShare = None,
    engine_process: EngineProcess = None,
    engine_arg: EngineArg = None,
    server: Server = None,
    server_model: ServerModel = None,
    state_dir: StateDir = None,
) -> None:
    """Say how good steps are, for the policies that ask a judge."""
    engine = EngineOptions(device_share, engine_process, engine_arg, server, server_model)
    options = WriterOptions(name_served, revision, max_in_flight, engine)
    _become_writer(context, "judge", model, file, options, state_dir)


@worker.command()
def grade(
    context: typer.Context,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Grading processes.", show_default="1")] = None,
    state_dir: StateDir = None,
) -> None:
    """Grade complete samples."""
    _become(context, ["grade"], {"SPECTHINK_GRADING__CONCURRENCY": concurrency}, state_dir)


@worker.command()
def upkeep(context: typer.Context, state_dir: StateDir = None) -> None:
    """Admit, rescue, publish again, close jobs. One leads; more stand by."""
    _become(context, ["upkeep"], {}, state_dir)


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink flower --port 5555 · specthink flower --address 0.0.0.0 (needs a password)",
)
def flower(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="Where it listens.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.", show_default="0")] = None,
    state_dir: StateDir = None,
) -> None:
    """Serve Flower, the web page of workers, tasks and queues."""
    _become(context, ["flower"], {"SPECTHINK_FLOWER__ADDRESS": address, "SPECTHINK_FLOWER__PORT": port}, state_dir)


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink metrics --port 9464 · specthink metrics --once: print them and end",
)
def metrics(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="Where it listens.", show_default="127.0.0.1")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where Prometheus asks.")] = 9464,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics once; serve nothing.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Serve the metrics of all jobs and workers for Prometheus, read from the database every few seconds."""
    import signal

    from pipeline.db.revision import require_current
    from pipeline.db.session import open_database
    from pipeline.embedded import resolve_connections
    from pipeline.logs import configure_logging
    from pipeline.metrics import make_registry, render, serve

    settings = settings_of(context, state_dir)
    configure_logging(settings)
    connections = resolve_connections(settings)
    db_engine = open_database(connections.monitor_url, pool_size=1, application_name="specthink metrics")
    require_current(db_engine)
    registry = make_registry(db_engine, connections.redis_url, refresh_s=settings.metrics.refresh_s)
    if once:
        typer.echo(render(registry).decode(), nl=False)
        return
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # before threads begin, which inherit it
    place = address or settings.metrics.address
    served = serve(registry, place, port)
    typer.echo(f"metrics at http://{place}:{served.port}/metrics")
    signal.sigwait(stop_signals)
    served.stop()


class EngineOptions(NamedTuple):
    """What its engine is told; None: as its settings say."""

    device_share: float | None
    process: str | None
    arguments: list[str] | None
    server: str | None
    server_model: str | None
    accelerate: str | None = None
    draft_tokens: int | None = None


class WriterOptions(NamedTuple):
    """What a worker with an engine may be told; None: as its settings say."""

    name_served: str | None
    revision: str | None
    max_in_flight: int | None
    engine: EngineOptions


def _become_writer(
    context: typer.Context,
    role: str,
    model: str | None,
    file: Path | None,
    options: WriterOptions,
    state_dir: Path | None,
) -> NoReturn:
    """An option wins over what the file says."""
    from pipeline.cli.placement import pool_of_worker
    from pipeline.samples import ModelRole

    pool = _pool_of_options(pool_of_worker(ModelRole(role), model, file), options)
    arguments = [role, "--model", pool.model]
    arguments += ["--name", pool.name] if pool.name else []
    arguments += ["--revision", pool.revision] if pool.revision else []
    engine = {
        "SPECTHINK_ENGINE__MAX_IN_FLIGHT": pool.max_in_flight,
        "SPECTHINK_ENGINE__MAX_MODEL_LEN": pool.max_model_len,
        "SPECTHINK_ENGINE__VLLM__GPU_MEMORY_UTILIZATION": pool.share,
        "SPECTHINK_ENGINE__VLLM__TENSOR_PARALLEL_SIZE": pool.tp,
        "SPECTHINK_ENGINE__VLLM__CPU_THREADS": pool.threads,
        "SPECTHINK_ENGINE__VLLM__PROCESS": options.engine.process,
        "SPECTHINK_ENGINE__VLLM__ARGUMENTS": json.dumps(dict(pool.arguments)) if pool.arguments else None,
        "SPECTHINK_ENGINE__VLLM__ACCELERATE": pool.accelerate,
        "SPECTHINK_ENGINE__VLLM__DRAFT_TOKENS": pool.draft_tokens,
        "SPECTHINK_ENGINE__KIND": "server" if pool.server else None,
        "SPECTHINK_ENGINE__SERVER__URL": pool.server,
        "SPECTHINK_ENGINE__SERVER__MODEL": pool.server_model,
    }
    _become(context, arguments, {**pool.environment, **engine}, state_dir)


def _pool_of_options(pool: Pool, options: WriterOptions) -> Pool:
    """The pool as the options change it. Raises ConfigurationError for what does not go with a server."""
    import dataclasses

    from pipeline.engine_arguments import parse_arguments
    from pipeline.errors import ConfigurationError

    engine = options.engine
    given: dict[str, Any] = {
        "name": options.name_served,
        "revision": options.revision,
        "max_in_flight": options.max_in_flight,
        "share": engine.device_share,
        "server": engine.server,
        "server_model": engine.server_model,
        "accelerate": engine.accelerate,
        "draft_tokens": engine.draft_tokens,
    }
    if (empty := next((name for name, value in given.items() if value == ""), None)) is not None:
        option = "name-served" if empty == "name" else empty.replace("_", "-")
        raise ConfigurationError(f"--{option} is empty: leave it out, or say which")
    changed = dataclasses.replace(pool, **{name: value for name, value in given.items() if value is not None})
    arguments = {**pool.arguments, **parse_arguments(engine.arguments or ())}
    changed = dataclasses.replace(changed, arguments=arguments)
    changed.require_accelerator()
    changed.require_servers_own()
    if changed.server and engine.process:
        raise ConfigurationError("--engine-process says where an engine of this machine runs; --server has its own")
    return changed


def _become(
    context: typer.Context, arguments: list[str], options: Mapping[str, object], state_dir: Path | None
) -> NoReturn:
    """Turn this process into ``python -m workers …``; options go along as settings. A wrong one is refused here."""
    from pipeline.settings import load_settings

    for variable, value in options.items():
        if value is not None:
            os.environ[variable] = str(value)
    chosen = state_dir or context.find_root().obj
    settings = load_settings(state_dir=chosen)
    os.environ["SPECTHINK_STATE_DIR"] = str(settings.state_dir)
    os.execv(sys.executable, [sys.executable, "-m", "workers", *arguments])
