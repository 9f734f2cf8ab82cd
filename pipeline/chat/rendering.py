"""Chat templates of model folders, rendered in a process of its own (``pipeline.chat.render_templates``).

One such process serves all models, jobs and threads of this one. It is started when a template is needed first, and a
new one takes its place after a fault. It knows no setting, no connection and no file of this process.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.errors import ConfigurationError, EngineUnavailable
from pipeline.texts import printable

CPU_S = 5.0
"""Processor time that a template may take, whatever it is asked; one of today takes 0.1 ms for a prompt."""
CPU_PER_PROMPT_S = 0.01
"""And as much more for each prompt of a batch."""
WALL_S = 60.0
"""Time by the clock beyond ten times that, for a machine on which others work: only a process that hangs takes it."""
MAX_FRAME_CHARS = 2**20
"""What a template may write beyond four times what its messages hold: the largest of today writes 30,000."""
MAX_CALLS = 256
"""Conversations in one request: some 20 ms of work."""
MAX_ANSWER_CHARS = 2**24
"""An answer ends with the first text that takes it to so many characters; the rest is asked for again."""
MAX_CALL_CHARS = 2**22
"""Characters of messages in one request, where it has several conversations."""
TRIES = 2
"""A process that ends by itself may have been ended by the system, for somebody else's memory: it is started again."""
_SCRIPT = Path(__file__).with_name("render_templates.py")
_KEPT_ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TZ")
_REMEDY = "mend the template in the model's folder, or fetch the model's files anew"

Conversation: TypeAlias = Sequence[Mapping[str, str]]
"""Messages, each with role and content."""


class TemplateFault(StrEnum):
    """What may be wrong with a template."""

    BROKEN = "broken"  # it cannot be compiled
    REFUSED = "refused"  # it says so itself, or asks for what no template may have
    FAILED = "failed"  # an error while it runs
    TIME = "time"  # it takes more processor time than it may
    MEMORY = "memory"  # it takes more memory than it may
    SIZE = "size"  # it writes more than it may
    NO_TEXT = "no text"  # it writes half of a character


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    texts: list[str]
    names: list[str]
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A model's chat template. Thread-safe.

    name: the model, as errors name it. today: what the template takes for the present date; None: the clock's.
    """

    name: str
    source: str
    today: dt.date | None = None

    def render(self, conversation: Conversation, variables: Mapping[str, Any]) -> str:
        """Raises as ``render_all``."""
        return next(self.render_all([conversation], variables))

    def render_all(self, conversations: Sequence[Conversation], variables: Mapping[str, Any]) -> Iterator[str]:
        """The prompt of each conversation, in their order.

        Raises ConfigurationError that says what is wrong with the template, and EngineUnavailable where this machine
        can start no process for it.
        """
        left_s = CPU_S + CPU_PER_PROMPT_S * len(conversations)
        start = 0
        while start < len(conversations):
            batch = _batch(conversations, start)
            request = {"calls": [_call(each, variables) for each in batch], "max_chars": MAX_ANSWER_CHARS}
            answer = self._ask(request, left_s, what=_what(batch), most=len(batch))
            yield from answer.texts
            left_s -= answer.cpu_s
            start += len(answer.texts)

    def names(self) -> frozenset[str]:
        """The variables that it reads and that no environment gives it. Raises as ``render_all``."""
        return frozenset(self._ask({"names": True}, CPU_S, what="a look at its variables").names)

    def _ask(self, request: dict[str, Any], cpu_s: float, *, what: str, most: int = 0) -> _Answer:
        if cpu_s <= 0:
            raise self._error(TemplateFault.TIME, "", None, what=what)
        request |= {"template": self._key, "today": self.today.isoformat() if self.today else None, "cpu_s": cpu_s}
        try:
            found = _renderer.ask(request, self.source, wall_s=WALL_S + 10 * cpu_s)
        except _NotStarted as error:
            raise EngineUnavailable(self.name, f"no process can be started for its chat template: {error}") from error
        except _Ended as error:
            if error.is_over_time:
                raise self._error(TemplateFault.TIME, "", None, what=what) from error
            raise ConfigurationError(
                f"{self.name}: the process that renders its chat template {error} over {what}; {_REMEDY}"
            ) from error
        if "fault" in found:
            raise self._error(TemplateFault(found["fault"]), str(found["reason"]), found["line"], what=what)
        texts, names = found.get("texts", []), found.get("names", [])
        if (
            len(texts) > most
            or bool(texts) != bool(most)
            or not all(isinstance(text, str) for text in [*texts, *names])
        ):
            raise ConfigurationError(f"{self.name}: the process that renders its chat template said what none may say")
        return _Answer(texts=texts, names=names, cpu_s=float(found["cpu_s"]))

    def _error(self, fault: TemplateFault, reason: str, line: int | None, *, what: str) -> ConfigurationError:
        told = _TOLD[fault].format(what=what, reason=printable(reason))
        where = f" (line {line} of the template)" if line else ""
        remedy = "" if fault is TemplateFault.REFUSED else f"; {_REMEDY}"
        return ConfigurationError(f"{self.name}: its chat template {told}{where}{remedy}")

    @cached_property
    def _key(self) -> str:
        """What the process knows it by."""
        content = json.dumps([self.source, None if self.today is None else self.today.isoformat()])
        return hashlib.sha256(content.encode()).hexdigest()


_TOLD = {
    TemplateFault.BROKEN: "is broken: {reason}",
    TemplateFault.REFUSED: "refuses {what}: {reason}",
    TemplateFault.FAILED: "fails on {what}: {reason}",
    TemplateFault.TIME: f"takes more than {CPU_S:g} s of processor time for {{what}}",
    TemplateFault.MEMORY: "takes more memory than a template may have for {what}",
    TemplateFault.SIZE: f"writes more than {MAX_FRAME_CHARS:,} characters around {{what}}",
    TemplateFault.NO_TEXT: "writes half of a character for {what}: {reason}",
}


def _batch(conversations: Sequence[Conversation], start: int) -> Sequence[Conversation]:
    """The next ones, as many as go into one request."""
    count = size = 0
    for conversation in conversations[start : start + MAX_CALLS]:
        count += 1
        size += _num_chars(conversation)
        if size > MAX_CALL_CHARS:
            break
    return conversations[start : start + count]


def _call(conversation: Conversation, variables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messages": [dict(message) for message in conversation],
        "variables": dict(variables),
        "max_chars": MAX_FRAME_CHARS + 4 * _num_chars(conversation),
    }


def _num_chars(conversation: Conversation) -> int:
    return sum(len(message["content"]) for message in conversation)


def _what(conversations: Sequence[Conversation]) -> str:
    length = max(map(len, conversations))
    each = "a user message" if length == 1 else f"a conversation of {length} messages"
    return each if len(conversations) == 1 else f"{each}, one of {len(conversations)}"


class _NotStarted(Exception):
    """The system starts no process."""


class _Ended(Exception):
    """The process ended, or hung, and was ended, before it answered."""

    def __init__(self, how: str, *, is_over_time: bool = False) -> None:
        self.is_over_time = is_over_time
        super().__init__(how)


class _Renderer:
    """The one process of this process. One request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def ask(self, request: dict[str, Any], source: str, *, wall_s: float) -> dict[str, Any]:
        """Raises _NotStarted and _Ended."""
        with self._lock:
            for last in range(TRIES):
                try:
                    answer = self._exchange(request, source, wall_s)
                except _Ended as error:
                    self._close()
                    if error.is_over_time or last + 1 == TRIES:
                        raise
                else:
                    if "fault" in answer:  # what it left behind is nobody's business
                        self._close()
                    return answer
            raise AssertionError("unreachable")

    def _exchange(self, request: dict[str, Any], source: str, wall_s: float) -> dict[str, Any]:
        self._child = self._child or _Child()
        answer = self._child.exchange({**request, "source": None}, wall_s)
        if "unknown" in answer:
            answer = self._child.exchange({**request, "source": source}, wall_s)
        return answer

    def close(self) -> None:
        with self._lock:
            self._close()

    def forget(self) -> None:
        if self._child is not None:
            self._child.forget()

    def _close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


