"""What random delegation is set to for the budget of another job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.errors import ConfigurationError
from pipeline.jobs.matching import DelegatedWriting, matched_values
from pipeline.policies import parse_policy

WRITTEN = DelegatedWriting(num_breaks=400, small_tokens=8_000, num_takeovers=100, takeover_tokens=3_125)


def test_rate_and_length_are_the_jobs() -> None:
    values = matched_values(WRITTEN)
    assert values == {"at": "break", "rate": 0.25, "tokens": 31.25, "handback": "tokens"}
    assert parse_policy("random", values).model_dump().items() >= values.items()


@pytest.mark.parametrize("num_breaks", [0, 99, 100, 111])
def test_takeovers_at_nearly_every_break_or_oftener_are_matched_by_tokens(num_breaks: int) -> None:
    values = matched_values(replace(WRITTEN, num_breaks=num_breaks))
    assert (values["at"], values["rate"]) == ("token", 0.0125)


def test_openings_are_matched_by_their_mean() -> None:
    values = matched_values(replace(WRITTEN, num_openings=40, opening_tokens=3_010))
    assert values == {**matched_values(WRITTEN), "opening_tokens": 75.25}
    assert parse_policy("random", values).model_dump().items() >= values.items()


def test_openings_alone_are_matched_by_takeovers_elsewhere() -> None:
    written = replace(WRITTEN, num_takeovers=0, takeover_tokens=0, num_openings=40, opening_tokens=3_010)
    assert matched_values(written) == {"at": "break", "rate": 0.1, "tokens": 75.25, "handback": "tokens"}


def test_answers_match_by_themselves_after_the_same_exit() -> None:
    written = replace(WRITTEN, answer_tokens=50)
    assert matched_values(written, same_exit=True) == matched_values(WRITTEN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_takeovers": 0}, "0 takeovers at 400 breaks of the small model give no rate to match"),
        ({"num_breaks": 0, "small_tokens": 0}, "100 takeovers at 0 breaks of the small model give no rate to match"),
        ({"num_breaks": 0, "small_tokens": 99}, "100 takeovers at 99 tokens of the small model cannot be matched"),
        ({"answer_tokens": 7}, "wrote 7 tokens of answers"),
        ({"takeover_tokens": 99}, "takeovers of 99 tokens together cannot be matched"),
    ],
)
def test_job_that_the_control_cannot_match_is_refused(change: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        matched_values(replace(WRITTEN, **change))
