"""The completions endpoint, ids in and ids out: requests as it takes them, and what its stream brings.

vLLM's form of OpenAI's protocol: ``prompt`` as ids, ``return_token_ids``, ``return_tokens_as_token_ids``, ``priority``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.samples import SegmentFinish
from pipeline.signals import NUM_TOP
from workers.engine.base import GenerateRequest
from workers.engine.readings import LogprobRows, Top
from workers.engine.server.errors import ServerAway, ServerFaulty, ServerRefuses, of_status

PATH = "/completions"
NO_IDS = "it gives no token ids (return_token_ids): vLLM does from 0.10.2 on"

_FINISHES = {"stop": SegmentFinish.EOS, "length": SegmentFinish.LENGTH}
_LEAST = -9999.0
"""What the server writes for minus infinity."""
_ID = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a server can do. model: its name for the model. num_logprobs: most likely tokens that it reports."""

    model: str
    takes_priority: bool = False
    num_logprobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one event brings. token_ids: EOS included. prompt_ids: as the server has them, with the first tokens.
    num_cached_tokens: of the prompt, with the last event, where the server says."""

    token_ids: Sequence[int] = ()
    finish: SegmentFinish | None = None
    rows: LogprobRows | None = None
    prompt_ids: Sequence[int] | None = None
    num_cached_tokens: int | None = None


def request_body(request: GenerateRequest, server: Abilities, eos_ids: Sequence[int]) -> bytes:
    """Every number explicit: what the server has set for itself must not change how a job samples."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": server.model,
        "prompt": list(request.context_ids),
        "max_tokens": request.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(eos_ids),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if request.seed is not None:
        body["seed"] = request.seed
    if server.takes_priority:
        body["priority"] = request.priority
    if request.num_logprobs is not None:
        body |= {"logprobs": request.num_logprobs, "return_tokens_as_token_ids": True}
    return orjson.dumps(body)


def read_event(data: bytes) -> Chunk | None:
    """What an event brings; None: the stream is over. Raises ServerError for one that says so, or cannot be read."""
    if data == b"[DONE]":
        return None
    try:
        event = orjson.loads(data)
        if "error" in event:
            raise of_status(_code(event["error"]), orjson.dumps(event).decode())
        return _chunk(event)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ServerFaulty(f"an event of its stream cannot be read: {data[:200]!r}") from error


def _code(error: Any) -> int:
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) else 500


def _chunk(event: Mapping[str, Any]) -> Chunk:
    if not event.get("choices"):
        details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
        return Chunk(num_cached_tokens=details.get("cached_tokens"))
    [choice] = event["choices"]
    token_ids = choice.get("token_ids")
    if token_ids is None:
        raise ServerRefuses(NO_IDS)
    logprobs = choice.get("logprobs")
    return Chunk(
        token_ids=token_ids,
        finish=_finish(choice.get("finish_reason")),
        rows=_Rows(logprobs) if logprobs and token_ids else None,
        prompt_ids=choice.get("prompt_token_ids"),
    )


def _finish(reason: str | None) -> SegmentFinish | None:
    if reason is None:
        return None
    if reason == "abort":
        raise ServerAway("it ended the request")
    if reason not in _FINISHES:
        raise ServerFaulty(f"the request ended with {reason!r}")
    return _FINISHES[reason]


class _Rows:
    """The log-probabilities of one event. Tokens are written "token_id:7"; of the most likely ones an entry more may be
    there, that of the drawn token."""

    __slots__ = ("_drawn", "_top")

    def __init__(self, logprobs: Mapping[str, Any]) -> None:
        self._drawn = logprobs["token_logprobs"]
        self._top = logprobs["top_logprobs"]

    def drawn(self, row: int) -> float:
        return _logprob(self._drawn[row])

    def top(self, row: int) -> Top:
        by_rank = sorted(self._top[row].items(), key=lambda entry: -entry[1])[:NUM_TOP]
        return Top([_token_id(token) for token, _ in by_rank], [_logprob(value) for _, value in by_rank])


def _logprob(value: float) -> float:
    return value if value > _LEAST else float("-inf")


def _token_id(token: str) -> int:
    found = _ID.fullmatch(token)
    if found is None:
        raise LookupError(f"its log-probabilities name tokens by text, not by id: {token[:50]!r}")
    return int(found[1])
