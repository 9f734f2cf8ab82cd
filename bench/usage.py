"""CPU time by part of a running pipeline: who had the cores while something was measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from bench.stack import Stack

ENGINE_THREAD = "engine"
"""The thread of a small or large worker that was busiest between two readings: it steps the model."""


def cpu_seconds(pid: int) -> float:
    """Of a process and all that it started, those that have ended included."""
    process = psutil.Process(pid)
    total = sum(process.cpu_times()[:4])  # its own, and those of its children that have ended
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:4])
    return total


def machine_cpu_seconds() -> float:
    """Of everybody on this machine; taken by the host counts too."""
    times = psutil.cpu_times()
    return sum(
        value for name, value in times._asdict().items() if name not in ("idle", "iowait", "guest", "guest_nice")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """CPU seconds of each program since its start, as ``cpu_seconds``, and of each thread of those with an engine."""

    programs: Mapping[str, float]
    threads: Mapping[str, Mapping[int, float]]

    @classmethod
    def read(cls, stack: Stack) -> Usage:
        programs, threads = {}, {}
        pids = {program.name: program.pid for program in stack.state.program_states() if program.pid}
        for name, pid in pids.items():
            with suppress(psutil.NoSuchProcess):
                if name in ("small", "large"):
                    threads[name] = {
                        thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()
                    }
                programs[name] = cpu_seconds(pid)
        return cls(programs=programs, threads=threads)

    def seconds_since(self, before: Usage) -> dict[str, float]:
        """CPU seconds of each part between two readings, most first: programs, those with an engine in two (the
        engine's thread, all others)."""
        used = {}
        for name, seconds in self.programs.items():
            whole = seconds - before.programs.get(name, 0.0)
            if name not in self.threads:
                used[name] = whole
                continue
            earlier = before.threads.get(name, {})
            engine = max(total - earlier.get(thread, 0.0) for thread, total in self.threads[name].items())
            used |= {f"{name} {ENGINE_THREAD}": engine, f"{name} other threads": whole - engine}
        return dict(sorted(used.items(), key=lambda item: -item[1]))
