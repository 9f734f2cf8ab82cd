"""A stop signal that comes before Celery listens."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType


class EarlySignals:
    """Keeps SIGTERM and SIGINT from its making until ``deliver``, which gives them to whoever handles them then.

    Celery installs its handlers some time after a worker has registered. A signal between the two would end the
    process at once, its lease not given back, and its exit code would tell of a crash. Make it in the main thread.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not the main thread, which alone gets signals
                signal.signal(number, self._keep)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)

    def deliver(self) -> None:
        """Send this process what has come, again."""
        came, self._came = self._came, []
        for number in came:
            os.kill(os.getpid(), number)
