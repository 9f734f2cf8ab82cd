"""supervisord of one state folder: its configuration, its start, and the calls it answers on its socket.

A program's whole start (arguments, environment, user) stands in programs/NAME.json, which launcher.py reads;
supervisord's configuration names only that file. So nothing has to be quoted for supervisord, and no value shows
in ``ps``.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.embedded import launcher
from pipeline.embedded.folder import StateFolder, read_json, write_private
from pipeline.embedded.processes import MARKER, ProcessIdentity, reap
from pipeline.errors import ConfigurationError, NotFound, ServiceUnavailable

SUPERVISORD: tuple[str, ...] = ("-m", "supervisor.supervisord")
"""Python's arguments before supervisord's own."""
EXIT_CONFIGURATION_ERROR = ConfigurationError.exit_code
SUPERVISOR_TIMEOUT_S = 120.0
_RPC_TIMEOUT_S = 30.0
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_RESERVED_NAMES = frozenset({"postgres", "redis", "gate", "supervisord"})
_FAULT_BAD_NAME, _FAULT_ALREADY_STARTED, _FAULT_NOT_RUNNING = 10, 60, 70  # supervisor.xmlrpc.Faults

_NOT_INHERITED = ("SPECTHINK_FLOWER__BASIC_AUTH", "SPECTHINK_LOGINS__")
"""Secrets that a program has only where they are spelled out for it."""

_HEAD = """\
[unix_http_server]
file={socket}
chmod=0700

[supervisord]
nodaemon=true
silent=true
identifier=specthink
logfile=logs/supervisord.log
logfile_maxbytes=10MB
logfile_backups=3
pidfile=supervisord.pid
nocleanup=true
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
# startsecs=0: supervisord keeps an exit code only of a program that it takes for started. autorestart=unexpected: exit
# codes other than these, and death by a signal, are followed by a new start, which launcher.py delays and bounds.
_PROGRAM = """
[program:{name}]
command="%(ENV_SPECTHINK_PYTHON)s" -I -S "%(ENV_SPECTHINK_CHILD)s" programs/{name}.json
priority={priority}
autostart=false
autorestart=unexpected
exitcodes={exit_codes}
startsecs=0
stopsignal={stop_signal}
stopwaitsecs={stop_wait_s}
stopasgroup={as_group}
killasgroup=true
redirect_stderr=true
stdout_logfile=logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that supervisord keeps running beside the servers."""

    name: str
    """Lower-case letters, digits, dots, hyphens, underscores."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment that the servers were started from, and to SPECTHINK_STATE_DIR."""
    cwd: Path | None = None
    """None: the state folder."""
    stop_wait_s: int = 30
    """Seconds from SIGTERM to SIGKILL; a vLLM worker needs 20 or more."""
    max_starts: int = 8
    """A program that ended so many times within window_s is given up, and not started again."""
    window_s: float = 600.0


class ProgramPhase(StrEnum):
    """What a supervised program is doing."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    """Not started yet, or stopped on request."""
    RESTARTING = "restarting"
    """It ended unexpectedly and is started again."""
    EXITED = "exited"
    """It ended with exit code 0 and stays so."""
    CONFIGURATION_ERROR = "configuration error"
    """It ended with exit code 2 and stays so until what its log says is mended."""
    GAVE_UP = "gave up"
    """It ended too often; its log says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramState:
    """One supervised program, now."""

    name: str
    state: ProgramPhase
    pid: int | None
    exit_code: int | None
    """Of its last end; None while it runs, before its first end, and after death by a signal."""
    log_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A program together with how supervisord is to treat it."""

    name: str
    launch: Mapping[str, Any]
    """What launcher.py reads; see there."""
    priority: int
    """Stopped from the highest to the lowest."""
    stop_signal: str = "TERM"
    stop_wait_s: int = 60
    as_group: bool = False
    """Whether the stop signal goes to the program's whole process group."""
    ends_for_good: tuple[int, ...] = (launcher.EXIT_GAVE_UP,)
    """Exit codes after which it is not started again."""


