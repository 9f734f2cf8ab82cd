"""The record of one request: ids in, a piece out."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.samples import SegmentFinish
from pipeline.signals import NUM_TOP, Readings, Signal
from workers.engine.base import GenerateRequest, Sampling, StopRule
from workers.engine.readings import Top
from workers.engine.running import Running, Tally, newlines_before


class Halves:
    """Even ids begin a character that the next odd id ends."""

    def __init__(self) -> None:
        self.open = False

    def step(self, token_id: int) -> str:
        self.open = token_id % 2 == 0
        return "" if self.open else f"<{token_id}>"


class Until:
    def __init__(self, word: str) -> None:
        self.word = word
        self.seen: list[str] = []

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.seen.append(text)
        return text == self.word


def make_running(watcher: StopRule | None = None, decoder: Callable[[], Halves] = Halves) -> Running:
    request = GenerateRequest(request_id="r", prompt_ids=[1, 2, 3], max_tokens=9, sampling=Sampling(), watcher=watcher)
    return Running(request, lambda outcome: None, decoder())


def test_texts_are_per_token_without_a_watcher() -> None:
    running = make_running()
    for token_ids in ([1], [2], [3, 4], []):
        assert not running.take(token_ids)
    piece = running.result(SegmentFinish.LENGTH).piece
    assert piece.token_ids == (1, 2, 3, 4)
    assert piece.texts == ("<1>", "", "<3>", "")


def test_texts_are_the_same_with_a_watcher() -> None:
    running = make_running(Until("never"))
    for token_ids in ([1], [2], [3, 4]):
        assert not running.take(token_ids)
    assert running.result(SegmentFinish.LENGTH).piece.texts == ("<1>", "", "<3>", "")


def test_tokens_after_the_watchers_word_are_kept_and_not_shown_to_it() -> None:
    watcher = Until("<3>")
    running = make_running(watcher)
    assert not running.take([1])
    assert running.take([3, 5, 7])
    assert watcher.seen == ["<1>", "<3>"]
    assert running.result(SegmentFinish.WATCH).piece.texts == ("<1>", "<3>", "<5>", "<7>")


def test_result_of_a_request_that_never_ran_has_no_tokens_and_equal_times() -> None:
    result = make_running().result(SegmentFinish.WATCH)
    assert len(result.piece) == 0
    assert result.num_prompt_tokens == 3
    assert result.queue_seconds == result.first_token_seconds == result.total_seconds


def test_tally_counts_silence_from_when_it_was_woken() -> None:
    tally = Tally()
    assert tally.stats(num_running=0, num_waiting=0, cache_usage=0.5).last_token_age_s == 0.0
    tally.wake()
    assert 0 <= tally.stats(num_running=0, num_waiting=1, cache_usage=0.0).last_token_age_s < 5


def test_idle_engine_uses_no_cache() -> None:
    assert Tally().stats(num_running=0, num_waiting=0, cache_usage=0.5).cache_usage == 0.0


# Signals


class Rows:
    """The drawn token's log-probability is that of its row; the most likely ids are 1 and 3, equally."""

    def __init__(self, *drawn: float) -> None:
        self._drawn = drawn

    def drawn(self, row: int) -> float:
        return self._drawn[row]

    def top(self, row: int) -> Top:
        return Top((1, 3), (math.log(0.5), math.log(0.5)))


class Noting:
    """Ends the request after so many tokens; keeps what it was shown."""

    def __init__(self, num_tokens: int) -> None:
        self.shown: list[tuple[str, Readings | None]] = []
        self._num_tokens = num_tokens

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.shown.append((text, readings))
        return len(self.shown) == self._num_tokens


def reading(*, watcher: StopRule | None = None, **asked: Any) -> Running:
    request = GenerateRequest(
        request_id="r", prompt_ids=[1], max_tokens=9, sampling=Sampling(), watcher=watcher, **asked
    )
    return Running(request, lambda outcome: None, Halves())


