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
    start_token: int = 0,
) -> int:
    """The seed of one segment's noise, in [0, 2**63): the same whoever writes it, whenever.

    start_token: of the segment, where a stored part of it ends and another request goes on: each has its own noise.
    """
    place = f"{segment_index}+{start_token}" if start_token else segment_index
    return _seed(job_seed, problem_id, sample_index, place, role)


def aside_seed(
    *,
    job_seed: int,
    problem_id: str,
    sample_index: int,
    aside_index: int,
    role: ModelRole,
) -> int:
    """The seed of one aside's noise, in the same way."""
    return _seed(job_seed, problem_id, sample_index, f"aside{aside_index}", role)


def _seed(job_seed: int, problem_id: str, sample_index: int, place: int | str, role: ModelRole) -> int:
    key = f"{job_seed}\x1f{problem_id}\x1f{sample_index}\x1f{place}\x1f{role.value}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1
