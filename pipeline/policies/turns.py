"""The mechanics that all policies share: whose turn it is, why a sample is over, what of a piece can be kept whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from pipeline.policies.requests import Answered, Event, Written
from pipeline.samples import FinishReason, ModelRole, SegmentFinish


def written_by(role: ModelRole, event: Event) -> Written:
    """The event, where it says that the model of this role wrote. Raises ValueError for any other."""
    match event:
        case Written(role=writer) if writer is role:
            return event
        case Written(role=writer):
            raise ValueError(f"the {role} model was to write, but {writer} did")
        case Answered():
            raise ValueError(f"the {role} model was to write, but an aside was answered")
        case _:
            assert_never(event)


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
