"""Start and stop the servers of a state folder, and run programs beside them.

A start first mends: whatever a crash left over of this folder's processes is ended, then everything begins clean.
supervisord outlives the process that calls start, unless die_with_parent ties it to that process. If supervisord is
killed, so are the programs it runs, by the signal that launcher.py arranges.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from pipeline.embedded import postgres, redis_server
from pipeline.embedded.connections import Connections, find_connections, write_running
from pipeline.embedded.folder import StateFolder
from pipeline.embedded.opening import Listen, Opened, close_gate, open_gate
from pipeline.embedded.processes import ProcessIdentity, reap, stop_processes
from pipeline.embedded.supervision import (
    Program,
    ProgramPhase,
    ProgramState,
    Service,
    SupervisorClient,
    is_written,
    last_lines,
    launch_supervisord,
    wait_until,
    worker_service,
    write_service,
    written_argv,
    written_environment,
)
from pipeline.errors import ConfigurationError, NotFound, ServiceUnavailable
from pipeline.logins import DatabaseRole

SERVERS = ("postgres", "redis")
READY_TIMEOUT_S = 180.0
"""Postgres is ready in one second and Redis in a tenth; a starved machine or a recovery after a crash takes longer."""
_REDIS_PORTS_TRIED = 3
_ENDED = frozenset({ProgramPhase.STOPPED, ProgramPhase.EXITED, ProgramPhase.CONFIGURATION_ERROR, ProgramPhase.GAVE_UP})


class EmbeddedState:
    """Running servers of one state folder, and the programs beside them. Got from start()."""

    def __init__(self, folder: StateFolder, connections: Connections) -> None:
        self._folder = folder
        self._supervisor = SupervisorClient(folder)
        self.connections = connections

    @property
    def state_dir(self) -> Path:
        return self._folder.path

    def add_programs(self, programs: Iterable[Program]) -> None:
        """Take in programs without starting them; those known already in the same form are left as they are.

        Raises ConfigurationError for a bad name, and for another form of a program that is running: nothing is changed
        then, also not of the other programs.
        """
        with self._folder.lock():
            self._add_programs(programs)

    def _add_programs(self, programs: Iterable[Program]) -> None:
        programs = list(programs)
        services = [worker_service(self._folder, program) for program in programs]
        running = {state.name for state in self._supervisor.program_states() if state.state not in _ENDED}
        for service in services:
            if service.name in running and not is_written(self._folder, service):
                raise ConfigurationError(self._other_form(service))
        for program in programs:  # anew, because each one's priority is above those of the programs before it
            write_service(self._folder, worker_service(self._folder, program))
            if program.name not in running:
                self._supervisor.add_program(program.name)

    def _other_form(self, service: Service) -> str:
        """Why a running program is not changed: its command line is another, or what it is started with."""
        written, wanted = written_argv(self._folder, service.name) or (), tuple(service.launch["argv"])
        stop_it = f"stop it first: specthink down {service.name}"
        if written == wanted:
            return f"{service.name} is running with other settings; nothing was changed. To change them, {stop_it}"
        differ = " ".join(word for word in written if word not in wanted)
        return f"{service.name} is running with {differ}; nothing was changed. To change it, {stop_it}"

    def argv_of(self, name: str) -> tuple[str, ...] | None:
        """The command line of an added program; None where there is none of this name."""
        return written_argv(self._folder, name)

    def environment_of(self, name: str) -> Mapping[str, str]:
        """What an added program is given beside the servers' environment; {} where there is none of this name."""
        return written_environment(self._folder, name)

    def last_lines(self, name: str, num_lines: int = 5) -> str:
        """The end of a program's log for an error message, with the log's path: of its present start alone, where this
        object started it."""
        return self._supervisor.last_lines(name, num_lines)

    def start_program(self, name: str) -> None:
        """Start a program that was added; nothing if it runs. Raises NotFound."""
        self._supervisor.start_program(name)

    def stop_program(self, name: str) -> bool:
        """Stop a program and wait for its end; False if it was not running. Raises NotFound."""
        return bool(_stop_programs(self._folder, self._supervisor, [self._supervisor.program_state(name)]))

    def stop_programs(self, names: Sequence[str]) -> list[str]:
        """Stop programs, all at once, and wait for their ends; returns those that ran.

        Raises NotFound for one that there is not, and ConfigurationError for a server: nothing is stopped then.
        """
        known = {state.name: state for state in self.program_states()}
        for name in names:
            if name in SERVERS:
                raise ConfigurationError(f"{name} is a server that everything here needs: specthink down stops all")
            if name not in known:
                raise NotFound(f"there is no program {name!r}; there are {', '.join(known.keys() - {*SERVERS})}")
        with self._folder.lock():
            return _stop_programs(self._folder, self._supervisor, [known[name] for name in names])

    def open_to_others(self, listen: Listen) -> Opened:
        """Let other hosts reach the servers by the gate, as a writer alone; see ``pipeline.embedded.opening``."""
        with self._folder.lock():
            return open_gate(self._folder, self._supervisor, listen, self._redis_url)

    def close_to_others(self) -> bool:
        """Let no other host reach the servers; False where none could."""
        with self._folder.lock():
            return close_gate(self._folder, self._supervisor, self._redis_url)

    @property
    def _redis_url(self) -> str:
        return self.connections.redis_url.get_secret_value()

    @property
    def made_system_user(self) -> bool:
        """Whether a start in this folder made the system user that the servers run as."""
        return self._folder.made_user_file.exists()

    def program_states(self) -> list[ProgramState]:
        """The servers and the added programs, as they are now."""
        return self._supervisor.program_states()


