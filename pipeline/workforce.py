"""Workers as the database knows them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum


class WorkerKind(StrEnum):
    """What a worker process does."""

    SMALL = "small"
    LARGE = "large"
    JUDGE = "judge"
    GRADE = "grade"
    UPKEEP = "upkeep"


class WorkerEnd(StrEnum):
    """Why a worker's life ended."""

    STOPPED = "stopped"  # it said goodbye
    LAPSED = "lapsed"  # its lease ran out
    ENGINE_DIED = "engine_died"  # it said so, and ended
    ENGINE_STALLED = "engine_stalled"  # no token for too long while requests ran; it said so, and ended
    WRITER_FAILED = "writer_failed"  # an error of its own that nobody foresaw; it said so, and ended


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """One live worker; counters as of its last heartbeat.

    max_model_len: most tokens of prompt and output that its engine takes. model_fingerprint, weights_sha256, revision:
    of its model. None for a worker without an engine, and where they are not known. engine_arguments: those of vLLM's
    own that a person gave; None where none was. accelerate: what drafts tokens for its engine; None: nothing.
    num_drafts, draft_tokens, accepted_tokens: of its drafts.
    """

    id: int
    kind: str
    model: str | None
    host: str
    pid: int
    max_in_flight: int
    num_in_flight: int
    tokens_generated: int
    started_at: dt.datetime
    renewed_seconds_ago: float
    max_model_len: int | None = None
    model_fingerprint: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    engine_arguments: dict[str, str] | None = None
    accelerate: str | None = None
    num_drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def acceptance(self) -> str | None:
        """How its drafts fare, in a few words; None where nothing drafts."""
        if self.accelerate is None:
            return None
        if not self.num_drafts:
            return f"{self.accelerate}, no draft yet"
        share, length = self.accepted_tokens / self.draft_tokens, 1 + self.accepted_tokens / self.num_drafts
        return (
            f"{self.accelerate}, {self.accepted_tokens:,} of {self.draft_tokens:,} drafted tokens accepted "
            f"({share:.0%}), {length:.2f} tokens per step"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderReport:
    """The upkeep worker that does the duties now. can_publish: whether Redis took its last messages."""

    worker_id: int
    host: str
    since: dt.datetime
    seen_seconds_ago: float
    can_publish: bool
