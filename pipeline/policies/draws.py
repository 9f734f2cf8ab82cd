"""Numbers drawn for a policy's own decisions: the same for a sample wherever and however often it is decided."""

from __future__ import annotations

import hashlib

from pipeline.policies.protocol import SampleContext


def draw(context: SampleContext, number: int | str) -> float:
    """A number in [0, 1) that depends on (job seed, problem, sample index, number) alone."""
    source = f"{context.job_seed}/{context.sample_index}/{number}/{context.problem_id}"
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:7]) / 2**56
