"""A clock that jumps, for the servers that are started under it: their machine's time, plus as much as a file says.

A library that is loaded before libc's functions of the time adds it, in all processes of a server at once. Clocks that
only say how long something takes go on as they do on a real machine.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.embedded import postgres

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t none = 0, *ahead_s = &none;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("JUMPING_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *there = mmap(NULL, sizeof *ahead_s, PROT_READ, MAP_SHARED, file, 0);
    if (there != MAP_FAILED) ahead_s = there;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int answer = real_clock_gettime(clock, now);
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *ahead_s;
    return answer;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


def why_no_clock() -> str | None:
    """Why no clock can be made to jump here; None where one can."""
    return None if shutil.which("cc") else "a clock that jumps needs a C compiler, cc"


class JumpingClock:
    """The clock of a Postgres that is started inside ``over_postgres``."""

    def __init__(self, folder: Path) -> None:
        """folder: new, and its path is one that Postgres may enter."""
        folder.mkdir(mode=0o755)
        self._file = folder / "ahead"
        self._library = folder / "clock.so"
        self.set(ahead_s=0)
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", str(self._library), "-x", "c", "-", "-ldl"],
            input=_SOURCE, text=True, check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def set(self, *, ahead_s: int) -> None:
        """From now on it is so many seconds ahead of the machine's, or behind."""
        with self._file.open("r+b" if self._file.exists() else "xb") as file:
            file.write(struct.pack("=q", ahead_s))

    @property
    def environment(self) -> Mapping[str, str]:
        """Of a process that reads the time by this clock."""
        return {"LD_PRELOAD": str(self._library), "JUMPING_CLOCK": str(self._file)}


@contextmanager
def over_postgres(clock: JumpingClock) -> Iterator[None]:
    """An embedded Postgres that is started meanwhile goes by this clock, also when it is started again."""
    usual = postgres.server_environment
    postgres.server_environment = lambda folder: {**usual(folder), **clock.environment}
    try:
        yield
    finally:
        postgres.server_environment = usual
