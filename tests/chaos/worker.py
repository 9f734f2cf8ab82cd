"""A worker process of the harness: the real one, with a scripted engine in place of vLLM, and places where it can die.

    python -m tests.chaos.worker small|large|grade|upkeep|submit

A *phase* is a place in the code that this process passes again and again. When it passes one, it looks for an order
(see ``Order``), a file that the harness wrote for its program; at the n-th passage since then it carries the order out.
Production code knows nothing of this: the places are wrapped here.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ORDERS_VARIABLE = "CHAOS_ORDERS"
"""Environment: the folder of the orders."""
PROGRAM_VARIABLE = "CHAOS_PROGRAM"
CLOCK_VARIABLE = "CHAOS_CLOCK_OFFSET_S"
"""Environment: seconds that this process's clock is ahead of the machine's."""
ENGINE_VARIABLE = "CHAOS_ENGINE"
"""Environment: ``module:function``, called like ``scripted_engine`` in its place."""

RELAY_PREFIX = "relay."

STEP_S = 0.004
MAX_IN_FLIGHT = 4
"""Samples that one writer has at the same time: few, so that upkeep lets samples in all through a job."""

WRITER_PHASES = ("claiming", "claimed", "generating", "committing", "committed")
"""claiming: in the transaction of a claim. claimed: after it, before the engine. generating: a step of the engine.
committing: in the transaction of a commit. committed: after it, before the message to whoever goes on."""
GRADER_PHASES = ("claimed", "committing")
"""claimed: the grading is noted as begun, if its grader needs time. committing: in the transaction of the grade."""
UPKEEP_PHASES = ("admitting", "settling", "closing", "publishing")
"""admitting, settling, closing: in the transaction. publishing: after one of them, before the message."""
CLIENT_PHASES = ("storing", "committing", "committed")
"""storing: in the transaction, the problems are stored. committing: the samples, too."""

_real_time = time.time


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """phase: where. n: at which passage since the order was given, from 1. action: one of ACTIONS; seconds: for it."""

    phase: str
    n: int = 1
    action: str = "kill"
    seconds: float = 0.0

    def write(self, folder: Path, program: str) -> None:
        """Give the order; one that was given before is forgotten."""
        fired_file(folder, program).unlink(missing_ok=True)
        new = folder / f"{program}.new"
        new.write_text(json.dumps(asdict(self)))
        new.replace(order_file(folder, program))


def order_file(folder: Path, program: str) -> Path:
    return folder / f"{program}.order"


def fired_file(folder: Path, program: str) -> Path:
    """Written just before an order is carried out: {"at": seconds since 1970, "pid": …, "order": …}."""
    return folder / f"{program}.fired"


def _kill(order: Order) -> None:
    os.kill(int(os.environ.get("CHAOS_MAIN_PID", os.getpid())), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_child(order: Order) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(order: Order) -> None:
    """Freeze, with every thread (a grader's child: with its parent); the harness wakes it."""
    main = int(os.environ.get("CHAOS_MAIN_PID", os.getpid()))
    for pid in {main, os.getpid()}:
        os.kill(pid, signal.SIGSTOP)


def _terminate(order: Order) -> None:
    os.kill(int(os.environ.get("CHAOS_MAIN_PID", os.getpid())), signal.SIGTERM)


def _raise(order: Order) -> None:
    raise RuntimeError(f"ordered to fail while {order.phase}")


def _hang(order: Order) -> None:
    time.sleep(order.seconds)


ACTIONS: dict[str, Callable[[Order], None]] = {
    "kill": _kill,
    "kill_child": _kill_child,
    "stop": _stop,
    "terminate": _terminate,
    "raise": _raise,
    "hang": _hang,
}
"""What can happen at a phase. A module named in CHAOS_ENGINE may add to it."""


class Phases:
    """Counts passages and carries orders out."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self._order_file = order_file(folder, program)
        self._fired_file = fired_file(folder, program)
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._passed = 0

    def passed(self, phase: str) -> None:
        """To be called where a phase is; usually does nothing."""
        order = self._due(phase)
        if order is not None:
            ACTIONS[order.action](order)

    def _due(self, phase: str) -> Order | None:
        if not os.path.exists(self._order_file):  # at every step of an engine: a tenth of Path.stat's time
            return None
        with self._lock:
            try:
                stat = self._order_file.stat()
                order = Order(**json.loads(self._order_file.read_text()))
            except FileNotFoundError:
                return None
            if order.phase != phase:
                return None
            if self._seen != (stat.st_ino, stat.st_mtime_ns):
                self._seen, self._passed = (stat.st_ino, stat.st_mtime_ns), 0
            self._passed += 1
            if self._passed < order.n:
                return None
            self._fired(order)
            return order

    def _fired(self, order: Order) -> None:
        self._order_file.unlink(missing_ok=True)
        new = self.folder / f"{self._fired_file.name}.new"
        new.write_text(json.dumps({"at": _real_time(), "pid": os.getpid(), "order": asdict(order)}))
        new.replace(self._fired_file)


def pass_after(phases: Phases, phase: str, owner: Any, name: str) -> None:
    """Make a function of a module or class pass a phase when it has given something."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if result:
            phases.passed(phase)
        return result

    setattr(owner, name, wrapped)


def pass_before(phases: Phases, phase: str, owner: Any, name: str) -> None:
    """Make a function of a module or object pass a phase when it is called with something as its first argument."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(first: Any, *args: Any, **kwargs: Any) -> Any:
        if first:
            phases.passed(phase)
        return function(first, *args, **kwargs)

    setattr(owner, name, wrapped)


def scripted_engine(role: Any, chat: Any, model: str, phases: Phases) -> Any:
    """The engine of a writer."""
    from tests.chaos.texts import make_script
    from workers.engine.scripted import ScriptedEngine

    class PhasedEngine(ScriptedEngine):
        def _step(self) -> Any:
            if self._writing:
                phases.passed("generating")
            return super()._step()

    return PhasedEngine(
        make_script(chat, role),
        chat.decode_stream,
        model=model,
        max_model_len=chat.max_model_len or 2048,
        max_in_flight=MAX_IN_FLIGHT,
        step_s=STEP_S,
    )


def run_writer(role_name: str, phases: Phases) -> int:
    import workers.writing.store as store
    from pipeline.chat.files import served_name
    from pipeline.chat.model import ChatModel
    from pipeline.samples import ModelRole
    from pipeline.settings import load_settings
    from pipeline.workforce import WorkerKind
    from tests.chaos.models import MODELS
    from workers.processes.base import open_base
    from workers.processes.writer import WriterProcess

    role = ModelRole(role_name)
    pass_after(phases, "claiming", store, "claim_samples")
    pass_after(phases, "claimed", store.Store, "claim")
    pass_after(phases, "committing", store, "commit_samples")
    base = open_base(load_settings(), WorkerKind(role.value))
    pass_before(phases, "committed", base.publisher, "publish")
    _through_relay(base.publisher, phases)
    chat = ChatModel.load(MODELS[role])
    model = served_name(MODELS[role])
    engine = _engine_maker()(role, chat, model, phases)
    return WriterProcess(base, role, engine, chat, model).run()


def relay_file(folder: Path) -> Path:
    """While it is there, every message goes to the queue ``relay.NAME`` instead of NAME, for the harness to deliver."""
    return folder / "relay"


def _through_relay(publisher: Any, phases: Phases) -> None:
    apply = publisher._apply

    def wrapped(task: str, message: Any, queue: str, *rest: Any) -> bool:
        name = f"{RELAY_PREFIX}{queue}" if relay_file(phases.folder).exists() else queue
        sent: bool = apply(task, message, name, *rest)
        return sent

    publisher._apply = wrapped


def _engine_maker() -> Callable[..., Any]:
    named = os.environ.get(ENGINE_VARIABLE)
    if not named:
        return scripted_engine
    module, _, function = named.partition(":")
    maker: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return maker


def run_grader(phases: Phases) -> int:
    import workers.grading.grader as grading
    from pipeline.settings import load_settings
    from workers.processes.grader import run_grader as run

    pass_before(phases, "claimed", grading, "_run")
    pass_after(phases, "committing", grading, "end_grade")
    pass_after(phases, "committing", grading, "store_grades")
    os.environ["CHAOS_MAIN_PID"] = str(os.getpid())  # the children's parent
    return run(load_settings())


def run_upkeep(phases: Phases) -> int:
    import workers.processes.upkeep as process
    import workers.upkeep.rounds as upkeep
    from pipeline.settings import load_settings
    from workers.processes.base import open_base

    pass_after(phases, "admitting", upkeep, "admit_samples")
    pass_after(phases, "settling", upkeep, "settle_workers")
    pass_after(phases, "closing", upkeep, "close_jobs")

    def phased_base(*args: Any, **kwargs: Any) -> Any:
        base = open_base(*args, **kwargs)
        pass_before(phases, "publishing", base.publisher, "publish")
        _through_relay(base.publisher, phases)
        return base

    setattr(process, "open_base", phased_base)  # noqa: B010  # an assignment is typed
    return process.run_upkeep(load_settings())


def run_submit(phases: Phases) -> int:
    """Submit the job of the seed in CHAOS_SEED, as any client would."""
    from pipeline.client import Client
    from pipeline.db import submissions
    from tests.chaos.workload import submit_job

    pass_after(phases, "storing", submissions, "put_problem_sets")
    pass_after(phases, "committing", submissions, "insert_jobs")
    with Client.connect() as client:
        submit_job(client, int(os.environ["CHAOS_SEED"]))
    phases.passed("committed")
    return 0


def shift_clock(offset_s: float) -> None:
    """Let this process read a clock that is so far ahead. Before other modules are imported: they take the classes."""
    real = dt.datetime

    class _Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class Shifted(real, metaclass=_Meta):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return real.fromtimestamp(_real_time() + offset_s, tz)

        @classmethod
        def utcnow(cls) -> dt.datetime:
            return real.fromtimestamp(_real_time() + offset_s, dt.UTC).replace(tzinfo=None)

    time.time = lambda: _real_time() + offset_s
    dt.datetime = Shifted  # type: ignore[misc]


def main() -> int:
    with contextlib.suppress(KeyError):
        shift_clock(float(os.environ[CLOCK_VARIABLE]))
    from pipeline.logs import configure_logging
    from pipeline.settings import load_settings

    configure_logging(load_settings())
    kind = sys.argv[1]
    gc.disable()  # as workers.__main__ does while it loads
    phases = Phases(Path(os.environ[ORDERS_VARIABLE]), os.environ[PROGRAM_VARIABLE])
    if kind in ("small", "large"):
        return run_writer(kind, phases)
    return {"grade": run_grader, "upkeep": run_upkeep, "submit": run_submit}[kind](phases)


if __name__ == "__main__":
    sys.exit(main())
