"""Workers as the database knows them."""

from __future__ import annotations

from enum import StrEnum


class WorkerKind(StrEnum):
    """What a worker process does."""

    SMALL = "small"
    LARGE = "large"
    GRADE = "grade"
    UPKEEP = "upkeep"


class WorkerEnd(StrEnum):
    """Why a worker's life ended."""

    STOPPED = "stopped"  # it said goodbye
    LAPSED = "lapsed"  # its lease ran out
    ENGINE_DIED = "engine_died"  # it said so, and ended
    ENGINE_STALLED = "engine_stalled"  # no token for too long while requests ran; it said so, and ended
    WRITER_FAILED = "writer_failed"  # an error of its own that nobody foresaw; it said so, and ended
