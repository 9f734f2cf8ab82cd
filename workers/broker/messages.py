"""The payloads of messages: ids and epochs, never text, tokens or answers; a payload under 1 KB."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SAMPLES = 28
"""Most samples in one message: what fits into 1 KB with the largest ids."""
MAX_SHARED = 16
"""Most samples in one message that any worker of a model may take: two workers still share 32 samples."""

PositiveId = Annotated[int, Field(gt=0, lt=2**63)]
Epoch = Annotated[int, Field(ge=0, lt=2**31)]


class SamplesMessage(BaseModel):
    """Wake up: these samples of one job wait, each at this epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    job_id: PositiveId
    samples: Annotated[list[tuple[PositiveId, Epoch]], Field(min_length=1, max_length=MAX_SAMPLES)]

    @property
    def epochs(self) -> dict[int, int]:
        """sample id → epoch"""
        return dict(self.samples)


class JobMessage(BaseModel):
    """Wake up: something is to be done about a job."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    job_id: PositiveId
