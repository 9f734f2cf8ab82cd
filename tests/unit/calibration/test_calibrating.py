"""What a pilot predicts, against numbers counted by hand; and what is refused or said of it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.calibration.calibrating import Calibration, Pilot, PilotSample
from pipeline.calibration.overlap import Overlap, require_others
from pipeline.calibration.request import CalibrationRequest, make_calibration
from pipeline.calibration.thresholds import Side
from pipeline.errors import ConfigurationError, JobError
from pipeline.policies import parse_policy
from pipeline.policies.specs import PolicySpec, ThresholdRule
from pipeline.samples import ModelRole

NAME = ("first_entropy", ModelRole.SMALL)


def pilot(*values: tuple[tuple[float, ...], float | None]) -> Pilot:
    """A sample of 40 tokens in steps of 10 for each tuple of entropies, two to a problem."""
    return Pilot(
        job_id=7,
        samples=tuple(
            PilotSample(
                problem=f"p{index // 2}", score=score, num_tokens=40, values={NAME: found},
                step_tokens={ModelRole.SMALL: (10,) * len(found)},
            )
            for index, (found, score) in enumerate(values)
        ),
    )  # fmt: skip


USUAL = pilot(
    ((0.1, 0.2, 0.3, 0.4), 1.0),
    ((0.1, 0.2, 0.3, 1.9), 0.0),
    ((0.1, 0.2, 0.3, 0.5), 1.0),
    ((0.1, 1.5, 1.6, 1.7), 0.0),
)


def asked(found: Pilot, **options: Any) -> Calibration:
    return make_calibration(found, CalibrationRequest.parse(**options), Overlap(0, 9))


def test_a_share_of_steps_becomes_a_threshold_and_takeovers() -> None:
    (report,) = asked(USUAL, shares=[0.25], policy="glimpse").statistics
    assert (report.num_places, report.places_per_sample, report.side) == (16, 4.0, Side.ABOVE)
    assert report.separation is not None
    assert report.separation.auc == 1.0  # both wrong means are above both right ones
    (row,) = report.thresholds
    assert (row.threshold, row.share) == (1.0, 0.25)  # 1.9, 1.5, 1.6 and 1.7 of 16
    assert (row.takeovers, row.large_tokens) == (1.0, 10.0)
    assert (row.takeovers_low, row.takeovers_high) == (0.5, 1.5)  # one problem or the other, twice


def test_a_share_of_tokens_is_what_large_would_write_of_them() -> None:
    (report,) = asked(USUAL, shares=[0.125, 0.9], share_of="tokens", policy="glimpse", step_tokens=20).statistics
    (row,) = report.thresholds[:1]
    # 12.5 % of 40 tokens are 5, a quarter of a step of 20: 1/16 of the four steps
    assert [row.wanted, row.share, row.large_tokens] == pytest.approx([0.125, 1 / 16, 5.0])
    assert len(report.thresholds) == 2
    found = asked(USUAL, shares=[0.9], share_of="tokens", policy="glimpse", step_tokens=5)
    assert found.statistics[0].thresholds == ()
    assert "share 0.9 of the tokens needs more than every place" in " ".join(found.caveats)


def test_without_a_policy_large_is_called_where_wrong_samples_are() -> None:
    turned = pilot(*(((values), 1.0 - (score or 0.0)) for values, score in
                     ((sample.values[NAME], sample.score) for sample in USUAL.samples)))  # fmt: skip
    (report,) = asked(turned, shares=[0.25]).statistics
    assert report.side is Side.BELOW
    assert report.separation is not None
    assert report.separation.auc == 0.0


def test_a_policy_whose_side_is_the_good_one_is_named() -> None:
    found = pilot(*[((0.1, 0.2), 0.0), ((1.1, 1.2), 1.0)] * 10)
    told = " ".join(asked(found, policy="glimpse").caveats)
    assert "first_entropy: wrong samples are below here (AUC 0.00), and this calls large above the threshold" in told
    assert "below here" not in " ".join(asked(found, policy="glimpse", side="below").caveats)


def test_steps_that_large_writes_whatever_the_threshold_are_told() -> None:
    given = {"policy": "redo:trig", "statistic": "first_entropy", "side": "above"}
    told = " ".join(asked(USUAL, **given).caveats)
    assert "redo:trig lets large write the first 20 steps of a text, whatever the threshold" in told
    assert "whatever the threshold" not in " ".join(asked(USUAL, **given, policy_values={"first_steps": 0}).caveats)


def test_what_cannot_be_said_is_said() -> None:
    alike = pilot(((0.5, 0.5), 1.0), ((0.5, 0.5), 1.0))
    told = " ".join(make_calibration(alike, CalibrationRequest.parse()).caveats)
    assert "nobody said what will be scored" in told
    assert "the pilot has 1 problems" in told
    assert "nothing says its sign" in told
    assert "all values are equal; there is no threshold" in told
    shared = make_calibration(USUAL, CalibrationRequest.parse(), Overlap(2, 9))
    assert shared.caveats[0] == "calibrated on its own problems: 2 of the 9 that will be scored are in the pilot"


def test_a_pilot_without_what_is_asked_for_is_refused() -> None:
    empty = Pilot(job_id=7, samples=(PilotSample(problem="p", score=1.0, num_tokens=3, values={}, step_tokens={}),))
    with pytest.raises(JobError, match=r"stored no signal; submit a pilot .*policy\.signals=all"):
        asked(empty)
    with pytest.raises(JobError, match="it has no 'min_logprob'; it has: first_entropy"):
        asked(USUAL, statistic="min_logprob")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shares": [0.1, 1.5]}, "share 1.5: give numbers between 0 and 1"),
        ({"shares": []}, "give numbers between 0 and 1"),
        ({"share_of": "words"}, "'words': give steps or tokens"),
        ({"side": "left"}, "'left': give above or below"),
        ({"step_tokens": 0}, "step_tokens 0: give a number, at least 1"),
        ({"step_tokens": float("inf")}, "step_tokens inf: give a number, at least 1"),
        ({"step_tokens": float("nan")}, "step_tokens nan: give a number, at least 1"),
        ({"field": "threshold"}, "there is no 'threshold' to set; write policy.NAME or exit.NAME"),
        ({"field": "exit."}, r"there is no 'exit\.' to set"),
        ({"policy": "glimpse", "field": "policy.treshold"}, "policy glimpse has no treshold; it has: .*threshold"),
        ({"policy": "random", "statistic": "first_entropy"}, "policy random has no threshold; it has: .*rate"),
        ({"policy": "relay"}, "policy 'relay' has no threshold but words: --cues finds them"),
        ({"policy": "magic"}, "there is no policy 'magic'"),
        ({"policy": "random"}, "policy 'random' says of no threshold what it is compared with"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        CalibrationRequest.parse(**options)


def test_problems_that_will_be_scored_are_refused() -> None:
    require_others(Overlap(0, 9), "job 3", otherwise="give --anyway")
    with pytest.raises(ConfigurationError, match=r"2 of the 9 problems of job 3 are in the pilot: .* or give --anyway"):
        require_others(Overlap(2, 9), "job 3", otherwise="give --anyway")


class OwnSpec(PolicySpec):
    """A policy of another package: three fields say what its threshold is compared with."""

    name: str = "own"
    threshold: float = -1.35
    statistic: str = "min_logprob"
    side: str = "below"

    def build(self) -> Any:
        raise NotImplementedError


def test_a_policy_says_what_its_threshold_is_compared_with() -> None:
    assert OwnSpec().threshold_rule == ThresholdRule(statistic="min_logprob", side="below")
    assert parse_policy("glimpse").threshold_rule == ThresholdRule(statistic="first_entropy", side="above")
    assert parse_policy("large-only").threshold_rule is None
    request = CalibrationRequest.parse(policy="random", statistic="min_logprob", side="below", field="policy.rate")
    assert (request.question.statistic, request.question.side, request.field) == (
        "min_logprob", Side.BELOW, "policy.rate",
    )  # fmt: skip
