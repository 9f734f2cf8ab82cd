"""Starts one program as its specification says, by becoming it: ``python -I -S launcher.py SPEC.json``.

supervisord runs every program through this file, and is started through it itself. It knows nothing of the pipeline and
imports the standard library alone, so that it costs a few hundredths of a second. What it adds to a plain exec:

- the program gets a signal when its parent dies, even by SIGKILL (``PR_SET_PDEATHSIG``): none outlives supervisord;
- quick restarts wait a little longer each time, and after ``max_starts`` within ``window_s`` end with EXIT_GAVE_UP.
  supervisord's own bound (startsecs, startretries) forgets the exit code of a program that ends early, and so would try
  a configuration error again;
- started as root, a server becomes its system user and keeps one capability: to pass through and read folders. Postgres
  refuses to be root, and the state folder (0700), often inside /root (0700), would be closed to anybody else. So no
  folder's mode has to be widened.

The specification is a JSON object: argv, env, inherit_env, cwd, umask, output, user ([uid, gid]), death_signal,
parent_pid, detach, hold, history, max_starts, window_s; all but argv may be left out.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

EXIT_GAVE_UP = 75
"""This file's exit code when a program ended too often; never restarted."""
LAUNCHED_PID_VARIABLE = "SPECTHINK_LAUNCHED_PID"
"""Process id of the program that was launched with this variable: what its children compare their parent with."""

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 10.0


def restart_delay_s(starts: list[float], now: float, *, max_starts: int, window_s: float) -> float | None:
    """Seconds to wait before one more start, or None to give up.

    starts: when the earlier starts were, in seconds of the same clock as now. The first restart is at once.
    """
    recent = sum(now - window_s < start <= now for start in starts)
    if recent >= max_starts:
        return None
    return 0.0 if recent < 2 else min(_FIRST_DELAY_S * 2 ** (recent - 2), _LONGEST_DELAY_S)


def _wait_for_turn(spec: dict[str, Any]) -> None:
    """Note this start in the program's history; wait or give up if there were many."""
    history = Path(spec["history"])
    starts = json.loads(history.read_text()) if history.exists() else []
    now = time.time()
    delay_s = restart_delay_s(starts, now, max_starts=spec["max_starts"], window_s=spec["window_s"])
    if delay_s is None:
        sys.exit(_say(f"gave up: it ended {spec['max_starts']} times within {spec['window_s']:.0f} s", EXIT_GAVE_UP))
    new = history.with_suffix(".new")
    new.write_text(json.dumps([start for start in starts if now - spec["window_s"] < start <= now] + [now]))
    new.replace(history)
    time.sleep(delay_s)


def _say(message: str, exit_code: int) -> int:
    print(f"specthink launcher: {message}", file=sys.stderr, flush=True)
    return exit_code


def _prctl(libc: ctypes.CDLL, *arguments: int) -> None:
    if libc.prctl(*(ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:5])) != 0:
        raise OSError(ctypes.get_errno(), f"prctl{arguments}: {os.strerror(ctypes.get_errno())}")


def _die_with_parent(libc: ctypes.CDLL, signal_name: str) -> None:
    _prctl(libc, _PR_SET_PDEATHSIG, signal.Signals[signal_name].value)


def _become(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    """Give up root for uid and gid, keeping the right to search and read folders where the system grants it."""
    capability = _search_capability()
    _prctl(libc, _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    kept = 0 if capability is None else 1 << capability
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)  # effective, permitted, inheritable: low words, high words
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")
    if capability is not None:
        _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _search_capability() -> int | None:
    """The smallest capability this process has that opens folders; Docker's root lacks the smaller one."""
    status = Path("/proc/self/status").read_text()
    permitted = int(status.split("CapPrm:")[1].split()[0], 16)
    return next((bit for bit in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE) if permitted >> bit & 1), None)


def _redirect(output: str) -> None:
    """Read nothing, write to the file, hold no other file open: the caller may wait for the end of a pipe."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _hold(path: str) -> None:
    """Lock the file for as long as the program lives: the open file goes on with it, and to nobody else."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.set_inheritable(descriptor, True)


def main() -> None:
    """Become the program; returns only by exit."""
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    libc = ctypes.CDLL(None, use_errno=True)
    parent_pid = spec.get("parent_pid") or int(os.environ.get(LAUNCHED_PID_VARIABLE, "0"))
    if "umask" in spec:
        os.umask(spec["umask"])
    if "output" in spec:
        _redirect(spec["output"])
    if spec.get("detach"):
        if os.fork():
            os._exit(0)
        os.setsid()
    if "hold" in spec:
        _hold(spec["hold"])
    if "death_signal" in spec:
        _die_with_parent(libc, spec["death_signal"])  # before the wait, which must end with the parent too
    if "history" in spec:
        _wait_for_turn(spec)
    if "cwd" in spec:
        os.chdir(spec["cwd"])
    if spec.get("user"):
        _become(libc, *spec["user"])
    if "death_signal" in spec:
        _die_with_parent(libc, spec["death_signal"])  # again: a change of user clears it
        if os.getppid() != parent_pid:
            sys.exit(_say("its parent died before it was started", 1))
    env = {**(os.environ if spec.get("inherit_env", True) else {}), **spec.get("env", {})}
    env[LAUNCHED_PID_VARIABLE] = str(os.getpid())
    try:
        os.execvpe(spec["argv"][0], spec["argv"], env)
    except OSError as error:
        sys.exit(_say(f"{spec['argv'][0]} cannot be run: {error.strerror}", 2))


if __name__ == "__main__":
    main()
