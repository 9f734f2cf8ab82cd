"""What random delegation is set to for the budget of another job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.errors import ConfigurationError
from pipeline.jobs.matching import DelegatedWriting, matched_values
from pipeline.policies import parse_policy

WRITTEN = DelegatedWriting(num_breaks=400, num_takeovers=100, takeover_tokens=3_125)


def test_rate_and_length_are_the_jobs() -> None:
    values = matched_values(WRITTEN)
    assert values == {"rate": 0.25, "tokens": 31.25, "handback": "tokens"}
    assert parse_policy("random", values).model_dump().items() >= values.items()


def test_takeover_at_every_break_is_matched() -> None:
    assert matched_values(replace(WRITTEN, num_breaks=100))["rate"] == 1


def test_answers_match_by_themselves_after_the_same_exit() -> None:
    written = replace(WRITTEN, answer_tokens=50)
    assert matched_values(written, same_exit=True) == matched_values(WRITTEN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_takeovers": 0}, "0 takeovers at 400 breaks of the small model give no rate to match"),
        ({"num_breaks": 0}, "100 takeovers at 0 breaks of the small model give no rate to match"),
        ({"num_breaks": 99}, "100 takeovers at 99 breaks of the small model cannot be matched"),
        ({"opening_tokens": 7}, "wrote 7 tokens before a sample's first takeover"),
        ({"answer_tokens": 7}, "wrote 7 tokens of answers"),
        ({"takeover_tokens": 99}, "takeovers of 99 tokens together cannot be matched"),
    ],
)
def test_job_that_the_control_cannot_match_is_refused(change: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        matched_values(replace(WRITTEN, **change))