def start(state_dir: Path, programs: Iterable[Program] = (), *, die_with_parent: bool = False) -> EmbeddedState:
    """Start the servers, or find them running, and add programs; see EmbeddedState.start_program for starting those.

    die_with_parent: everything ends with this process, even if that is killed; call from the main thread. Servers that
    run already keep the life they were started with.
    Raises ConfigurationError for a folder that cannot be used, ServiceUnavailable when a server does not start.
    """
    if sys.platform != "linux":
        raise ConfigurationError(
            "the embedded servers need Linux; name servers of your own by SPECTHINK_DATABASE_URL and "
            "SPECTHINK_REDIS_URL"
        )
    folder = StateFolder.of(state_dir)
    folder.create()
    with folder.lock():
        state = _find_state(folder) or _start_clean(folder, die_with_parent=die_with_parent)
        state._add_programs(programs)
    return state


def find_running(state_dir: Path) -> EmbeddedState:
    """The running servers of a folder. Raises ServiceUnavailable where none run; none are started."""
    folder = StateFolder.of(state_dir)
    connections = find_connections(folder.path)
    if connections is None:
        raise ServiceUnavailable(f"nothing runs for the state folder {folder.path}; start it with `specthink up`")
    return EmbeddedState(folder, connections)


def _find_state(folder: StateFolder) -> EmbeddedState | None:
    """The running state, its servers ready; None when it must be started."""
    connections = find_connections(folder.path)
    if connections is None:
        return None
    supervisor = SupervisorClient(folder)
    try:
        for name in SERVERS:
            supervisor.start_program(name)
        _wait_for_postgres(folder, supervisor)
        _wait_for_redis(folder, supervisor, connections.redis_url.get_secret_value())
    except ServiceUnavailable:
        return None
    return EmbeddedState(folder, connections)


def _start_clean(folder: StateFolder, *, die_with_parent: bool) -> EmbeddedState:
    _stop_all(folder)
    try:
        return _launch(folder, die_with_parent=die_with_parent)
    except BaseException:
        _stop_all(folder)
        raise


def _launch(folder: StateFolder, *, die_with_parent: bool) -> EmbeddedState:
    """Start supervisord, then Postgres, then Redis, each when the one before is ready."""
    if folder.is_held():
        raise ServiceUnavailable(
            f"the servers of {folder.path} run where this process cannot see them, perhaps in another container; "
            "stop them there, or choose another --state-dir"
        )
    folder.create_run()
    if folder.joined.exists():
        raise ConfigurationError(
            f"{folder.path} has joined the servers of another host: leave them by `specthink join --leave`, or choose "
            "another --state-dir"
        )
    for path in (*folder.programs.glob("*.json"), *folder.programs.glob("*.starts")):
        path.unlink()
    user = postgres.service_user(folder)
    write_service(folder, postgres.prepare(folder, user))
    launch_supervisord(folder, die_with_parent=die_with_parent)
    supervisor = SupervisorClient(folder)
    supervisor.start_program("postgres")
    redis_url = _start_redis(folder, supervisor, user)
    _wait_for_postgres(folder, supervisor)
    postgres.ensure_database(folder)
    connections = Connections(
        database_url=SecretStr(postgres.connection_url(folder)),
        redis_url=SecretStr(redis_url),
        reader_url=SecretStr(postgres.connection_url(folder, postgres.LOGINS[DatabaseRole.READER])),
        role_urls={
            role: SecretStr(postgres.connection_url(folder, login))
            for role, login in postgres.LOGINS.items()
            if role is not DatabaseRole.READER
        },
    )
    supervisord = ProcessIdentity.of(supervisor.pid())
    if supervisord is None:
        raise ServiceUnavailable(f"supervisord ended while it started; {last_lines(folder.log_path('supervisord'))}")
    write_running(folder, supervisord, connections)
    return EmbeddedState(folder, connections)


