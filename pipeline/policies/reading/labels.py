"""Labels: what a model would have answered, as the probabilities of the texts it was to choose from.

All labels together have a *mass*. Where that is small the model would have written something else: what is left for the
labels is noise, and a chooser has no answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import Field

from pipeline.signals import DIGITS

NO_ANSWER = "no answer"
"""Outcome of a reading where a chooser has none; its value is the mass."""

MinMass: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""Least probability of all labels together for an answer."""


def probabilities(labels: Mapping[str, float | None]) -> dict[str, float]:
    """The probability of each label; 0 where it was not among the most likely tokens.

    labels: log-probabilities, as ``Answered`` has them.
    """
    return {label: 0.0 if value is None else math.exp(value) for label, value in labels.items()}


def rounded(value: float) -> float:
    """A value made of readings, with as many decimals as they have: sums of them meet a threshold exactly."""
    return round(value, DIGITS)
