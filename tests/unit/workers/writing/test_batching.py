"""Gathering: what comes while something is handled is handled together, in order, and nothing is left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise

from workers.writing.batching import Batcher


def gatherer(
    handle: Callable[[list[int]], None], *, most: int = 100, pause_s: float = 0.0, enough: int | None = None
) -> Batcher[int, int]:
    return Batcher(
        "batcher", handle, prepare=lambda item: item, most=most, pause_s=pause_s, enough=enough, on_failure=lambda: None
    )


class Handler:
    """Notes the groups; holds the first one until told."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, group: list[int]) -> None:
        self.groups.append(group)
        self.began.set()
        assert self.may_end.wait(10)


def test_what_comes_meanwhile_is_handled_together_and_in_order() -> None:
    handler = Handler()
    gathering = gatherer(handler, most=3)
    gathering.put(0)
    assert handler.began.wait(10)
    for item in range(1, 6):
        gathering.put(item)
    handler.may_end.set()
    gathering.close(10)
    assert handler.groups == [[0], [1, 2, 3], [4, 5]]


def test_after_a_full_call_the_next_waits_for_the_pause() -> None:
    handler = Handler()
    begun: list[float] = []

    def handle(group: list[int]) -> None:
        begun.append(time.monotonic())
        handler(group)

    gathering = gatherer(handle, pause_s=0.3)
    for item in range(3):
        gathering.put(item)
    assert handler.began.wait(10)
    gathering.put(3)
    gathering.put(4)
    handler.may_end.set()
    gathering.close(10)
    assert [item for group in handler.groups for item in group] == [0, 1, 2, 3, 4]
    for group, (before, after) in zip(handler.groups, pairwise(begun), strict=False):
        assert len(group) == 1 or after - before >= 0.29


def test_pause_ends_once_enough_wait() -> None:
    handler = Handler()
    gathering = gatherer(handler, pause_s=60.0, enough=3)
    gathering.put(0)
    assert handler.began.wait(10)
    for item in (1, 2):
        gathering.put(item)
    handler.may_end.set()
    deadline = time.monotonic() + 10
    while len(handler.groups) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    for item in (3, 4, 5):
        gathering.put(item)
    while len(handler.groups) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert handler.groups == [[0], [1, 2], [3, 4, 5]]


def test_failure_is_told_and_ends_the_thread() -> None:
    told = threading.Event()
    gathering: Batcher[int, int] = Batcher(
        "failing", lambda group: [][1], prepare=lambda item: item, most=9, pause_s=0.0, on_failure=told.set
    )
    gathering.put(1)
    assert told.wait(10)
    gathering.close(10)
    assert not gathering._thread.is_alive()


def test_things_are_prepared_in_a_pause_and_what_gives_nothing_is_not_handled() -> None:
    handler = Handler()
    prepared: list[int] = []
    seen = threading.Event()

    def prepare(item: int) -> int | None:
        prepared.append(item)
        if item == 5:
            seen.set()
        return None if item % 2 else item

    batcher: Batcher[int, int] = Batcher(
        "batcher", handler, prepare=prepare, most=9, pause_s=60.0, on_failure=lambda: None
    )
    batcher.put(0)
    assert handler.began.wait(10)
    for item in (2, 4):
        batcher.put(item)
    handler.may_end.set()
    deadline = time.monotonic() + 10
    while len(handler.groups) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    for item in (6, 3, 5):
        batcher.put(item)
    assert seen.wait(10)  # the pause of 60 s goes on
    assert prepared == [0, 2, 4, 6, 3, 5]
    assert handler.groups == [[0], [2, 4]]
    batcher.close(10)
    assert handler.groups == [[0], [2, 4], [6]]
