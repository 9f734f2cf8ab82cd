"""CPU time by part of a running pipeline: who had the cores while something was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

from bench.stack import Stack

ENGINE_THREAD = "engine"
"""The busiest thread of a small or large worker: it steps the model."""


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds by part since the start of each."""

    seconds: Mapping[str, float]

    @classmethod
    def read(cls, stack: Stack) -> Usage:
        """Parts: each program with its children, those with an engine in two (the busiest thread, the others)."""
        seconds: dict[str, float] = defaultdict(float)
        pids = {program.pid: program.name for program in stack.state.program_states() if program.pid}
        for pid, name in pids.items():
            for part, used in _program(psutil.Process(pid), has_engine=name in ("small", "large")):
                seconds[f"{name} {part}".strip()] += used
        return cls(dict(seconds))

    def seconds_since(self, before: Usage) -> dict[str, float]:
        """CPU seconds of each part between two readings, most first."""
        used = {part: seconds - before.seconds.get(part, 0.0) for part, seconds in self.seconds.items()}
        return dict(sorted(used.items(), key=lambda item: -item[1]))


def _program(process: psutil.Process, *, has_engine: bool) -> Iterable[tuple[str, float]]:
    threads = sorted(thread.user_time + thread.system_time for thread in process.threads())
    children = sum(_cpu(child) for child in process.children(recursive=True))
    if not has_engine:
        return [("", sum(threads) + children)]
    return [(ENGINE_THREAD, threads[-1]), ("other threads", sum(threads[:-1]) + children)]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
