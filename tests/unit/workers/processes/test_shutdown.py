"""Stop signals between a worker's registration and Celery's handlers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from workers.processes.shutdown import EarlySignals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_early_signals_come_to_the_later_handler() -> None:
    early = EarlySignals()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    came: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: came.append(number))
    early.deliver()
    assert came == [signal.SIGTERM, signal.SIGINT]
    early.deliver()
    assert came == [signal.SIGTERM, signal.SIGINT]


def test_nothing_came_and_nothing_is_sent() -> None:
    early = EarlySignals()
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    early.deliver()
    assert came == []
