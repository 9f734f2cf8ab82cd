"""Everything on this machine: embedded servers, the newest schema, and workers beside them, one process each."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.db import migrate, report_queries
from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.devices import Machine, Plan, PlannedWorker, Pool, for_installed_engine, plan_workers, probe
from pipeline.devices.kept import as_json, recall
from pipeline.embedded import (
    EMBEDDED_LOGINS,
    GATE,
    SERVERS,
    EmbeddedState,
    Listen,
    Opened,
    Program,
    ProgramPhase,
    ProgramState,
    find_running,
    is_running,
    start,
)
from pipeline.embedded.folder import read_json, write_private
from pipeline.errors import ConfigurationError, NotFound, ProgramFailed, ServiceUnavailable
from pipeline.samples import ModelRole
from pipeline.settings import EngineKind, Settings

WORKERS_TIMEOUT_S = 900.0
"""A large model on a GPU takes minutes to load and to compile."""
_PYTHON = (sys.executable, "-m", "workers")
_GATEWAY = (sys.executable, "-m", "pipeline.cli", "gateway")
_GPUS = "CUDA_VISIBLE_DEVICES"
_KEY = "SPECTHINK_ENGINE__SERVER__API_KEY"
_ALIVE = (ProgramPhase.STARTING, ProgramPhase.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStack:
    """What runs on this machine. flower_url, pages_url: None where Flower, or the gateway, was not asked for."""

    state: EmbeddedState
    revision: str
    flower_url: str | None
    pages_url: str | None = None
    opened: Opened | None = None
    """Where other hosts may join."""


def start_local(
    settings: Settings,
    *,
    small: str | Sequence[str] | None = None,
    large: str | Sequence[str] | None = None,
    judge: str | Sequence[str] | None = None,
    pools: Sequence[Pool] = (),
    flower: bool = True,
    gateway: bool = False,
    listen: Listen | None = None,
    die_with_parent: bool = False,
    on_event: Callable[[str], None] = lambda event: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> LocalStack:
    """Start the embedded servers, migrate, and start workers: grading and upkeep always, the models' where given.

    small, large, judge: a local folder or hub id, or several, each with a worker of its own. pools: others, whose
    numbers and devices may be left to be chosen. on_plan: told which workers will run where, before anything starts.
    Returns once every worker has registered. What runs already is left as it is. die_with_parent: everything ends with
    this process. on_event: told in a few words what is being done. listen: where hosts may join that have none of
    their own servers; None: nowhere, and where the servers were open they are closed.

    Raises ConfigurationError where the settings name servers of their own or the workers do not fit, and, with nothing
    changed, where a worker
    runs with another model or other settings; ProgramFailed with the last lines of its log when a program ends instead
    of registering; ServiceUnavailable where a server does not start.
    """
    _require_embedded(settings)
    models = {ModelRole.SMALL: small, ModelRole.LARGE: large, ModelRole.JUDGE: judge}
    pools = [*(pool for role, given in models.items() for pool in _single_workers(role, given)), *pools]
    plan = plan_here(settings, pools)
    on_plan(plan)
    on_event("starting Postgres and Redis")
    state = start(settings.state_dir, die_with_parent=die_with_parent)
    if state.made_system_user:
        on_event(
            "Postgres refuses to run as root: the first start here made the system user specthink-db for it, which "
            "`specthink down --purge` removes"
        )
    on_event("migrating the database")
    revision = _prepare_database(state)
    opened = _open_or_close(state, listen, on_event)
    wanted = [*(["flower"] if flower else []), *(["gateway"] if gateway else [])]
    sites = {name: _site(settings, state, name) for name in wanted}
    programs = _programs(settings, state, plan, sites)
    state.add_programs(programs)
    if pools:
        write_private(_plan_file(state), json.dumps(as_json(plan, pools), indent=1))
    for names in waves({program.name: program.env for program in programs}):
        _start_and_wait(state, names, sites, on_event)
    urls = {name: f"http://{address}:{port}" for name, (address, port) in sites.items()}
    return LocalStack(
        state=state, revision=revision, flower_url=urls.get("flower"), pages_url=urls.get("gateway"), opened=opened
    )


def _open_or_close(state: EmbeddedState, listen: Listen | None, on_event: Callable[[str], None]) -> Opened | None:
    if listen is not None:
        on_event(f"opening the servers to hosts that join at {listen.host} port {listen.port}")
        return state.open_to_others(listen)
    if state.close_to_others():
        on_event("the servers were open to other hosts and are closed now: `specthink up --listen ADDRESS` opens them")
    return None


def start_again(
    settings: Settings, names: Sequence[str], *, on_event: Callable[[str], None] = lambda event: None
) -> EmbeddedState:
    """Start programs that were stopped one by one, as they were; returns once they have registered.

    Raises ServiceUnavailable where the servers do not run, NotFound for a program that there is not, and ProgramFailed.
    """
    _require_embedded(settings)
    state = find_running(settings.state_dir)
    known = {program.name for program in state.program_states()}
    for name in names:
        if name not in known:
            raise NotFound(f"there is no program {name!r}; there are {', '.join(sorted(known))}")
    sites = {name: _site(settings, state, name) for name in ("flower", "gateway") if name in names}
    for wave in waves({name: state.environment_of(name) for name in names}):
        _start_and_wait(state, wave, sites, on_event)
    return state


def _require_embedded(settings: Settings) -> None:
    if settings.database_url is not None or settings.redis_url is not None:
        raise ConfigurationError(
            "SPECTHINK_DATABASE_URL or SPECTHINK_REDIS_URL names servers of your own, and `up` starts none: "
            "unset both, or run `specthink migrate` and `specthink worker …`"
        )


def _single_workers(role: ModelRole, models: str | Sequence[str] | None) -> list[Pool]:
    several = [models] if isinstance(models, str) else list(models or ())
    return [Pool(role=role, model=model, workers=1) for model in several]


def plan_here(settings: Settings, pools: Sequence[Pool]) -> Plan:
    """Which workers would run where on this machine; those that run in this state folder stay where they are.

    Raises ConfigurationError for what does not fit.
    """
    kept = {}
    if pools and is_running(settings.state_dir):
        state = find_running(settings.state_dir)
        live = {_form(state, program.name) for program in state.program_states() if program.state in _ALIVE}
        content = read_json(_plan_file(state)) or []
        kept = recall(content, pools, settings.engine, lambda worker: _worker_form(worker) in live)
    machine = for_installed_engine(probe()) if pools else Machine(cores=1, memory_gib=1)
    return plan_workers(pools, machine, settings.engine, kept)


def _plan_file(state: EmbeddedState) -> Path:
    return state.state_dir / "plan.json"


def _worker_form(worker: PlannedWorker) -> tuple[str, ...]:
    """What tells one worker's program from another's: its command line, and its GPUs."""
    return (*_PYTHON, *worker.arguments, worker.environment.get(_GPUS, ""))


def _form(state: EmbeddedState, name: str) -> tuple[str, ...]:
    return (*(state.argv_of(name) or ()), state.environment_of(name).get(_GPUS, ""))


def waves(environments: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Programs, given with their environments, in the order in which they are to start: those that share a GPU one
    after the other, since vLLM measures what is free on it while it starts; all others at once."""
    gpus = {name: {gpu for gpu in given.get(_GPUS, "").split(",") if gpu} for name, given in environments.items()}
    groups: list[list[str]] = [[]]
    for name in environments:
        sharing = (place for place, group in enumerate(groups) if any(gpus[name] & gpus[other] for other in group))
        place = max(sharing, default=-1) + 1
        groups += [[]] if place == len(groups) else []
        groups[place].append(name)
    return groups