def worker_service(folder: StateFolder, program: Program) -> Service:
    """A caller's program as supervisord runs it, stopped before those that were added before it.

    Raises ConfigurationError for a name that cannot be used.
    """
    if not _NAME.fullmatch(program.name) or program.name in _RESERVED_NAMES:
        raise ConfigurationError(
            f"program name {program.name!r}: use lower-case letters, digits, '.', '-', '_', and not "
            + ", ".join(sorted(_RESERVED_NAMES))
        )
    launch = {
        "argv": list(program.argv),
        "env": {"SPECTHINK_STATE_DIR": str(folder.path), **program.env},
        "cwd": str(program.cwd or folder.path),
        "death_signal": "SIGKILL",  # a worker that nobody watches must not linger; its lease gives its work to others
        **restart_bound(folder, program.name, max_starts=program.max_starts, window_s=program.window_s),
    }
    return Service(
        name=program.name,
        launch=launch,
        priority=_priorities(folder).get(program.name) or max([99, *_priorities(folder).values()]) + 1,
        stop_wait_s=program.stop_wait_s,
        as_group=True,
        ends_for_good=(0, EXIT_CONFIGURATION_ERROR, launcher.EXIT_GAVE_UP),
    )


def _priorities(folder: StateFolder) -> dict[str, int]:
    """Of every program that is written."""
    return {path.stem: read_json(path)["supervise"]["priority"] for path in folder.programs.glob("*.json")}


def restart_bound(folder: StateFolder, name: str, *, max_starts: int, window_s: float) -> dict[str, Any]:
    """The part of a launch specification that bounds quick restarts."""
    return {"history": str(_history_path(folder, name)), "max_starts": max_starts, "window_s": window_s}


def tireless_restart(folder: StateFolder, name: str) -> dict[str, Any]:
    """The same for a server: in the end every ten seconds, and never given up. Its disk may be full for hours."""
    return restart_bound(folder, name, max_starts=1000, window_s=300)


def _history_path(folder: StateFolder, name: str) -> Path:
    return folder.programs / f"{name}.starts"


def is_written(folder: StateFolder, service: Service) -> bool:
    """Whether this is what the program is already."""
    return bool(read_json(_service_path(folder, service.name)) == _content(service))


def write_service(folder: StateFolder, service: Service) -> bool:
    """Write what a program is; True where that differs from before."""
    if is_written(folder, service):
        return False
    write_private(_service_path(folder, service.name), json.dumps(_content(service), indent=1))
    return True


def written_argv(folder: StateFolder, name: str) -> tuple[str, ...] | None:
    """The command line of a program as it is written; None where there is no such program."""
    content = read_json(_service_path(folder, name))
    return None if content is None else tuple(content["argv"])


def written_environment(folder: StateFolder, name: str) -> Mapping[str, str]:
    """What a program is given as it is written; {} where there is no such program."""
    content = read_json(_service_path(folder, name)) or {}
    given: Mapping[str, str] = content.get("env", {})
    return given


def _service_path(folder: StateFolder, name: str) -> Path:
    return folder.programs / f"{name}.json"


def _content(service: Service) -> dict[str, Any]:
    supervise = {
        "name": service.name,
        "priority": service.priority,
        "stop_signal": service.stop_signal,
        "stop_wait_s": service.stop_wait_s,
        "as_group": "true" if service.as_group else "false",
        "exit_codes": ",".join(str(code) for code in service.ends_for_good),
    }
    return {**service.launch, "supervise": supervise}


def write_configuration(folder: StateFolder) -> None:
    """Write supervisord.conf for every program that is written so far."""
    user = "user=root\n" if os.geteuid() == 0 else ""  # else it warns of running as root
    parts = [_HEAD.format(socket=folder.supervisor_socket, user=user)]
    for path in sorted(folder.programs.glob("*.json")):
        parts.append(_PROGRAM.format(**read_json(path)["supervise"]))
    write_private(folder.path / "supervisord.conf", "".join(parts))


