"""How a worker process ends: signals that come before Celery listens, and its last act."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn


class EarlySignals:
    """Holds back SIGTERM and SIGINT received before Celery installs its handlers, then sends them again.

    Celery installs its handlers some time after a worker has registered. A signal between the two would end the
    process at once, its lease not given back, and its exit code would tell of a crash. Make it in the main thread.
    """

    def __init__(self) -> None:
        self._held: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not the main thread, which alone gets signals
                signal.signal(number, self._hold)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._held.append(number)

    def deliver(self) -> None:
        """Send this process what was held back."""
        held, self._held = self._held, []
        for number in held:
            os.kill(os.getpid(), number)


def end_process(exit_code: int) -> NoReturn:
    """Run what is registered for the end, and end. The interpreter would free what vLLM loaded, 600,000 objects, one
    by one, which takes 4 s of a core."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