def _prepare_database(state: EmbeddedState) -> str:
    db_engine = open_database(state.connections.database_url)
    try:
        revision = migrate.upgrade(db_engine)
        with transaction(db_engine) as connection:
            grant_roles(connection, EMBEDDED_LOGINS)
    finally:
        db_engine.dispose()
    return revision


def _programs(
    settings: Settings, state: EmbeddedState, plan: Plan, sites: Mapping[str, tuple[str, int]]
) -> list[Program]:
    """The programs as supervisord runs them. Settings come from this process's environment, spelled out for each."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("SPECTHINK_")}
    environment.pop("SPECTHINK_STATE_DIR", None)  # given by the state folder, and with it the login of each program
    environment = {name: value for name, value in environment.items() if not name.startswith("SPECTHINK_LOGINS__")}
    password = environment.pop("SPECTHINK_FLOWER__BASIC_AUTH", None)
    key = environment.pop(_KEY, None)
    of_server = {_KEY: key} if key is not None else {}
    stop_wait_s = int(settings.lease.drain_s) + 20
    written = {program.name: _form(state, program.name) for program in state.program_states()}
    programs = []
    for role in ModelRole:
        workers = [worker for worker in plan.workers if worker.pool.role is role]
        names = worker_names(role.value, [_worker_form(worker) for worker in workers], written)
        programs += [
            Program(
                name=name,
                argv=(*_PYTHON, *worker.arguments),
                env=environment | worker.environment | (of_server if worker.engine.kind is EngineKind.SERVER else {}),
                stop_wait_s=stop_wait_s,
            )
            for name, worker in zip(names, workers, strict=True)
        ]
    programs += [Program(name=kind, argv=(*_PYTHON, kind), env=environment) for kind in ("grade", "upkeep")]
    if "flower" in sites:
        flower = {**environment, "SPECTHINK_FLOWER__PORT": str(sites["flower"][1])}
        flower |= {"SPECTHINK_FLOWER__BASIC_AUTH": password} if password is not None else {}
        programs.append(Program(name="flower", argv=(*_PYTHON, "flower"), env=flower))
    if "gateway" in sites:
        listening = dict(zip(("ADDRESS", "PORT"), map(str, sites["gateway"]), strict=True))
        env = environment | {f"SPECTHINK_GATEWAY__{name}": value for name, value in listening.items()}
        programs.append(Program(name="gateway", argv=_GATEWAY, env=env))
    return programs


def worker_names(role: str, commands: Sequence[tuple[str, ...]], written: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A name for each command line, its GPUs behind it: that of a program which has it already, else the first of ROLE,
    ROLE-2, … left.

    written: the command lines of the programs that there are, by name.
    """
    names: dict[int, str] = {}
    for place, command in enumerate(commands):
        same = (name for name, argv in written.items() if argv == command and name not in names.values())
        if found := next(same, None):
            names[place] = found
    numbered = (role if number == 1 else f"{role}-{number}" for number in itertools.count(1))
    left = (name for name in numbered if name not in names.values())
    return [names[place] if place in names else next(left) for place in range(len(commands))]


