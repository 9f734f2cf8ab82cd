"""Where writing ends: why a sample is over, and how much of a piece can be kept whole."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.policies.base import Written
from pipeline.samples import FinishReason, SegmentFinish


def finish_reason(event: Written, *, asked: int, remaining: int) -> FinishReason | None:
    """Why the sample ends after a request that nothing interrupted; None where it goes on."""
    if event.finish is SegmentFinish.EOS:
        return FinishReason.EOS
    if remaining <= 0:
        return FinishReason.LENGTH
    if event.finish is SegmentFinish.LENGTH and len(event.piece) < asked:
        return FinishReason.CONTEXT  # the engine had no room for what was asked
    return None


def whole_characters(texts: Sequence[str], num_tokens: int) -> int:
    """num_tokens or the next fewer tokens that end with a whole character.

    Tokens that leave a character unfinished add no text; bytes that belong to none show as U+FFFD.
    """
    while num_tokens and (not texts[num_tokens - 1] or texts[num_tokens - 1].endswith("\ufffd")):
        num_tokens -= 1
    return num_tokens
