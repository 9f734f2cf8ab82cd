"""What random delegation is set to for the budget of another job."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigurationError
from pipeline.jobs.matching import matched_values
from pipeline.policies import parse_policy


def test_rate_and_length_are_the_jobs() -> None:
    spec = parse_policy("speculative-thinking:improved")
    takeovers = {"reflection": 30, "affirmation": 30, "verify": 30, "too_much_reflection": 10}
    values = matched_values(spec, num_breaks=400, takeovers=takeovers)
    assert values == {
        "rate": 0.25,
        "tokens": round((60 * 20 + 40 * 125) / 100),
        "handback": "sentence",
        "handback_from": 0.5,
    }
    assert parse_policy("random", values).model_dump().items() >= values.items()


def test_presets_that_hand_back_at_n_tokens_are_matched_so() -> None:
    values = matched_values(parse_policy("speculative-thinking:paper"), num_breaks=10, takeovers={"reflection": 4})
    assert values == {"rate": 0.4, "tokens": 20, "handback": "tokens"}


def test_steps_are_matched_by_steps() -> None:
    values = matched_values(parse_policy("glimpse"), num_breaks=50, takeovers={"glimpse": 10})
    assert values == {"rate": 0.2, "tokens": 512, "handback": "break"}
    assert parse_policy("random", values).model_dump().items() >= values.items()


def test_random_can_be_matched_to_random() -> None:
    spec = parse_policy("random", {"rate": 0.3, "tokens": 33, "handback": "tokens"})
    values = matched_values(spec, num_breaks=100, takeovers={"random": 30})
    assert (values["rate"], values["tokens"], values["handback"]) == (0.3, 33, "tokens")


@pytest.mark.parametrize(
    ("policy", "takeovers", "num_breaks"),
    [
        ("speculative-thinking:improved", {}, 10),
        ("speculative-thinking:improved", {"verify": 5}, 0),
        ("large-only", {}, 10),
    ],
)
def test_job_without_takeovers_cannot_be_matched(policy: str, takeovers: dict[str, int], num_breaks: int) -> None:
    with pytest.raises(ConfigurationError, match="rate to match"):
        matched_values(parse_policy(policy), num_breaks=num_breaks, takeovers=takeovers)


def test_a_policy_that_does_not_say_how_long_its_takeovers_are_cannot_be_matched() -> None:
    with pytest.raises(ConfigurationError, match="'large-only' does not say how long its takeovers are"):
        matched_values(parse_policy("large-only"), num_breaks=10, takeovers={"my own": 5})
