"""Signals: what is read of each token beside its text, from the log-probabilities of the engine that wrote it.

All log-probabilities are natural logarithms of the model's own distribution, before temperature, penalties, top-k and
top-p: a reading does not depend on a job's sampling. Readings are rounded once, where the engine's numbers arrive, so
that watcher, policy, database and replay see the same value. Another engine or another batch may read something else in
the last digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias


class Signal(StrEnum):
    """What may be read. Dense: one value per token. Sparse: a value at the first token of each request and at the first
    token after a break, None elsewhere."""

    LOGPROB = "logprob"  # dense: log-probability of the token that was drawn
    MARGIN = "margin"  # dense: probability of the most likely token less that of the second
    FIRST_ENTROPY = "first_entropy"  # sparse: entropy in nats over the most likely tokens, renormalised over them
    FIRST_MARGIN = "first_margin"  # sparse: log-probability of the most likely token less the closing think tag's


SPARSE_SIGNALS = frozenset({Signal.FIRST_ENTROPY, Signal.FIRST_MARGIN})

NUM_TOP = 20
"""Most likely tokens that a reading sees: vLLM's default limit, and what GlimpRouter's released code uses."""
DIGITS = 5
"""Decimals of a reading."""

Readings: TypeAlias = Mapping[Signal, float | None]
"""The readings of one token; None where a sparse signal has no value, or where the value is out of sight."""
SignalValues: TypeAlias = Mapping[Signal, tuple[float | None, ...]]
"""The readings of a piece: one entry per token."""
