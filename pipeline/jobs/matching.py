"""Random control at a matched budget: what random delegation must be set to so that another job is its fair rival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegatedWriting:
    """What the large model wrote in a job's complete samples, in kept tokens.

    num_breaks: breaks that small wrote in the think phase; a run of newlines is one, and one at which large took over
        counts.
    takeover_tokens: of takeovers, with what large wrote on after one. opening_tokens: before a sample's first takeover.
    answer_tokens: after the think phase.
    """

    num_breaks: int
    num_takeovers: int
    takeover_tokens: int
    opening_tokens: int = 0
    answer_tokens: int = 0


def matched_values(written: DelegatedWriting, *, same_exit: bool = False) -> dict[str, Any]:
    """The fields of RandomDelegationSpec that match a job in number and in large tokens.

    rate: takeovers per break. tokens: the mean length of a takeover as it was written, whatever it was allowed; each of
    the control's ends there, also inside a sentence, for an earlier or later end would change the tokens. So both call
    the large model as often and for as many tokens per break of small, and differ in where.
    same_exit: whether both jobs end the think phase by the same exit, so that large's answers match by themselves.
    Raises ConfigurationError for a job that random delegation cannot match.
    """
    breaks, takeovers = written.num_breaks, written.num_takeovers
    if takeovers == 0 or breaks < 1:
        raise ConfigurationError(
            f"{takeovers} takeovers at {breaks} breaks of the small model give no rate to match; match a job whose "
            "large model was called in"
        )
    if takeovers > breaks:
        raise ConfigurationError(
            f"{takeovers} takeovers at {breaks} breaks of the small model cannot be matched: random delegation takes "
            "over once at a break; match a job with fewer takeovers"
        )
    _require_takeovers_alone(written, same_exit=same_exit)
    if written.takeover_tokens < takeovers:
        raise ConfigurationError(
            f"{takeovers} takeovers of {written.takeover_tokens} tokens together cannot be matched: those of random "
            "delegation have one token at least; match a job whose large model had more to say"
        )
    return {"rate": takeovers / breaks, "tokens": written.takeover_tokens / takeovers, "handback": "tokens"}


def _require_takeovers_alone(written: DelegatedWriting, *, same_exit: bool) -> None:
    """Random delegation writes no opening, and no answer but after an exit."""
    if written.opening_tokens:
        raise ConfigurationError(
            f"the large model wrote {written.opening_tokens} tokens before a sample's first takeover, which random "
            "delegation does not; match a job without openings (opening_tokens = 0)"
        )
    if written.answer_tokens and not same_exit:
        raise ConfigurationError(
            f"the large model wrote {written.answer_tokens} tokens of answers, which random delegation does not; match "
            "a job whose answer_role is small, or give both jobs the same exit"
        )
