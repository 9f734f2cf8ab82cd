"""Steps and their statistics, as policies see them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from pipeline.calibration.calibrating import read_pilot_sample
from pipeline.calibration.steps import Step, StepRule, read_steps
from pipeline.policies.glimpse import GlimpseSpec
from pipeline.policies.protocol import SampleContext
from pipeline.samples import Author, ModelRole
from pipeline.signals import Signal, SignalValues
from tests.unit.calibration.stored import aside, sample, segment

ENTROPY = Signal.FIRST_ENTROPY


def sparse(texts: Sequence[str], values: dict[int, float], signal: Signal = ENTROPY) -> SignalValues:
    return {signal: tuple(values.get(place) for place in range(len(texts)))}


def entropies(steps: Sequence[Step]) -> list[float]:
    return [step.values["first_entropy"] for step in steps if "first_entropy" in step.values]


def test_a_step_begins_at_the_start_and_after_each_break_while_the_model_thinks() -> None:
    texts = ["Take", " it", ".\n\n", "\n", "Then", ".\n\n", "</think>", "\n\n", "So", "\n\n", "7"]
    read = sparse(texts, {0: 0.5, 4: 1.5, 6: 0.25, 8: 2.0, 10: 2.5})
    steps = list(read_steps(sample([segment(0, "small", texts, read)])))
    assert entropies(steps) == [0.5, 1.5, 0.25]
    assert [step.num_tokens for step in steps] == [3, 2, None]
    assert {step.author for step in steps} == {Author.SMALL}


@pytest.mark.parametrize(
    ("think_end", "think_opened", "texts", "expected"),
    [
        ("", True, ["A", "\n\n", "B", "\n\n", "C"], [0.0, 2.0, 4.0]),  # no think phase: all of it counts
        ("</think>", True, ["</think>", "\n\n", "B", "\n\n", "C"], [0.0, 2.0, 4.0]),  # closed at once
        ("</think>", False, ["A", "\n\n", "B", "\n\n", "C"], [0.0, 2.0, 4.0]),  # never opened
        ("</think>", False, ["<think>", "\n\n", "B", "</think>", "C"], [0.0, 2.0]),
    ],
)
def test_a_text_without_thoughts_is_read_whole(
    think_end: str, think_opened: bool, texts: list[str], expected: list[float]
) -> None:
    read = sparse(texts, {place: float(place) for place in range(0, len(texts), 2)})
    found = sample([segment(0, "small", texts, read)], think_end=think_end, think_opened=think_opened)
    assert entropies(list(read_steps(found))) == expected


def test_what_was_discarded_is_read_and_forgotten() -> None:
    """As glimpse writes: the uncertain token is thrown away, large writes the step, small goes on at its break."""
    first = ["A", ".\n\n", "Wait"]
    segments = [
        segment(0, "small", first, sparse(first, {0: 0.5, 2: 1.7}), num_discarded=1),
        segment(1, "large", ["Look", ".\n\n"]),
        segment(2, "small", ["B", ".\n\n"], sparse(["B", "b"], {0: 1.1})),
    ]
    steps = list(read_steps(sample(segments)))
    assert entropies(steps) == [0.5, 1.7, 1.1]
    assert [step.num_tokens for step in steps] == [2, None, 2, 2]


def test_a_step_whose_end_was_discarded_counts_once() -> None:
    peek = ["A", " b", ".\n\n", "C"]
    segments = [
        segment(0, "small", peek, sparse(peek, {0: 0.5, 3: 0.75}), num_discarded=3),
        segment(1, "small", [" c", ".\n\n", "D"], sparse(["", "", ""], {0: 9.0, 2: 1.25})),
    ]
    assert entropies(list(read_steps(sample(segments)))) == [0.5, 0.75, 1.25]


def test_statistics_of_a_step_are_those_of_its_tokens() -> None:
    texts = ["a", "b", "c", "d", ".\n\n", "e", "f", "g", "h", "i"]
    logprobs = (-0.01, -0.04879, -0.0488, -1.5, -0.02, -3.0, -3.0, -3.0, -3.0, -3.0)
    margins = (0.9, 0.7, 0.5, 0.1, 0.8, 0.0, 0.0, 0.0, 0.0, 0.0)
    read = {Signal.LOGPROB: logprobs, Signal.MARGIN: margins}
    whole, cut = read_steps(sample([segment(0, "small", texts, read)]))
    assert whole.num_tokens == 5
    assert whole.values == pytest.approx(
        {
            "min_logprob": -1.5,
            "mean_logprob": round(sum(logprobs[:5]) / 5, 5),
            "confident_share": 3 / 5,
            "mean_margin": 0.6,
        }
    )
    assert (cut.values, cut.num_tokens) == ({}, None)
    sure = StepRule(confident_below_perplexity=math.exp(1.5001))
    assert next(read_steps(sample([segment(0, "small", texts, read)]), sure)).values["confident_share"] == 1.0


def test_short_steps_and_those_of_two_authors_have_no_statistic_over_their_tokens() -> None:
    read = {Signal.LOGPROB: (-1.0, -1.0)}
    short = sample([segment(0, "small", ["a", ".\n\n"], read)])
    assert [step.values for step in read_steps(short)] == [{}]
    assert [step.values["min_logprob"] for step in read_steps(short, StepRule(min_tokens=2))] == [-1.0]
    mixed = [segment(0, "small", ["a", " b"], read), segment(1, "large", [" c", ".\n\n"], read)]
    assert [(step.num_tokens, step.values) for step in read_steps(sample(mixed), StepRule(min_tokens=1))] == [
        (None, {})
    ]


def test_a_step_goes_on_over_two_segments_of_one_author() -> None:
    read = {Signal.LOGPROB: (-1.0, -2.0)}
    parts = [segment(0, "small", ["a", " b"], read), segment(1, "small", [" c", ".\n\n"], read)]
    (step,) = read_steps(sample(parts), StepRule(min_tokens=4))
    assert (step.num_tokens, step.values["mean_logprob"]) == (4, -1.5)


def test_values_of_asides_count_by_their_purpose() -> None:
    texts = ["a", " b", ".\n\n", "c", ".\n\n", "d"]
    found = sample([segment(0, "small", texts)], asides=[aside(0, "rate", 7.0), aside(1, "rate", None)])
    read = read_pilot_sample(found, 1.0)
    assert read.values == {("aside:rate", ModelRole.LARGE): (7.0,)}
    assert (read.problem, read.score, read.num_tokens) == ("p", 1.0, 6)
    assert read.step_tokens == {ModelRole.SMALL: (3, 2)}  # how long a step of large is taken to be comes of them


def test_an_aside_without_an_answer_has_no_value() -> None:
    judged = [aside(0, "reward", 0.8, "accept"), aside(1, "reward", 0.1, "no answer")]
    read = read_pilot_sample(sample([segment(0, "small", ["a"])], asides=judged), 1.0)
    assert read.values == {("aside:reward", ModelRole.LARGE): (0.8,)}


@pytest.mark.parametrize("seed", range(20))
def test_places_are_those_at_which_glimpse_decides(seed: int) -> None:
    """Texts of tokens that break in many ways: with the threshold at any place's entropy, glimpse ends there."""
    draw = random.Random(seed)
    tokens = ["a", " b", ".", "\n", "\n\n", ".\n\n", " ", "\n \n", "", "x\n"]
    texts = [draw.choice(tokens) for _ in range(60)]
    values = tuple(round(draw.uniform(0, 3), 5) for _ in texts)  # everywhere, so that only the place decides
    found = entropies(list(read_steps(sample([segment(0, "small", texts, {ENTROPY: values})]))))
    context = SampleContext(
        job_seed=0, problem_id="p", sample_index=0, max_tokens=100, think_end="</think>", num_prompt_tokens=0
    )
    for threshold in found:
        policy = GlimpseSpec(threshold=threshold).build()
        watcher = policy.watcher(context, policy.start(context).state)
        assert watcher is not None
        ended = next(value for text, value in zip(texts, values, strict=True) if watcher.feed(text, {ENTROPY: value}))
        assert ended == next(value for value in found if value >= threshold)
