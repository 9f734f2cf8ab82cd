"""Random control at a matched budget: what random delegation must be set to so that another job is its fair rival."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import ConfigurationError

MOST_BREAKS = 0.9
"""Where a job takes over at more of small's breaks, its control draws tokens: at breaks it would be the same policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegatedWriting:
    """What the two models wrote in a job's complete samples, in kept tokens.

    num_breaks: breaks that small wrote in the think phase; a run of newlines is one, and one at which large took over
        counts. small_tokens: small's in the think phase. num_words: words that small wrote there, and those at which
        large took over; counted where the job's policy calls large at words.
    takeover_tokens: of takeovers, with what large wrote on after one. opening_tokens: before a sample's first takeover,
        in num_openings samples. answer_tokens: after the think phase.
    """

    num_breaks: int
    small_tokens: int
    num_takeovers: int
    takeover_tokens: int
    num_openings: int = 0
    opening_tokens: int = 0
    answer_tokens: int = 0
    num_words: int = 0


def matched_values(written: DelegatedWriting, *, same_exit: bool = False) -> dict[str, Any]:
    """The fields of RandomDelegationSpec that match a job in number and in large tokens.

    at, rate: takeovers per word of small where words were counted; else per break of small, or per token of small where
    large took over at nearly every break, or oftener.
    tokens: the mean length of a takeover as it was written, whatever it was allowed; each of the control's ends there,
    also inside a sentence, for an earlier or later end would change the tokens. opening_tokens: their mean length. So
    both call the large model as often and for as many tokens per place of small, and differ in where. Where large wrote
    nothing but openings, these count as takeovers: the control writes as much at random places instead.
    same_exit: whether both jobs end the think phase by the same exit, so that large's answers match by themselves.
    Raises ConfigurationError for a job that random delegation cannot match.
    """
    written = _openings_as_takeovers(written) if not written.num_takeovers else written
    breaks, takeovers = written.num_breaks, written.num_takeovers
    at, places = _places(written)
    if takeovers == 0 or places < 1:
        raise ConfigurationError(
            f"{takeovers} takeovers at {breaks} breaks of the small model give no rate to match; match a job whose "
            "large model was called in"
        )
    if takeovers > places:
        raise ConfigurationError(
            f"{takeovers} takeovers at {places} {at}s of the small model cannot be matched: random delegation takes "
            "over once at a token; match a job with fewer takeovers"
        )
    if written.answer_tokens and not same_exit:
        raise ConfigurationError(
            f"the large model wrote {written.answer_tokens} tokens of answers, which random delegation does not; match "
            "a job whose answer_role is small, or give both jobs the same exit"
        )
    if written.takeover_tokens < takeovers:
        raise ConfigurationError(
            f"{takeovers} takeovers of {written.takeover_tokens} tokens together cannot be matched: those of random "
            "delegation have one token at least; match a job whose large model had more to say"
        )
    values = {
        "at": at,
        "rate": takeovers / places,
        "tokens": written.takeover_tokens / takeovers,
        "handback": "tokens",
    }
    opening = {"opening_tokens": written.opening_tokens / written.num_openings} if written.opening_tokens else {}
    return values | opening


def _openings_as_takeovers(written: DelegatedWriting) -> DelegatedWriting:
    return replace(
        written,
        num_takeovers=written.num_openings,
        takeover_tokens=written.opening_tokens,
        num_openings=0,
        opening_tokens=0,
    )


def _places(written: DelegatedWriting) -> tuple[str, int]:
    """What is drawn, and how many of it there are."""
    if written.num_words:
        return "word", written.num_words
    if written.num_takeovers <= MOST_BREAKS * written.num_breaks:
        return "break", written.num_breaks
    return "token", written.small_tokens
