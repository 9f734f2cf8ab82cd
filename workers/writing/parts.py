"""Which running requests are stored in parts, and what of them. Pure but for the clock.

A part has ids alone: texts, the watcher and the policy's state follow from them. So a request is stored in parts only
where nothing else follows from its beginning: where no signal is read of its tokens, and no penalty counts the tokens
of one request. And only as the first of its claim: what is gathered before it is not stored yet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.db.parts import Part
from pipeline.policies.requests import Generate
from workers.engine.base import Engine, GenerateRequest
from workers.writing.active import ActiveSample


def running_part(active: ActiveSample, engine: Engine, *, every_s: float) -> Part | None:
    """What a running request has written since its last part; None where it is not due, or not stored in parts."""
    request = active.engine_request
    if request is None or not _is_due(active, every_s=every_s) or not _can_be_stored(active, request):
        return None
    token_ids = engine.written(active.request_id)
    if token_ids is None or active.engine_request is not request or active.segments:
        return None  # it has ended: what was read may be the next one's
    return _part(active, request, token_ids)


def last_part(active: ActiveSample, token_ids: Sequence[int], *, every_s: float) -> Part | None:
    """What is not stored of a request that was ended in mid-writing; None where it is short, and can be drawn again as
    it was."""
    request = active.engine_request
    if request is None or not _can_be_stored(active, request):
        return None
    is_in_parts = bool(active.part_tokens or request.written)
    return _part(active, request, token_ids) if is_in_parts or _is_due(active, every_s=every_s) else None


def _is_due(active: ActiveSample, *, every_s: float) -> bool:
    return every_s > 0 and time.monotonic() - active.submitted_at >= every_s


def _can_be_stored(active: ActiveSample, request: GenerateRequest) -> bool:
    sampling = request.sampling
    return (
        isinstance(active.request, Generate)
        and not (active.segments or active.asides or request.signals)
        and not (sampling.presence_penalty or sampling.frequency_penalty)
    )


def _part(active: ActiveSample, request: GenerateRequest, token_ids: Sequence[int]) -> Part | None:
    start_token = max(active.part_tokens, len(request.written))
    if len(token_ids) <= start_token:
        return None
    return Part(
        sample_id=active.sample.sample_id,
        epoch=active.sample.epoch,
        segment_index=active.num_segments,
        start_token=start_token,
        token_ids=token_ids[start_token:],
    )
