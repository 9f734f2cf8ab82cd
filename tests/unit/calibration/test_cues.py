"""Words for relay: what stands behind them in what large thought, and which are taken."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.calibration.cues import CueCalibration, find_cues, read_cue_sample
from pipeline.calibration.overlap import Overlap
from pipeline.errors import JobError
from pipeline.policies import parse_policy
from pipeline.results.stored import StoredSample
from pipeline.signals import Signal
from tests.unit.calibration.stored import sample, segment

SURE, UNSURE = 0.9, 0.3


def large(pieces: Sequence[tuple[str, float | None]], problem: str) -> StoredSample:
    texts = [text for text, _ in pieces]
    margins = {Signal.MARGIN: tuple(margin for _, margin in pieces)}
    return sample([segment(0, "large", texts, margins)], problem=problem)


def sentence(word: str, margin: float, length: int = 4) -> list[tuple[str, float | None]]:
    """A word, tokens behind it, a full stop; the word itself is drawn unsurely."""
    return [(f" {word}", 0.1), *[(" x", margin)] * (length - 1), (".", margin)]


OTHERS = Overlap(0, 9)


def calibrated(*samples: StoredSample, overlap: Overlap | None = OTHERS) -> CueCalibration:
    return find_cues(7, [read_cue_sample(each) for each in samples], overlap)


def usual(number: int) -> StoredSample:
    """Sure behind "Thus", unsure behind "Maybe"; "x" begins no sentence."""
    off = number / 100
    pieces = [*sentence("Maybe", UNSURE + off), *sentence("Thus", SURE + off), *sentence("Maybe", UNSURE - off)]
    return large(pieces, problem=f"p{number}")


def test_words_behind_which_large_is_surer_than_elsewhere_are_taken() -> None:
    found = calibrated(*map(usual, range(6)))
    assert [report.cue for report in found.cues] == ["thus", "maybe"]
    thus, maybe = found.cues
    assert (thus.uses, thus.num_problems, thus.tokens) == (6, 6, 4.0)
    assert thus.margin == pytest.approx(SURE + 0.025)
    assert (maybe.uses, maybe.tokens) == (12, 4.0)
    assert maybe.margin == pytest.approx(UNSURE)
    assert found.margin == pytest.approx((3 * 0.1 + 8 * UNSURE + 4 * (SURE + 0.025)) / 15)
    assert thus.interval is not None
    assert thus.interval.low < thus.margin < thus.interval.high
    assert found.chosen == ("thus",)
    assert found.small_share == pytest.approx(4 / 15)
    assert found.caveats == ()


def test_a_word_with_which_few_problems_begin_sentences_is_no_candidate() -> None:
    samples = [usual(number) for number in range(5)]
    samples += [large(sentence("So", SURE), problem="p9") for _ in range(9)]
    assert {report.cue for report in calibrated(*samples).cues} == {"thus", "maybe"}
    samples += [large(sentence("so", SURE + n / 100), problem=f"q{n}") for n in range(4)]
    assert {report.cue for report in calibrated(*samples).cues} == {"so", "thus", "maybe"}


def test_uses_inside_sentences_count_once_some_begin_with_the_word() -> None:
    inner = [(" a", 0.1), (" So", 0.1), (" x", 0.7), (".", 0.5)]
    samples = [large([*sentence("So", SURE + n / 50, 2), *inner], problem=f"p{n}") for n in range(5)]
    (so,) = calibrated(*samples).cues[:1]
    assert (so.cue, so.uses, so.tokens) == ("so", 10, 2.0)
    assert so.margin == pytest.approx((2 * (SURE + 0.04) + 1.2) / 4)


def test_a_word_may_be_split_over_tokens_and_a_sentence_end_at_a_break() -> None:
    pieces = [("Th", 0.1), ("us", 0.2), (" x", 0.8), ("=3.14", 0.6), ("\n\n", 0.7), ("y", 0.0)]
    samples = [large([(t, m if m is None else m + n / 100) for t, m in pieces], problem=f"p{n}") for n in range(5)]
    (thus,) = [report for report in calibrated(*samples).cues if report.cue == "thus"]
    assert (thus.uses, thus.tokens) == (5, 3.0)
    assert thus.margin == pytest.approx(0.7 + 0.02)


def test_only_the_thoughts_that_large_wrote_are_read() -> None:
    late = [("</think>", 0.9), *sentence("Thus", 0.0)]
    samples = [large([*sentence("Thus", SURE + n / 100), *late], problem=f"p{n}") for n in range(5)]
    (thus,) = calibrated(*samples).cues
    assert thus.uses == 5
    unknown = [(" Thus", 0.1), (" x", None), (".", 0.9)]
    of_small = sample([segment(0, "small", [" Thus", "."], {Signal.MARGIN: (0.1, 0.9)})], problem="s")
    found = calibrated(*samples, large(unknown, problem="u"), of_small)
    assert next(report for report in found.cues if report.cue == "thus").uses == 6
    assert found.caveats == ("1 samples have no thoughts of large's with margins",)


def test_small_writes_only_behind_a_lead_of_enough_tokens() -> None:
    """The second "So" comes two tokens after small's sentence: large has not led for long enough."""
    pieces = [*sentence("Maybe", UNSURE, 5), *sentence("So", SURE, 3), *sentence("So", SURE, 3)]
    found = calibrated(*(large([(t, (m or 0) + n / 100) for t, m in pieces], problem=f"p{n}") for n in range(5)))
    assert found.chosen == ("so",)
    assert found.small_share == pytest.approx(3 / 14)


def test_what_is_no_pilot_is_refused_and_nothing_sure_is_told() -> None:
    with pytest.raises(JobError, match="no margins are stored of what large thought; submit a pilot with --policy"):
        calibrated(sample([segment(0, "small", ["a"])]))
    found = calibrated(*(large(sentence("So", UNSURE), problem=f"p{n}") for n in range(6)), overlap=None)
    assert found.chosen == ()
    assert found.caveats[0].startswith("nobody said what will be scored")
    assert found.caveats[1].startswith("behind no word large is surer than elsewhere")


def test_the_list_is_one_that_relay_takes() -> None:
    found = calibrated(*map(usual, range(6)))
    assert parse_policy("relay", {"switch_cues": list(found.chosen)}).switch_cues == found.chosen  # type: ignore[attr-defined]