def test_signals_have_an_entry_per_token_those_after_the_watchers_word_included() -> None:
    watcher = Noting(2)
    running = reading(watcher=watcher, signals=frozenset({Signal.LOGPROB}))
    assert not running.take([1], Rows(-0.5))
    assert running.take([3, 5], Rows(-1.0, -2.0))
    assert watcher.shown == [("<1>", {Signal.LOGPROB: -0.5}), ("<3>", {Signal.LOGPROB: -1.0})]
    result = running.result(SegmentFinish.WATCH)
    assert result.signals == {Signal.LOGPROB: (-0.5, -1.0, -2.0)}
    assert result.piece.texts == ("<1>", "<3>", "<5>")


def test_signals_are_read_without_a_watcher() -> None:
    running = reading(signals=frozenset({Signal.LOGPROB, Signal.FIRST_ENTROPY}))
    assert not running.take([1, 3], Rows(-0.5, -1.0))
    assert running.result(SegmentFinish.LENGTH).signals == {
        Signal.LOGPROB: (-0.5, -1.0),
        Signal.FIRST_ENTROPY: (0.69315, None),
    }


def test_end_of_sequence_has_no_entry() -> None:
    """Its row comes with the last one, its id does not."""
    running = reading(signals=frozenset({Signal.LOGPROB}))
    assert not running.take([1], Rows(-0.5, -9.0))
    assert not running.take([], Rows(-9.0))
    assert running.result(SegmentFinish.EOS).signals == {Signal.LOGPROB: (-0.5,)}


def test_first_tokens_distribution_is_read_once_also_where_it_is_the_end() -> None:
    running = reading(labels={"a": (1, 3), "b": (7,)}, reads_top=True)
    assert not running.take([], Rows(-9.0))
    result = running.result(SegmentFinish.EOS)
    assert (result.labels, result.top) == ({"a": 0.0, "b": None}, (-0.69315, -0.69315))
    assert result.signals == {}


def test_request_that_ended_before_its_first_token_has_no_readings() -> None:
    result = reading(labels={"a": (1,)}, reads_top=True, signals=frozenset({Signal.LOGPROB})).result(
        SegmentFinish.WATCH
    )
    assert (result.labels, result.top, result.signals) == ({"a": None}, (), {Signal.LOGPROB: ()})


def test_engine_that_reports_nothing_is_a_mistake() -> None:
    with pytest.raises(LookupError, match="no log-probabilities"):
        reading(signals=frozenset({Signal.LOGPROB})).take([1])


def test_log_probabilities_are_asked_for_as_far_as_they_are_needed() -> None:
    def asked(**options: Any) -> int | None:
        return reading(**options).request.num_logprobs

    assert asked() is None
    assert asked(signals=frozenset({Signal.LOGPROB})) == 1
    for signal in set(Signal) - {Signal.LOGPROB}:
        assert asked(signals=frozenset({signal, Signal.LOGPROB})) == NUM_TOP
    assert asked(labels={"a": (1,)}) == NUM_TOP
    assert asked(reads_top=True) == NUM_TOP


@pytest.mark.parametrize(
    ("words", "expected"), [(["one", "\n"], 1), (["\n", "\n"], 2), (["a", " b"], 0), (["a.\n\n"], 2), (["\n", ""], 1)]
)
def test_newlines_before_are_those_that_the_prompt_ends_with(words: list[str], expected: int) -> None:
    def request(signal: Signal) -> GenerateRequest:
        ids = range(len(words))
        return GenerateRequest(
            request_id="r", prompt_ids=ids, max_tokens=9, sampling=Sampling(), signals=frozenset({signal})
        )

    class Words:
        def step(self, token_id: int) -> str:
            return words[token_id]

    assert newlines_before(request(Signal.FIRST_MARGIN), lambda after: Words()) == expected
    assert newlines_before(request(Signal.LOGPROB), lambda after: Words()) == 0
