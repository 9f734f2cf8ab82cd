"""The record of one request: ids in, a piece out."""

from collections.abc import Callable

from pipeline.policies.base import Watcher
from pipeline.samples import SegmentFinish
from workers.engine.base import GenerateRequest, Sampling
from workers.engine.running import Running, Tally


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

    def feed(self, text: str) -> bool:
        self.seen.append(text)
        return text == self.word


def make_running(watcher: Watcher | None = None, decoder: Callable[[], Halves] = Halves) -> Running:
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
