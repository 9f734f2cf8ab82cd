"""A limit on what one formula may take of a machine's memory."""

from __future__ import annotations

from pipeline import limits

MAX_MEMORY = 2 * 2**30
"""Bytes that a grading process may take beyond what it has when it starts. Measured: (x+y+z)^{5000} takes 0.8 GiB in
the 5 s that math-verify gives it; ordinary answers take a few MiB."""


def limit_memory(max_bytes: int = MAX_MEMORY) -> None:
    """Let this process take so much more memory and no more."""
    limits.limit_memory(max_bytes)
