"""How a claim ends in the worker that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pipeline.db.commits import SampleCommit
from pipeline.errors import EngineUnavailable
from workers.writing.latch import Latch


@dataclass(frozen=True, slots=True)
class Release:
    """The sample goes back to its last commit. anywhere: another worker of the model is as good."""

    anywhere: bool = False


@dataclass(frozen=True, slots=True)
class Deferral:
    """The sample goes back to its last commit and is tried later: the engine refuses it for now."""

    error: EngineUnavailable


ClaimEnd: TypeAlias = SampleCommit | Release | Deferral | None
"""How a claim ends here; None: nothing is to be done, somebody else has the sample."""


class EndedClaim(NamedTuple):
    """A claim that ends. worker_id: that made it. num_tokens: generated under it."""

    worker_id: int
    claim: tuple[int, int]
    latch: Latch
    num_tokens: int
    how: ClaimEnd