class _Child:
    """One process, and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(_SCRIPT)],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            self._socket.close()
            raise _NotStarted(str(error)) from error

    def exchange(self, request: dict[str, Any], wall_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + wall_s
        longest = max((call["max_chars"] for call in request.get("calls", ())), default=0)
        most = 6 * (MAX_ANSWER_CHARS + longest) + 2**20  # JSON writes \\u0000 for one character
        try:
            self._socket.settimeout(wall_s)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._read_line(deadline, most))
        except TimeoutError:
            raise _Ended(f"did not answer within {wall_s:.0f} s") from None
        except OSError:
            raise self._ended() from None
        except ValueError:
            raise _Ended("answered what cannot be read") from None
        if not isinstance(answer, dict):
            raise _Ended("answered what cannot be read")
        return answer

    def _read_line(self, deadline: float, most: int) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            more = self._socket.recv(2**18)
            if not more:
                raise self._ended()
            line += more
            if len(line) > most:
                raise _Ended("answered more than it may")
        return bytes(line)

    def _ended(self) -> _Ended:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        code = self._process.returncode
        if code is None:
            return _Ended("closed its socket")
        if code < 0:
            return _Ended(f"was ended by signal {-code}", is_over_time=-code == signal.SIGXCPU)
        return _Ended(f"ended with exit code {code}")

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        self._socket.close()
        self._process.returncode = 0  # not ours to wait for

    def close(self) -> None:
        """End it; nothing of it is left then."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _environment() -> dict[str, str]:
    """What it needs to find what this process finds, and no secret."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


_renderer = _Renderer()


def _start_anew() -> None:
    """In a forked process: the process and the lock are its parent's."""
    global _renderer
    _renderer.forget()
    _renderer = _Renderer()


atexit.register(lambda: _renderer.close())
os.register_at_fork(after_in_child=_start_anew)
