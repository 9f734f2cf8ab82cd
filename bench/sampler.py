"""Where a worker process spends its CPU time: a sampler inside the process.

Each time it looks, it gives the CPU time that each thread has used since the last look to the package that the thread
is in now: the innermost frame of a known one. Packages that only pass calls on (the standard library) count for their
callers.
"""

from __future__ import annotations

import faulthandler
import json
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_S = 0.005

_PARTS = {
    "/celery/": "celery",
    "/kombu/": "celery",
    "/billiard/": "celery",
    "/vine/": "celery",
    "/redis/": "celery",
    "/sqlalchemy/": "database client",
    "/psycopg/": "database client",
    "/workers/engine/": "scripted engine",
    "/pipeline/policies/": "policy",
    "/pipeline/": "ours",
    "/workers/": "ours",
    "/bench/sampler.py": "sampler",
    "/bench/": "scripted engine",
}
"""Part of a file's path → whose time it is; the first that fits."""


_THREAD = re.compile(r"^(?:Current thread|Thread) (0x[0-9a-f]+) .*:$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.*)", line \d+ in (.*)$', re.MULTILINE)


class Sampler:
    """Samples all threads of this process. seconds: CPU time by part; places: the same by part and function."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.places: dict[str, float] = defaultdict(float)
        self._used: dict[int, float] = {}
        self._known: dict[str, str | None] = {}
        self._dump = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the sampler

    def look(self, *, count: bool) -> None:
        """Note what each thread has used; count: and whose time it was."""
        stacks = self._stacks()
        for thread in threading.enumerate():
            ident = thread.ident
            if ident is None or thread.native_id is None or ident not in stacks:
                continue
            try:
                used = time.clock_gettime(_cpu_clock(thread.native_id))
            except OSError:  # it has just ended
                continue
            spent = used - self._used.get(ident, used)
            self._used[ident] = used
            if count and spent > 0:
                part, place = self._whose(stacks[ident])
                self.seconds[part] += spent
                self.places[f"{part}: {place}"] += spent

    def _stacks(self) -> dict[int, str]:
        """The text of each thread's stack. Frames of a running thread cannot be walked from Python: they change."""
        self._dump.seek(0)
        self._dump.truncate()
        faulthandler.dump_traceback(self._dump)
        self._dump.seek(0)
        _, *found = _THREAD.split(self._dump.read().decode(errors="replace"))
        return {int(ident, 16): stack for ident, stack in zip(found[::2], found[1::2], strict=True)}

    def _whose(self, stack: str) -> tuple[str, str]:
        for file, function in _FRAME.findall(stack):
            part = self._part(file)
            if part is not None:
                return part, f"{Path(file).name}:{function}"
        return "celery", "an idle thread of its pool"  # waits in the standard library's pool, called by nobody

    def _part(self, file: str) -> str | None:
        if file not in self._known:
            self._known[file] = next((part for path, part in _PARTS.items() if path in file), None)
        return self._known[file]


def _cpu_clock(native_id: int) -> int:
    """Linux's clock of a thread's CPU time. pthread_getcpuclockid reads freed memory where it has ended."""
    return (~native_id << 3) | 6


@contextmanager
def profiling(file: str | None) -> Iterator[None]:
    """Sample while FILE.on is there, and write what was found to FILE when it goes; None: do nothing."""
    if file is not None:
        threading.Thread(target=_sample_when_asked, args=(Path(file),), name="sampler", daemon=True).start()
    yield


def _sample_when_asked(file: Path) -> None:
    switch = Path(f"{file}.on")
    while True:
        while not switch.exists():
            time.sleep(0.1)
        sampler = Sampler()
        sampler.look(count=False)
        usual = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)  # else a look comes mostly where a thread waits for something
        while switch.exists():
            time.sleep(INTERVAL_S)
            sampler.look(count=True)
        sys.setswitchinterval(usual)
        new = Path(f"{file}.new")
        new.write_text(json.dumps({"seconds": sampler.seconds, "places": sampler.places}))
        new.replace(file)