def launch_supervisord(folder: StateFolder, *, die_with_parent: bool) -> None:
    """Start supervisord and wait until it answers. The sockets' folder must be there and empty.

    die_with_parent: it stays this process's child and is told to stop, with all it runs, when this process dies. Linux
    ties that to the thread that starts it, so this must be the main thread.
    """
    if die_with_parent and threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            "die_with_parent: start the servers from the main thread, whose end is the process's end"
        )
    launch: dict[str, Any] = {
        "argv": [sys.executable, *SUPERVISORD, "-c", "supervisord.conf"],
        "env": {
            MARKER: str(folder.path),
            "SPECTHINK_PYTHON": sys.executable,
            "SPECTHINK_CHILD": launcher.__file__,
        },
        "cwd": str(folder.path),
        "umask": 0o077,  # of all it starts: logs, the append-only file, whatever a worker writes
        "output": str(folder.log_path("supervisord.out")),
        "hold": str(folder.alive_file),
    }
    launch |= {"death_signal": "SIGTERM", "parent_pid": os.getpid()} if die_with_parent else {"detach": True}
    spec = folder.path / "supervisord.json"
    write_private(spec, json.dumps(launch, indent=1))
    write_configuration(folder)
    argv = [sys.executable, "-I", "-S", launcher.__file__, str(spec)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    pid = os.posix_spawn(sys.executable, argv, environment, setsid=die_with_parent)
    if not die_with_parent:
        os.waitpid(pid, 0)
    _wait_for_answer(folder, child_pid=pid if die_with_parent else None)


def _wait_for_answer(folder: StateFolder, child_pid: int | None) -> None:
    supervisor = SupervisorClient(folder)
    deadline = time.monotonic() + SUPERVISOR_TIMEOUT_S
    while not supervisor.answers():
        if time.monotonic() > deadline or (child_pid is not None and _has_ended(child_pid)):
            raise ServiceUnavailable(f"supervisord did not start: {last_lines(folder.log_path('supervisord.out'))}")
        time.sleep(0.05)


def _has_ended(pid: int) -> bool:
    reap(pid)
    return ProcessIdentity.of(pid) is None


def last_lines(path: Path, num_lines: int = 5, *, since: int = 0) -> str:
    """The end of a log for an error message, with the log's path. since: leave out its first so many bytes."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    if len(content) >= since:  # else another file has taken its place
        content = content[since:]
    lines = content.decode("utf-8", errors="replace").splitlines()[-num_lines:]
    return "\n".join([f"see {path}", *(f"  {line}" for line in lines)])


class SupervisorClient:
    """Calls to the supervisord of a state folder. Every method raises ServiceUnavailable when it does not answer."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self._log_sizes: dict[str, int] = {}
        """Of the programs that this client started, before they were."""

    def answers(self) -> bool:
        try:
            self.pid()
        except ServiceUnavailable:
            return False
        return True

    def pid(self) -> int:
        return int(self._call("supervisor.getPID"))

    def program_states(self) -> list[ProgramState]:
        """All programs, the servers first, then in the order in which they were added."""
        infos: list[dict[str, Any]] = self._call("supervisor.getAllProcessInfo")
        priorities = _priorities(self._folder)
        return [self._state_of(info) for info in sorted(infos, key=lambda info: priorities[info["name"]])]

    def program_state(self, name: str) -> ProgramState:
        """Raises NotFound for a name that was not added."""
        return self._state_of(self._call("supervisor.getProcessInfo", name))

    def add_program(self, name: str) -> None:
        """Take in a program that was written, in its present form; it must not be running."""
        write_configuration(self._folder)
        _, changed, removed = self._call("supervisor.reloadConfig")[0]
        if name in changed or name in removed:
            self._call("supervisor.removeProcessGroup", name)
        if name not in [state.name for state in self.program_states()]:
            self._call("supervisor.addProcessGroup", name)

    def remove_program(self, name: str) -> None:
        """Forget a program that does not run."""
        _service_path(self._folder, name).unlink(missing_ok=True)
        write_configuration(self._folder)
        self._call("supervisor.reloadConfig")
        self._call("supervisor.removeProcessGroup", name)

    def start_program(self, name: str) -> None:
        """Start it, with its count of quick restarts at zero; nothing if it runs."""
        state = self.program_state(name)
        if state.state in (ProgramPhase.RUNNING, ProgramPhase.STARTING):
            return
        _history_path(self._folder, name).unlink(missing_ok=True)
        log = self._folder.log_path(name)
        self._log_sizes[name] = log.stat().st_size if log.exists() else 0
        self._call("supervisor.startProcess", name, False, tolerated=_FAULT_ALREADY_STARTED)

    def last_lines(self, name: str, num_lines: int = 5) -> str:
        """The end of a program's log for an error message: since this client started it, where it did."""
        return last_lines(self._folder.log_path(name), num_lines, since=self._log_sizes.get(name, 0))

    def ask_to_stop(self, name: str) -> bool:
        """Send the stop signal and do not wait; False if it was not running."""
        return bool(self._call("supervisor.stopProcess", name, False, tolerated=_FAULT_NOT_RUNNING))

    def shut_down(self) -> None:
        """Ask supervisord to stop what runs, from the highest priority to the lowest, and to end."""
        self._call("supervisor.shutdown")

    def _state_of(self, info: dict[str, Any]) -> ProgramState:
        phase, exit_code = phase_of(info["statename"], info["exitstatus"], has_ended=info["stop"] > 0)
        return ProgramState(
            name=info["name"],
            state=phase,
            pid=info["pid"] or None,
            exit_code=exit_code,
            log_path=self._folder.log_path(info["name"]),
        )

    def _call(self, method: str, *arguments: Any, tolerated: int | None = None) -> Any:
        """One call on a connection of its own. A fault that is tolerated gives False."""
        transport = _UnixTransport(self._folder.supervisor_socket)
        try:
            with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as proxy:
                return getattr(proxy, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == tolerated:
                return False
            if fault.faultCode == _FAULT_BAD_NAME:
                raise NotFound(f"no program {arguments[0]!r} in {self._folder.path}") from fault
            raise ServiceUnavailable(f"supervisord refused {method}{arguments}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise ServiceUnavailable(
                f"no supervisord answers for {self._folder.path} ({error}); start it with `specthink up`"
            ) from error


def phase_of(statename: str, exit_status: int, *, has_ended: bool) -> tuple[ProgramPhase, int | None]:
    """supervisord's state name and exit status (-1: a signal) as a phase and an exit code."""
    phases = {
        "STARTING": ProgramPhase.STARTING,
        "RUNNING": ProgramPhase.RUNNING,
        "STOPPING": ProgramPhase.STOPPING,
        "STOPPED": ProgramPhase.STOPPED,
        "BACKOFF": ProgramPhase.RESTARTING,
        "FATAL": ProgramPhase.GAVE_UP,
    }
    exits = {
        0: ProgramPhase.EXITED,
        EXIT_CONFIGURATION_ERROR: ProgramPhase.CONFIGURATION_ERROR,
        launcher.EXIT_GAVE_UP: ProgramPhase.GAVE_UP,
    }
    phase = phases.get(statename) or exits.get(exit_status, ProgramPhase.RESTARTING)
    ended = has_ended and statename in ("EXITED", "STOPPED")
    return phase, exit_status if ended and exit_status >= 0 else None


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition came true within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("supervisor", timeout=_RPC_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_RPC_TIMEOUT_S)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.close()
            raise


class _UnixTransport(xmlrpc.client.Transport):
    """Calls supervisord over its socket file, with a time limit, which supervisor's own SupervisorTransport lacks."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """The connection that close() closes; host is named by the protocol and means nothing on a socket file."""
        connection = _UnixConnection(self._path)
        self._connection = host, connection
        return connection
