"""Relay: vectors by hand, and the published loop as one would write it with two engines that block."""

from __future__ import annotations

import random
import re
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError
from pipeline.policies import parse_policy
from pipeline.policies.relay import RelaySpec
from pipeline.policies.requests import Finish, Generate
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, SegmentFinish
from tests.by_hand import ByHand, context_of
from tests.decisions import Decision, Keep, decided
from tests.scripted_pair import Loop, Model, drive, models

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
CUES = ("So", "thus", "in total")


def spec_of(**values: object) -> RelaySpec:
    return RelaySpec.model_validate({"switch_cues": CUES, **values})


class Play(ByHand):
    """One sample that large leads."""

    def __init__(self, spec: RelaySpec | None = None) -> None:
        super().__init__((spec or spec_of()).build(), context_of(1000))

    def watched(self, *texts: str) -> int | None:
        return self.stops_after(texts)

    def write(self, *texts: str, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.has_written(texts, finish)


def sentence(cue: str = "so", max_tokens: int = 512) -> Generate:
    return Generate(role=SMALL, max_tokens=max_tokens, trigger="relay", cue=cue)


def leads(play: Play) -> Generate:
    return Generate(role=LARGE, max_tokens=play.context.max_tokens - play.num_tokens, trigger="lead", takes_over=True)


LED = ["It", " is", " 4", ".", " So", " x"]


# Large leads.


def test_large_begins() -> None:
    play = Play()
    assert play.policy.roles == {SMALL, LARGE}
    assert decided(play.last) == (Generate(role=LARGE, max_tokens=1000, trigger="start"),)


def test_small_writes_on_after_a_switch_cue() -> None:
    play = Play()
    assert play.watched(*LED) == 6
    assert play.write(*LED, " late") == (Keep(num_tokens=5), sentence())


def test_a_token_that_shows_the_cues_end_stays_with_it() -> None:
    play = Play()
    assert play.watched("It", " is", " 4", ".", " So ", "x") == 5
    assert play.write("It", " is", " 4", ".", " So ") == (Keep(num_tokens=5), sentence())


@pytest.mark.parametrize("texts", [[" Some", " x"], [" al", "so", " x"], [" So", "me", " x"], [" in", " totals", "."]])
def test_a_part_of_a_longer_word_is_no_cue(texts: list[str]) -> None:
    assert Play().watched(*"abcde", *texts) is None


@pytest.mark.parametrize(
    ("texts", "cue"), [([" T", "hus", ","], "thus"), ([" SO", " "], "so"), ([" In", " ", " total", ":"], "in total")]
)
def test_a_cue_is_found_in_any_case_and_however_tokens_split_it(texts: list[str], cue: str) -> None:
    play = Play()
    assert play.watched(*LED[:4], *texts) == 4 + len(texts)
    assert play.write(*LED[:4], *texts) == (Keep(num_tokens=3 + len(texts)), sentence(cue))


def test_a_cue_that_comes_too_early_is_passed_over() -> None:
    assert Play().watched("It", " is", " 4", " So", " x", " y") is None
    assert Play().watched(" So", " thus", " So", " thus", " so", " x") == 6
    assert Play(spec_of(lead_tokens=1)).watched("So", " x") == 2
    play = Play()
    assert play.write("a", " b", " c", " so", " thus ") == (Keep(num_tokens=5), sentence("thus"))


def test_a_character_that_is_not_whole_does_not_stay_with_the_cue() -> None:
    play = Play()
    assert play.write("It", " is", " 4", ".", " So", "", "，") == (Keep(num_tokens=5), sentence())


def test_a_cue_behind_the_closing_tag_is_none() -> None:
    play = Play()
    assert play.write(*"abcd", "</think> So ") == (
        Keep(num_tokens=5),
        Generate(role=SMALL, max_tokens=995, trigger="resume"),
    )


def test_a_cut_piece_is_gone_on_with() -> None:
    play = Play()
    assert play.write("It", " is", " i")[1] == Generate(role=LARGE, max_tokens=997, trigger="start")
    assert play.watched("n", " total", " x") == 3
    assert play.write("n", " total", " x") == (Keep(num_tokens=2), sentence("in total"))


def test_larges_end_is_the_samples() -> None:
    assert Play().write("It", " is", finish=EOS) == (Keep(num_tokens=2), Finish(reason=FinishReason.EOS))


# Small writes a sentence.


def test_small_hands_back_where_white_space_follows_its_sentence() -> None:
    play = Play()
    play.write(*LED)
    assert play.watched(" x", " =", " 2", ".", "1", ".", " Now") == 7
    assert play.write(" x", " =", " 2", ".", "1", ".", " Now") == (Keep(num_tokens=6), leads(play))


def test_small_hands_back_at_a_break() -> None:
    play = Play()
    play.write(*LED)
    assert play.watched(" x", "\n", "\n") == 3
    assert play.write(" x", "\n\n", "y") == (Keep(num_tokens=2), leads(play))


def test_a_sentence_is_no_longer_than_it_may_be() -> None:
    play = Play(spec_of(sentence_tokens=3))
    assert play.write(*LED)[1] == sentence(max_tokens=3)
    assert play.watched(" x", " y", " z") == 3
    assert play.write(" x", " y", "", finish=LENGTH) == (Keep(num_tokens=2), leads(play)), "whole characters only"


def test_smalls_end_while_it_thinks_hands_back() -> None:
    play = Play()
    play.write(*LED)
    assert play.write(finish=EOS) == (Keep(num_tokens=0), leads(play))
    assert play.watched(" x", " y") is None, "the cue before is used up"
    assert play.watched(" x", " y", " z", " w", " so", ".") == 6


def test_each_lead_begins_to_count_anew() -> None:
    play = Play()
    play.write(*LED)
    play.write(" x", ".", " y")
    assert play.watched(" So", " z", " w") is None
    assert play.watched("a", "b", "c", "d", " So", " z") == 6


# The answer.


def test_small_writes_the_answer() -> None:
    play = Play()
    assert play.watched("a", "</think>", "b") == 2
    assert play.write("a", "</think>") == (
        Keep(num_tokens=2),
        Generate(role=SMALL, max_tokens=998, trigger="resume"),
    )
    assert play.policy.watcher(play.context, play.last.state) is None
    assert play.write("8", ".\n\n", finish=EOS)[1] == Finish(reason=FinishReason.EOS)
    play = Play()
    play.write(*LED)
    assert play.watched(" x", "</think>") == 2
    assert play.write(" x", "</think>", "8")[1] == Generate(role=SMALL, max_tokens=993, trigger="resume")


def test_large_may_write_the_answer_and_that_is_no_takeover() -> None:
    play = Play(spec_of(answer_role=LARGE))
    answer = Generate(role=LARGE, max_tokens=998, trigger="answer")
    assert play.write("a", "</think>", "b") == (Keep(num_tokens=2), answer)
    assert play.policy.watcher(play.context, play.last.state) is None
    assert play.write("8", " So", " x", finish=EOS)[1] == Finish(reason=FinishReason.EOS)


def test_without_cues_it_is_refused() -> None:
    spec = parse_policy("relay")
    with pytest.raises(ConfigurationError, match="relay needs switch_cues"):
        spec.build()
    assert parse_policy("relay", {"switch_cues": ["So", "Thus"]}) == RelaySpec(switch_cues=("so", "thus"))


# The published loop.

WORDS = [
    " a", " b", ",", ".\n\n", "\n", "\n\n", " So", "So ", " th", "us", " in", " total", "x\n", " ", " so</think>",
    "</think>", "END", "é", "", "\ufffd", ".", "!", ".", "3", "?) ", "。", " so", " Thus", " some", " x. y",
    *[" a", " b", " c"] * 6,
]  # fmt: skip
STOP = r"[.!?…][\"'”’)\]}*$]*"


class RelayLoop(Loop):
    """Large writes until a cue, small to the end of the sentence."""

    def __init__(self, spec: RelaySpec, model: Model, *, max_tokens: int) -> None:
        super().__init__(model, max_tokens=max_tokens)
        self.spec = spec

    def write(self) -> None:
        self.text.ask(LARGE, "start")
        while (cue := self.lead()) is not None:
            self.check_budget()
            self.text.ask(SMALL, "relay", cue=cue)
            self.visit(SMALL, self.spec.sentence_tokens, self.sentence_end)
            if not self.text.is_thinking:
                self.answer(self.spec.answer_role, after=SMALL)
            self.text.ask(LARGE, "lead", takes_over=True)
        self.answer(self.spec.answer_role, after=LARGE)

    def lead(self) -> str | None:
        """The cue after which small writes on; None at the end of the think phase."""
        begin = len(self.text)
        while self.text.is_thinking:
            self.token(LARGE)
            found = self.first_cue(begin)
            if found is not None:
                self.text.cut_to(found[0], LARGE)
                return found[1]
        return None

    def first_cue(self, begin: int) -> tuple[int, str] | None:
        """Tokens up to the end of the first cue that counts, and the cue."""
        text, ends = str(self.text).lower(), [*accumulate(map(len, self.text.tokens))]
        found = []
        for cue in self.spec.switch_cues:
            for match in re.finditer(r"(?<!\w)" + cue.lower().replace(" ", r"\s+") + r"(?!\w)", text):
                token = next(count for count, end in enumerate(ends, 1) if end >= match.end())
                is_thought = self.text.is_thinking or token < len(ends)
                if match.end() < len(text) and token >= begin + self.spec.lead_tokens and is_thought:
                    found.append((match.end(), token, cue.lower()))
        return min(found)[1:] if found else None

    def sentence_end(self, written: list[str]) -> int | None:
        if not self.text.is_thinking or self.text.at_break:
            return len(written)
        *_, last = written
        shown = max((count for count, text in enumerate(written[:-1], 1) if text), default=0)
        if not last:
            return len(written) if len(written) >= self.spec.sentence_tokens else None
        if last[0].isspace() and re.search(rf"{STOP}\Z", "".join(written[:shown])):
            return shown
        text = "".join(written)
        if not last.isspace() and (re.search(rf"{STOP}\s+\Z", text) or re.search(r"[。！？][」』”’）]*\s*\Z", text)):
            return len(written)
        return len(written) if len(written) >= self.spec.sentence_tokens else None


CASES: dict[str, Any] = {
    "spec": st.builds(
        RelaySpec,
        switch_cues=st.sampled_from([CUES, ("so",), ("a", "thus", "x")]),
        lead_tokens=st.sampled_from([1, 2, 5]),
        sentence_tokens=st.sampled_from([1, 3, 512]),
        answer_role=st.sampled_from(WRITING_ROLES),
    ),
    "model": models(WORDS, cut=LARGE),
    "max_tokens": st.sampled_from([1, 20, 80, 80, 80]),
    "overrun": st.integers(0, 2**16).map(random.Random),
}


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(**CASES)
def test_relay_does_as_the_published_loop(
    spec: RelaySpec, model: Model, max_tokens: int, overrun: random.Random
) -> None:
    expected = RelayLoop(spec, model, max_tokens=max_tokens).run()
    assert drive(spec.build(), model, max_tokens=max_tokens, overrun=overrun) == expected