def _start_redis(folder: StateFolder, supervisor: SupervisorClient, user: tuple[int, int] | None) -> str:
    """Start Redis and return its address; with another port where somebody took the chosen one in between."""
    preferred = redis_server.last_port(folder)
    for attempt in range(_REDIS_PORTS_TRIED):
        port = redis_server.choose_port(preferred if attempt == 0 else None)
        write_service(folder, redis_server.prepare(folder, user, port))
        supervisor.add_program("redis")
        supervisor.start_program("redis")
        url = redis_server.connection_url(folder, port)
        try:
            _wait_for_redis(folder, supervisor, url)
        except ServiceUnavailable:
            _stop_programs(folder, supervisor, [supervisor.program_state("redis")])
            continue
        return url
    raise ServiceUnavailable(f"Redis did not start; {supervisor.last_lines('redis')}")


def _wait_for_postgres(folder: StateFolder, supervisor: SupervisorClient) -> None:
    _wait_ready(folder, supervisor, "postgres", lambda: postgres.try_connect(folder))


def _wait_for_redis(folder: StateFolder, supervisor: SupervisorClient, url: str) -> None:
    _wait_ready(folder, supervisor, "redis", lambda: redis_server.try_connect(url))


def _wait_ready(folder: StateFolder, supervisor: SupervisorClient, name: str, is_ready: Callable[[], bool]) -> None:
    """Wait until the server answers; fail as soon as its process has ended."""
    first = supervisor.program_state(name)

    def ready_or_ended() -> bool:
        return is_ready() or supervisor.program_state(name).pid != first.pid

    if not wait_until(ready_or_ended, READY_TIMEOUT_S) or not is_ready():
        raise ServiceUnavailable(f"{name} did not start; {supervisor.last_lines(name)}")


def stop(state_dir: Path) -> list[str]:
    """Stop what start() started in this folder and nothing else; returns what was stopped, empty if nothing ran."""
    folder = StateFolder.of(state_dir)
    if not folder.exists():
        return []
    with folder.lock():
        return _stop_all(folder)


def purge(state_dir: Path) -> list[str]:
    """Stop what runs in a state folder, and remove it with all of its data and the system user that it made.

    Returns what was done, empty where there is no state folder. Raises ServiceUnavailable where its servers run out of
    this process's sight.
    """
    folder = StateFolder.of(state_dir)
    if not folder.exists():
        return []
    with folder.lock():
        stopped = _stop_all(folder)
        if folder.is_held():
            raise ServiceUnavailable(f"the servers of {folder.path} run where this process cannot see them")
        made_user = folder.made_user_file.exists()
        shutil.rmtree(folder.path)
    done = [f"stopped: {', '.join(stopped)}"] if stopped else []
    done.append(f"removed: {folder.path}")
    if made_user:
        reason = postgres.remove_system_user()
        name = f"the system user {postgres.SYSTEM_USER}"
        done.append(f"removed: {name}" if reason is None else f"{name} stays: {reason}; `userdel` removes it")
    return done


def _stop_all(folder: StateFolder) -> list[str]:
    """Stop by way of supervisord, then end what it did not, then remove the traces. Call with the lock held."""
    stopped = _stop_supervised(folder)
    stopped += stop_processes(folder)
    for path in (folder.running_file, folder.gate_file, folder.token_file):
        path.unlink(missing_ok=True)
    (folder.path / "supervisord.pid").unlink(missing_ok=True)
    folder.remove_run()
    return stopped


def _stop_supervised(folder: StateFolder) -> list[str]:
    """Stop the programs, all at once, then the servers, then supervisord. Nothing if it does not answer."""
    supervisor = SupervisorClient(folder)
    try:
        identity = ProcessIdentity.of(supervisor.pid())
        states = supervisor.program_states()
        programs = [state for state in reversed(states) if state.name not in SERVERS]
        stopped = _stop_programs(folder, supervisor, programs)
        servers = [state for state in reversed(states) if state.name in SERVERS]
        for state in servers:
            stopped += _stop_programs(folder, supervisor, [state])
    except ServiceUnavailable:
        return []
    with contextlib.suppress(ServiceUnavailable):  # it may end before it has answered
        supervisor.shut_down()
    if identity is not None:
        wait_until(lambda: _is_gone(identity), READY_TIMEOUT_S)
    return stopped


def _is_gone(identity: ProcessIdentity) -> bool:
    reap(identity.pid)
    return not identity.is_alive()


def _stop_programs(folder: StateFolder, supervisor: SupervisorClient, states: list[ProgramState]) -> list[str]:
    """Ask all to stop, then wait for all; supervisord kills what takes longer than it may. Returns those that ran."""
    names = [state.name for state in states if state.state not in _ENDED]
    for name in names:
        supervisor.ask_to_stop(name)
    deadline = time.monotonic() + READY_TIMEOUT_S
    for name in names:
        wait_until(lambda name=name: supervisor.program_state(name).state in _ENDED, deadline - time.monotonic())  # type: ignore[misc]
    return names
