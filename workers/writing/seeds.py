"""Seeds that do not depend on order, worker or database."""

from __future__ import annotations

import hashlib

from pipeline.samples import ModelRole


def segment_seed(
    *,
    job_seed: int,
    problem_id: str,
    sample_index: int,
    segment_index: int,
    role: ModelRole,
) -> int:
    """The seed of one segment's noise, in [0, 2**63): the same whoever writes it, whenever."""
    key = f"{job_seed}\x1f{problem_id}\x1f{sample_index}\x1f{segment_index}\x1f{role.value}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1
