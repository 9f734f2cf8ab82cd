"""How busy a GPU is while something runs, by nvidia-smi: it counts the time in which any kernel ran."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.devices import Gpu, probe

EVERY_MS = 200
"""nvidia-smi looks at a period of its own of 1/6 s to 1 s."""
_QUERY = "utilization.gpu,utilization.memory,power.draw"


@dataclass(kw_only=True)
class Readings:
    """What was read: (moment of time.monotonic, % of time with a kernel, % with memory read or written, W)."""

    rows: list[tuple[float, float, float, float]] = field(default_factory=list)

    def between(self, begin: float, end: float) -> Busy | None:
        """Over a time of the same clock; None where nothing was read in it."""
        rows = [row for row in self.rows if begin <= row[0] <= end]
        if not rows:
            return None
        kernel, memory, watts = (statistics.fmean(row[column] for row in rows) for column in (1, 2, 3))
        return Busy(idle=1 - kernel / 100, memory=memory / 100, watts=watts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """idle: share of the time without any kernel. memory: share of the time in which memory was used. watts: mean."""

    idle: float
    memory: float
    watts: float


@contextmanager
def watched(gpu: int | None) -> Iterator[Readings]:
    """Read a GPU meanwhile, by nvidia-smi's number; None: there is none, and nothing is read."""
    readings = Readings()
    program = shutil.which("nvidia-smi") if gpu is not None else None
    if program is None:
        yield readings
        return
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", f"-lms={EVERY_MS}", f"-i={gpu}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    thread = threading.Thread(target=_read, args=(process, readings), name="gpu", daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        process.kill()
        process.wait()
        thread.join()


def wait_until_free(gpu: Gpu, *, timeout_s: float = 15.0) -> None:
    """Wait for the memory of engines that have just ended: vLLM refuses a GPU with less free than its share."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        now = probe().gpu(gpu.index)
        if now is None or now.free_gib > 0.98 * gpu.free_gib:
            return
        time.sleep(0.5)


def _read(process: subprocess.Popen[str], readings: Readings) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        numbers = _numbers(line.split(","))
        if numbers is not None:
            readings.rows.append((time.monotonic(), *numbers))


def _numbers(words: Sequence[str]) -> tuple[float, float, float] | None:
    """The three; a GPU that does not tell one says [N/A], which counts as 0 but for the first."""
    found = [float(word) if word.strip().replace(".", "", 1).isdigit() else None for word in words]
    if len(found) != 3 or found[0] is None:
        return None
    return found[0], found[1] or 0.0, found[2] or 0.0
