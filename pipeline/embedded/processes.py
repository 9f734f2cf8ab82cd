"""Which processes belong to a state folder, and how to end them without ever touching another's.

supervisord and all that it starts carry MARKER in their environment. Postgres and Redis, which may run as another user
and rewrite what the system shows of them, are known by their command line or working folder too. A process id read from
a file is never trusted alone: it is compared with the process's start time and the machine's boot.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.embedded.folder import StateFolder

MARKER = "SPECTHINK_EMBEDDED_STATE"
"""Environment variable whose value is the state folder's path."""
_WORKER_GRACE_S = 10.0
_SERVER_GRACE_S = 60.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of this machine's life, whatever becomes of its id."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks after boot."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of a living process; None if there is none, or only its remains."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[0] in "ZX":
            return None
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=_BOOT_ID.read_text().strip())

    def is_alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self


def reap(pid: int) -> None:
    """Collect a child of this process that has ended, so that its id is free; nothing for any other process."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def find_processes(folder: StateFolder) -> list[psutil.Process]:
    """All living processes of the state folder; never this one."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs(process, folder)]


def _belongs(process: psutil.Process, folder: StateFolder) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE or not _shares_our_files(process.pid):
            return False
        return is_server(process, folder) or process.environ().get(MARKER) == str(folder.path)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _shares_our_files(pid: int) -> bool:
    """Whether a path means the same file to it: a process in a container may name our folder and mean another."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except PermissionError:
        return True  # a server under its own user, seen by a root without CAP_SYS_PTRACE; the command line decides
    except OSError:
        return False


def is_server(process: psutil.Process, folder: StateFolder) -> bool:
    """Whether it is the folder's Postgres (one of its processes) or Redis."""
    try:
        command = process.cmdline()
        name = Path(command[0]).name if command else ""
        if name == "postgres" and str(folder.postgres) in command:
            return True
        if name == "redis-server" and str(folder.redis / "redis.conf") in command:
            return True
        return name.startswith("postgres") and process.cwd() == str(folder.postgres)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def stop_processes(folder: StateFolder) -> list[str]:
    """End every process of the folder that supervisord no longer answers for; workers first, then the servers.

    Returns a line for each process that headed others.
    """
    found = find_processes(folder)
    servers = [process for process in found if is_server(process, folder)]
    others = [process for process in found if process not in servers]
    report = [_describe(process) for process in _heads(others) + _heads(servers)]
    _end(others, (signal.SIGTERM, _WORKER_GRACE_S))
    heads = _heads(servers)
    for process in heads:
        _signal(process, signal.SIGINT)  # Postgres: roll back and close at once; Redis: write out and end
    psutil.wait_procs(servers, timeout=_SERVER_GRACE_S)
    _end(find_processes(folder), (signal.SIGQUIT, _WORKER_GRACE_S))
    return report


def _end(processes: list[psutil.Process], *asking: tuple[signal.Signals, float]) -> None:
    """Ask with each signal for so many seconds, then kill."""
    alive = processes
    for sign, grace_s in (*asking, (signal.SIGKILL, _WORKER_GRACE_S)):
        for process in alive:
            _signal(process, sign)
        alive = psutil.wait_procs(alive, timeout=grace_s)[1]


def _signal(process: psutil.Process, sign: signal.Signals) -> None:
    """Send a signal; psutil refuses when the process id has been given to another process since."""
    try:
        process.send_signal(sign)
    except psutil.NoSuchProcess:
        return


def _heads(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those whose parent is not among them."""
    pids = {process.pid for process in processes}
    return [process for process in processes if _parent_pid(process) not in pids]


def _parent_pid(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.name()} left over (pid {process.pid})"
    except psutil.NoSuchProcess:
        return f"a left-over process (pid {process.pid})"
