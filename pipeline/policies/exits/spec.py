"""What the specs of exits share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipeline.policies.exits.protocol import Trial
from pipeline.policies.turns import NO_SIGNALS
from pipeline.signals import Signal


class ExitSpec(BaseModel):
    """An exit as a job stores it: a name and every number. It is the exit itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON has no such number

    name: str

    @property
    def signals(self) -> frozenset[Signal]:
        return NO_SIGNALS

    @property
    def trial(self) -> Trial | None:
        return None
