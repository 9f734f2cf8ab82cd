"""The arithmetic of signals: log-probabilities in, readings out."""

import math
from collections.abc import Sequence

import pytest

from pipeline.signals import NUM_TOP, Signal
from workers.engine.readings import (
    SignalReader,
    Top,
    entropy,
    first_margin,
    label_logprob,
    margin,
    read_labels,
    read_top,
    rounded,
)

NAN, MINUS_INFINITY = float("nan"), float("-inf")


class Rows:
    """One row per token: its log-probability, and those of the most likely ids from 0 on."""

    def __init__(self, *tops: Sequence[float], drawn: Sequence[float] = ()) -> None:
        self._tops, self._drawn = tops, drawn or [top[0] for top in tops]
        self.num_tops_read = 0

    def drawn(self, row: int) -> float:
        return self._drawn[row]

    def top(self, row: int) -> Top:
        self.num_tops_read += 1
        return Top(range(len(self._tops[row])), self._tops[row])


def uniform(num_tokens: int) -> list[float]:
    return [-math.log(num_tokens)] * num_tokens


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 0.0), (2, 0.69315), (3, 1.09861), (20, 2.99573)])
def test_entropy_of_equally_likely_tokens_is_the_log_of_their_number(num_tokens: int, expected: float) -> None:
    assert rounded(entropy(uniform(num_tokens))) == expected


def test_entropy_is_that_of_the_most_likely_tokens_alone() -> None:
    """What lies outside them counts nothing: the same shape at a tenth of the mass has the same entropy."""
    logprobs = [math.log(p) for p in (0.5, 0.3, 0.2)]
    expected = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert entropy(logprobs) == pytest.approx(expected)
    assert entropy([logprob - math.log(10) for logprob in logprobs]) == pytest.approx(expected)


def test_entropy_passes_over_impossible_tokens() -> None:
    assert entropy([*uniform(2), MINUS_INFINITY]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("logprobs", [[], [MINUS_INFINITY], [NAN, NAN]])
def test_entropy_of_nothing_is_no_reading(logprobs: list[float]) -> None:
    assert rounded(entropy(logprobs)) is None


def test_margin_is_between_the_probabilities_of_the_first_two() -> None:
    assert rounded(margin([math.log(0.7), math.log(0.2), math.log(0.1)])) == 0.5
    assert margin([0.0]) == 1.0


def test_first_margin_is_the_distance_to_the_tag() -> None:
    top = Top((7, 3, 5), (-0.5, -1.25, -3.0))
    assert first_margin(top, 3) == 0.75
    assert first_margin(top, 7) == 0.0


@pytest.mark.parametrize("token_id", [99, None])
def test_first_margin_of_a_tag_out_of_sight_is_no_reading(token_id: int | None) -> None:
    assert first_margin(Top((7, 3), (-0.5, -1.25)), token_id) is None


def test_label_counts_all_its_ids_in_sight() -> None:
    top = Top((7, 3, 5), (math.log(0.5), math.log(0.25), math.log(0.125)))
    assert label_logprob(top, (3, 5, 99)) == pytest.approx(math.log(0.375))
    assert read_labels(top, {"yes": (7,), "no": (98, 99)}) == {"yes": -0.69315, "no": None}
    assert read_labels(None, {"yes": (7,)}) == {"yes": None}


def test_top_is_rounded_and_has_numbers_only() -> None:
    assert read_top(Top((1, 2, 3), (-0.1234567, -2.0, MINUS_INFINITY))) == (-0.12346, -2.0)
    assert read_top(None) == ()


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.234567, -1.23457), (NAN, None), (MINUS_INFINITY, None), (None, None)]
)
def test_reading_is_rounded_once(value: float | None, expected: float | None) -> None:
    assert rounded(value) == expected


# Where a sparse signal is read


def places(*texts: str, newlines: int = 0) -> list[int]:
    """Which of these tokens have an entropy."""
    reader = SignalReader(frozenset({Signal.FIRST_ENTROPY}), newlines=newlines)
    rows = Rows(*[uniform(2)] * len(texts))
    for row, text in enumerate(texts):
        reader.read(text, rows, row)
    values = reader.values[Signal.FIRST_ENTROPY]
    assert len(values) == len(texts)
    assert rows.num_tops_read == sum(value is not None for value in values), (
        "computed where it is read, and nowhere else"
    )
    return [index for index, value in enumerate(values) if value is not None]


def test_steps_begin_at_the_first_token_and_after_each_break() -> None:
    assert places("Take", " it.", "\n\n", "Then", " go.", "\n\n", "Wait", ",") == [0, 3, 6]


def test_break_in_several_tokens_is_read_once_after_the_last() -> None:
    assert places("a", "\n\n", "\n", "b", "c") == [0, 3]
    assert places("a", "\n", "\n", "b", "c") == [0, 3]
    assert places("a", ".\n", "\n", "\n", "\n", "b") == [0, 5]


def test_break_merged_with_other_characters_is_a_break() -> None:
    assert places("a", " it.\n\n", "b", ")\n\n  ", "c") == [0, 2, 4]


def test_one_newline_and_newlines_inside_a_token_are_no_break() -> None:
    assert places("a", "\n", "b", "\n\nc", "d") == [0]


def test_blanks_between_newlines_are_a_part_of_the_break() -> None:
    assert places("a", "\n\n", " \n", "b") == [0, 3]
    assert places("a", "\n", " ", "\n", "b") == [0, 4]


def test_step_that_begins_with_part_of_a_character_is_read_there() -> None:
    assert places("a", "\n\n", "", "é", "b") == [0, 2]


def test_step_that_begins_with_a_blank_is_read_there() -> None:
    assert places("a", "\n\n", " ", "b") == [0, 2]


def test_break_that_the_prompt_began_is_found() -> None:
    assert places("\n", "b", "c", newlines=1) == [0, 1]
    assert places("\n", "b", "c", newlines=0) == [0]


# What each signal reads


def test_each_signal_has_an_entry_per_token() -> None:
    reader = SignalReader(frozenset(Signal), think_end_id=1)
    tops = [[-0.1, -2.5], [-0.2, -1.75], uniform(2)]
    rows = Rows(*tops, drawn=[-0.1, -1.75, -0.123456789])
    seen = [reader.read(text, rows, row) for row, text in enumerate(["a.\n\n", "b", "c"])]
    assert reader.values == {
        Signal.LOGPROB: (-0.1, -1.75, -0.12346),
        Signal.MARGIN: tuple(round(math.exp(top[0]) - math.exp(top[1]), 5) for top in tops),
        Signal.FIRST_ENTROPY: (rounded(entropy(tops[0])), rounded(entropy(tops[1])), None),
        Signal.FIRST_MARGIN: (2.4, 1.55, None),
    }
    for index, readings in enumerate(seen):
        assert readings == {signal: values[index] for signal, values in reader.values.items()}


def test_log_probabilities_alone_never_look_at_the_most_likely_tokens() -> None:
    reader = SignalReader(frozenset({Signal.LOGPROB}))
    rows = Rows(uniform(NUM_TOP), uniform(NUM_TOP))
    assert [reader.read(text, rows, row) for row, text in enumerate("ab")] == [{Signal.LOGPROB: -2.99573}] * 2
    assert rows.num_tops_read == 0


def test_nothing_read_has_no_entries() -> None:
    assert SignalReader(frozenset({Signal.LOGPROB})).values == {Signal.LOGPROB: ()}