def _site(settings: Settings, state: EmbeddedState, name: str) -> tuple[str, int]:
    """Where a web page of this machine is served: at the port of the settings, else at the one that it had here before,
    where it runs or the port is still free. The gateway's pages have their usual port only where a person says so."""
    of_page = settings.flower if name == "flower" else settings.gateway
    if of_page.port and (name == "flower" or "port" in of_page.model_fields_set):
        return of_page.address, of_page.port
    memory = state.state_dir / f"{name}.port"
    known = int(memory.read_text()) if memory.is_file() else 0
    running = any(program.name == name and program.state in _ALIVE for program in state.program_states())
    if known and (running or _is_free(of_page.address, known)):
        return of_page.address, known
    with socket.create_server((of_page.address, 0)) as listener:
        port = int(listener.getsockname()[1])
    write_private(memory, str(port))
    return of_page.address, port


def _is_free(address: str, port: int) -> bool:
    try:
        socket.create_server((address, port)).close()
    except OSError:
        return False
    return True


def _start_and_wait(
    state: EmbeddedState,
    names: Sequence[str],
    sites: Mapping[str, tuple[str, int]],
    on_event: Callable[[str], None],
) -> None:
    """Start programs that were added; return once all have registered. Those with a site answer there instead."""
    for name in names:
        state.start_program(name)
    db_engine = open_database(state.connections.database_url)
    deadline = time.monotonic() + WORKERS_TIMEOUT_S
    waiting_before: list[str] = []
    try:
        while True:
            programs = {program.name: program for program in state.program_states() if program.name in names}
            require_alive(state, programs)
            with transaction(db_engine) as connection:
                registered = {worker.pid for worker in report_queries.live_workers(connection)}
            waiting = [name for name in names if not _is_up(programs[name], registered, sites)]
            if not waiting:
                return
            if waiting != waiting_before:
                on_event(f"waiting for {', '.join(waiting)}")
                waiting_before = waiting
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"{waiting[0]} did not register within {WORKERS_TIMEOUT_S:.0f} s; {state.last_lines(waiting[0])}"
                )
            time.sleep(0.2)
    finally:
        db_engine.dispose()


def require_alive(state: EmbeddedState, programs: Mapping[str, ProgramState]) -> None:
    """Raise ProgramFailed where one of these programs has ended."""
    for program in programs.values():
        if program.state not in _ALIVE:
            raise ProgramFailed(program.name, program.exit_code, state.last_lines(program.name, 8))


def _is_up(program: ProgramState, registered: set[int], sites: Mapping[str, tuple[str, int]]) -> bool:
    if program.name in (*SERVERS, GATE):
        return True
    if program.name in sites:
        return _answers(sites[program.name])
    return program.pid in registered


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True
