"""Renders chat templates, as a script in a process of its own: ``python render_templates.py``.

Nobody has read the template that lies in a model's folder: it may loop, allocate, recurse or raise whatever it likes.
Here limits on memory and processor time hold, and whatever it does takes nobody with it. ``pipeline.chat.rendering``
runs this file and asks it.

Standard input and standard output are one socket, with a JSON object a line each way. A request has ``template`` (a
name for it), ``source`` (its text, where it was not sent before), ``today``, ``cpu_s`` and either ``names`` (true) or
``calls`` and ``max_chars``; a call is ``{"messages": […], "variables": {…}, "max_chars": N}``. The answer has either

- ``cpu_s`` and ``names``, or ``texts`` of the first calls, up to the one that takes it to ``max_chars``;
- ``unknown``: the source must be sent;
- ``fault``, ``reason`` and the template's ``line``, where that is known.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.limits import leave_no_core, limit_memory, limit_processor_time

MAX_MEMORY = 2**30
"""Bytes that templates may take beyond what the interpreter takes: a prompt of 16 MiB needs a tenth of it."""
MAX_TEMPLATES = 16
"""Compiled templates that are kept."""
_REASON_CHARS = 2_000


class OverTime(BaseException):
    """The processor time of a request is used up. No template catches it, and no filter."""


class Fault(Exception):
    """What is wrong with a template, for the one who asked. kind: a ``pipeline.chat.rendering.TemplateFault``."""

    def __init__(self, kind: str, reason: str = "", line: int | None = None) -> None:
        self.kind, self.reason, self.line = kind, reason, line
        super().__init__(reason)


def main() -> None:
    leave_no_core()
    limit_memory(MAX_MEMORY)
    signal.signal(signal.SIGPROF, _end_time)
    templates = Templates()
    with os.fdopen(0, "rb") as requests, os.fdopen(1, "wb") as answers:
        for line in requests:
            answers.write(json.dumps(answer(json.loads(line), templates), ensure_ascii=False).encode() + b"\n")
            answers.flush()


def _end_time(signum: int, frame: FrameType | None) -> NoReturn:
    raise OverTime


def answer(request: dict[str, Any], templates: Templates) -> dict[str, Any]:
    """What is said to a request, whatever its template does."""
    started_s, cpu_s = time.process_time(), request["cpu_s"]
    limit_processor_time(int(started_s + cpu_s) + 2)  # ends what no Python code interrupts
    compiled = None
    try:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        compiled = templates.get(request)
        if compiled is None:
            return {"unknown": True}
        said = {"names": compiled.names()} if "names" in request else {"texts": list(_texts(compiled, request))}
        signal.setitimer(signal.ITIMER_PROF, 0)
    except Fault as fault:
        return _told(fault)
    except OverTime as error:
        return _told(Fault("time", line=_line_of(error.__traceback__, compiled)))
    except MemoryError as error:
        return _told(Fault("memory", line=_line_of(error.__traceback__, compiled)))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return said | {"cpu_s": time.process_time() - started_s}


def _told(fault: Fault) -> dict[str, Any]:
    reason = fault.reason[:_REASON_CHARS].encode(errors="backslashreplace").decode()
    return {"fault": fault.kind, "reason": reason, "line": fault.line}


def _texts(compiled: Compiled, request: dict[str, Any]) -> Iterator[str]:
    size = 0
    for call in request["calls"]:
        text = compiled.render(call)
        yield text
        size += len(text)
        if size > request["max_chars"]:
            return


class Templates:
    """The templates that were asked for last."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Compiled] = OrderedDict()

    def get(self, request: dict[str, Any]) -> Compiled | None:
        """None where the source must be sent. Raises Fault for one that cannot be compiled."""
        name = request["template"]
        if name not in self._known:
            if request["source"] is None:
                return None
            self._known[name] = Compiled(request["source"], request["today"])
            if len(self._known) > MAX_TEMPLATES:
                self._known.popitem(last=False)
        self._known.move_to_end(name)
        return self._known[name]


class Compiled:
    """A template, compiled as transformers does it: chat templates are written against that environment."""

    def __init__(self, source: str, today: str | None) -> None:
        """today: what the template takes for the present date; None: the clock's. Raises Fault."""
        self._source = _plain_jinja(source)
        self._environment = make_environment(None if today is None else dt.date.fromisoformat(today))
        try:
            self.template = self._environment.from_string(self._source)
        except jinja2.TemplateSyntaxError as error:
            raise Fault("broken", str(error.message), error.lineno) from error
        except MemoryError:
            raise
        except Exception as error:  # the compiler of what jinja2 makes of it may refuse that, or go too deep
            raise Fault("broken", f"{type(error).__name__}: {error}") from error

    def names(self) -> list[str]:
        """The variables that it reads and that nobody has given it."""
        names = meta.find_undeclared_variables(self._environment.parse(self._source))
        return sorted(names - set(self._environment.globals))

    def render(self, call: dict[str, Any]) -> str:
        """Raises Fault, with the template's line where that is known."""
        pieces, size = [], 0
        try:
            for piece in self.template.generate(
                messages=call["messages"], add_generation_prompt=True, **call["variables"]
            ):
                pieces.append(piece)
                size += len(piece)
                if size > call["max_chars"]:
                    raise Fault("size")
            text = "".join(pieces)
            text.encode()  # lone surrogates: no text, for a tokenizer
            return text
        except (Fault, MemoryError):
            raise
        except UnicodeEncodeError as error:
            raise Fault("no text", f"U+{ord(error.object[error.start]):04X}") from error
        except jinja2.TemplateError as error:
            raise Fault("refused", str(error), _line_of(error.__traceback__, self)) from error
        except Exception as error:
            line = _line_of(error.__traceback__, self)
            raise Fault("failed", f"{type(error).__name__}: {error}", line) from error


def _line_of(trace: TracebackType | None, compiled: Compiled | None) -> int | None:
    """The line of the template at which a traceback passes through it last.

    jinja2 writes that line into the traceback of an Exception; in any other the line is that of the code which it made.
    """
    line = None
    while trace is not None and compiled is not None:
        known = trace.tb_frame.f_globals
        if "__jinja_template__" in known:
            line = compiled.template.get_corresponding_lineno(trace.tb_lineno)
        elif "__jinja_exception__" in known:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def make_environment(today: dt.date | None) -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_in_template
    environment.globals["strftime_now"] = lambda pattern: _now(today).strftime(pattern)
    return environment


def _plain_jinja(chat_template: str) -> str:
    """Without the marks that transformers adds to the language."""
    return re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{%\1 if true %}{% endif \2%}", chat_template)


def _now(today: dt.date | None) -> dt.datetime:
    return dt.datetime.now() if today is None else dt.datetime.combine(today, dt.time())


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_in_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    sys.stdout = sys.stderr  # standard output is for answers alone
    main()
