"""Limits that a process sets itself before it works on what nobody has read. With the standard library alone."""

from __future__ import annotations

import contextlib
import resource


def limit_memory(max_bytes: int) -> None:
    """Let this process take so much more memory and no more: beyond it, Python raises MemoryError.

    Does nothing on a system that tells no process its size (any but Linux).
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as pages:
        limit = int(pages.read().split()[0]) * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def limit_processor_time(max_s: int) -> None:
    """End this process by SIGXCPU once it has used so many seconds of processor time since it was started."""
    with contextlib.suppress(OSError, ValueError):  # not every system keeps such a limit
        resource.setrlimit(resource.RLIMIT_CPU, (max_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def leave_no_core() -> None:
    """A crash writes no image of this process."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
