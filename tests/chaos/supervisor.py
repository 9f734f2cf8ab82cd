"""supervisord of a harness: the real one, but a worker is forked from it with all it imports in place.

    python tests/chaos/supervisor.py MODULE:FUNCTION -c supervisord.conf

A matrix starts workers thousands of times, and what one imports costs 1.5 s of a core, with vLLM 8 s. All else
is as it is anywhere: process id, group, signals, environment, log, exit code, and launcher.py's own code before it; but
all workers of a harness have the same hash seed. The function imports what they import; it must start no thread.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

WORKER = "tests.chaos.worker"
MODULES = (
    "celery.apps.worker", "celery.concurrency.prefork", "celery.concurrency.thread", "celery.worker.consumer",
    "celery.worker.strategy", "kombu.transport.redis", "pipeline.embedded.launcher", "workers.processes.grader",
    "workers.processes.upkeep", "workers.processes.writer",
    "workers.engine.scripted", WORKER,
)  # fmt: skip

_exec = os.execvpe


def import_all() -> None:
    """What every worker of the harness imports."""
    for module in MODULES:
        importlib.import_module(module)


def _start(self: object, file: str, argv: list[str], env: dict[str, str]) -> None:
    """In the child that supervisord has forked: what launcher.py would do as a program, if it is a worker."""
    del self
    if len(argv) != 5 or not _is_worker(_argv_of(Path(argv[4]))):
        os.execve(file, argv, env)
    for each in signal.valid_signals():
        if callable(signal.getsignal(each)):
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    from pipeline.embedded import launcher

    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(argv[3:])
    os.execvpe = _become  # type: ignore[assignment]
    _end(launcher.main)


def _argv_of(specification: Path) -> list[str]:
    argv: list[str] = json.loads(specification.read_text())["argv"]
    return argv


def _is_worker(argv: list[str]) -> bool:
    return argv[1:3] == ["-m", WORKER]


def _become(file: str, argv: list[str], env: dict[str, str]) -> NoReturn:
    """launcher.py's last call: instead of another program, the worker goes on in this process."""
    from tests.chaos import worker

    os.execvpe = _exec
    if worker.CLOCK_VARIABLE in env:  # its clock must be shifted before modules are imported
        _exec(file, argv, env)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [WORKER, *argv[3:]]
    sys.path[0] = os.getcwd()
    _end(worker.main)


def _end(main: Callable[[], Any]) -> NoReturn:
    """Run it, and end as workers do."""
    code: Any = 1
    try:
        code = main()
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
    from workers.processes.shutdown import end_process

    end_process(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[2])
    module, _, function = sys.argv.pop(1).partition(":")
    environment = dict(os.environ)
    getattr(importlib.import_module(module), function)()
    os.environ.clear()
    os.environ.update(environment)  # a worker sets its own
    from supervisor import supervisord
    from supervisor.options import ServerOptions

    ServerOptions.execve = _start
    gc.collect()
    gc.freeze()
    supervisord.main()


if __name__ == "__main__":
    main()
