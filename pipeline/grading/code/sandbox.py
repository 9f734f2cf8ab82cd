"""Runs code that nobody has read, with its tests, in a process that can do little.

It has no network, sees no process but its own, and no file but the interpreter's and the system's libraries; it has an
empty folder, an empty environment, little memory, processor time, processes and files, and a time limit. It runs as
another user where the grader is root. That needs a kernel that gives namespaces to whoever asks here.

What it does not hold off: a fault of the kernel itself, and ``MAX_PROCESSES`` times ``MAX_MEMORY`` for some seconds.
Everything in ``/usr`` can be read. An answer shares its process with its tests: one that reads them can please them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import GradingError

MAX_MEMORY = 512 * 2**20
"""Address space of one process, bytes; the interpreter itself takes some 30 MiB."""
MAX_PROCESSES = 4
MAX_FILE = 16 * 2**20
MAX_FILES = 64
MAX_CPU_S = 8
MAX_WALL_S = 10.0
"""With a second, shorter run behind it, it stays below the time limit of a grading (20 s)."""
MAX_REPORT = 4_096

_HERE = Path(__file__).parent
_INTERPRETER = (os.path.realpath(sys.executable), "-S", "-P", "-s", "-B")


class Outcome(StrEnum):
    """What became of a program."""

    PASSED = "passed"  # the tests are through
    RAISED = "raised"  # an exception, of the code or of a test
    TIMEOUT = "timeout"  # it ran out of time, by the clock or by the processor
    ENDED = "ended"  # its process ended without a word, before the tests were through
    FORGED = "forged"  # it said what the tests alone may say


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """outcome, and for RAISED the exception's class and where: "the code" or "the tests"."""

    outcome: Outcome
    error: str = ""
    where: str = ""


def run_program(answers: Sequence[str], tests: str, *, isolate: bool = True, wall_s: float = MAX_WALL_S) -> Report:
    """Run the first of several readings of an answer that compiles, and then the tests, in the same module.

    isolate: with namespaces; without them the program reaches the network and can read what its user can. Raises
    GradingError where the sandbox cannot be made.
    """
    password = secrets.token_hex(16)
    work = Path(tempfile.mkdtemp(prefix="specthink-code-"))
    try:
        line = _run(_specification(answers, tests, work, isolate), password, wall_s)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _read(line, password)


@cache
def find_fault() -> str | None:
    """Why code cannot be run in isolation here; None where it can. Tried once in a process."""
    try:
        report = run_program(["def one():\n    return 1"], "assert one() == 1")
    except GradingError as error:
        return str(error)
    return None if report.outcome is Outcome.PASSED else f"a program that passes its tests {report.outcome.value}"


def _specification(answers: Sequence[str], tests: str, work: Path, isolate: bool) -> bytes:
    limits = {
        "AS": MAX_MEMORY, "CPU": MAX_CPU_S, "NPROC": MAX_PROCESSES, "FSIZE": MAX_FILE, "NOFILE": MAX_FILES, "CORE": 0,
    }  # fmt: skip
    specification: Mapping[str, object] = {
        "interpreter": _INTERPRETER,
        "prefix": os.path.realpath(sys.base_prefix),
        "runner": (_HERE / "runner.py").read_text(),
        "work": str(work),
        "limits": limits,
        "isolate": isolate,
        "program": {"answers": list(answers), "tests": tests},
    }
    return json.dumps(specification).encode()


def _run(specification: bytes, password: str, wall_s: float) -> bytes | None:
    """The first line that the sandbox reports; None where time was up before. All its processes are dead then."""
    report, report_in = os.pipe()
    password_out, password_in = os.pipe()
    os.write(password_in, password.encode())
    os.close(password_in)
    try:
        process = subprocess.Popen(
            [*_INTERPRETER, str(_HERE / "launcher.py"), str(report_in), str(password_out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            pass_fds=(report_in, password_out),
            start_new_session=True,
        )
    finally:
        os.close(report_in)
        os.close(password_out)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(specification)
        line = _first_line(report, time.monotonic() + wall_s)
        if line is not None:
            _await_end(process.pid)
        return line
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(report)


def _await_end(pid: int) -> None:
    """Let a launcher that has reported end by itself, within a second: then its processes' time is counted as ours."""
    ended = os.pidfd_open(pid)
    try:
        select.select([ended], [], [], 1.0)
    finally:
        os.close(ended)


def _first_line(report: int, deadline: float) -> bytes | None:
    line = b""
    while b"\n" not in line and len(line) < MAX_REPORT:
        ready, _, _ = select.select([report], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        if not (more := os.read(report, MAX_REPORT)):
            break
        line += more
    return line.partition(b"\n")[0]


def _read(line: bytes | None, password: str) -> Report:
    if line is None:
        return Report(outcome=Outcome.TIMEOUT)
    try:
        told: dict[str, Any] = json.loads(line)
        outcome = told["outcome"]
    except (ValueError, TypeError, KeyError):
        return Report(outcome=Outcome.FORGED if line else Outcome.ENDED)
    match outcome:
        case "passed" if told.get("password") == password:
            return Report(outcome=Outcome.PASSED)
        case "raised":
            where = "the code" if told.get("where") == "the code" else "the tests"
            return Report(outcome=Outcome.RAISED, error=str(told.get("error"))[:100], where=where)
        case "ended":
            is_late = told.get("signal") in (signal.SIGXCPU, signal.SIGKILL)
            return Report(outcome=Outcome.TIMEOUT if is_late else Outcome.ENDED)
        case "no sandbox":
            raise GradingError(f"code cannot be run in isolation here: {str(told.get('error'))[:200]}")
    return Report(outcome=Outcome.FORGED)
