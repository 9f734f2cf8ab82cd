"""SpecReason: vectors by hand, and the published loop as one would write it with two engines that block."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError
from pipeline.policies import parse_policy
from pipeline.policies.protocol import SampleContext
from pipeline.policies.requests import Ask, Finish, Generate, Take, Written
from pipeline.policies.specreason import DIGITS, DoubtedSpec, RatedSpec
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, Piece, SegmentFinish
from tests.asking_pair import (
    END,
    QUESTION_TOKENS,
    Aside,
    Driver,
    Pair,
    Verdict,
    in_question,
    pairs,
    verdict_of,
)
from tests.by_hand import ByHand, context_of
from tests.decisions import Decision, Keep, decided
from tests.drafting_loop import DraftingLoop

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
Spec = RatedSpec | DoubtedSpec


def logs(**probabilities: float) -> dict[str, float]:
    """Log-probabilities of labels; digits are given as d7=0.6."""
    return {label.removeprefix("d"): math.log(value) for label, value in probabilities.items()}


SURE, POOR = logs(d9=0.9), logs(d2=0.9)


class Play(ByHand):
    """One sample whose steps are judged."""

    def __init__(self, spec: Spec | None = None, context: SampleContext | None = None) -> None:
        super().__init__((spec or RatedSpec()).build(), context or context_of(1000))

    def watched(self, *texts: str) -> int | None:
        return self.stops_after(texts)

    def drafts(self, *texts: str, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        assert (self.ask.role, self.ask.purpose, self.ask.greedy) == (SMALL, "draft", False)
        return self.has_answered(texts, finish)

    def judges(self, labels: dict[str, float], role: ModelRole = LARGE) -> tuple[Decision, ...]:
        assert (self.ask.role, self.ask.greedy, self.ask.max_tokens) == (role, True, 1)
        assert self.policy.watcher(self.context, self.last.state) is None
        read = {label: labels.get(label) for label in self.ask.labels} if labels else {}
        return self.has_answered(["x"], LENGTH, labels=read)

    def writes(self, *texts: str, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.has_written(texts, finish)


def draft(room: int, *, most: int = 512) -> Ask:
    return Ask(role=SMALL, purpose="draft", max_tokens=min(room, most), greedy=False)


def takeover(max_tokens: int = 512) -> Generate:
    return Generate(role=LARGE, max_tokens=max_tokens, trigger="rejected", takes_over=True)


def test_small_drafts_a_step_and_large_rates_it() -> None:
    play = Play()
    assert decided(play.last) == (draft(1000),)
    assert play.watched("a", ".\n\n") == 2
    [asked] = play.drafts("a", ".\n\n", "late")
    assert isinstance(asked, Ask)
    assert (asked.role, asked.purpose, asked.turn, asked.labels) == (LARGE, "rate", True, DIGITS)
    assert (asked.after, asked.question) == (((0, 2),), RatedSpec().question)
    assert play.judges(SURE) == (Take(index=0, num_tokens=2), draft(998))
    assert verdict_of(play.last.reading) == (9.0, 7.0, "accept")


@pytest.mark.parametrize(("score", "value", "accepts"), [("expected", 6.9, False), ("digit", 7.0, True)])
def test_the_mean_of_the_digits_is_another_score_than_the_most_likely_one(
    score: str, value: float, accepts: bool
) -> None:
    play = Play(RatedSpec(score=score))
    play.drafts("a", ".\n\n")
    then = play.judges(logs(d7=0.6, d8=0.3, d3=0.1))[-1]
    assert then == (draft(998) if accepts else takeover())
    assert verdict_of(play.last.reading) == (value, 7.0, "accept" if accepts else "reject")


def test_the_threshold_itself_is_accepted() -> None:
    play = Play()
    play.drafts("a", ".\n\n")
    play.judges(logs(d6=0.5, d8=0.5))
    assert verdict_of(play.last.reading) == (7.0, 7.0, "accept")


def test_digits_with_too_little_mass_are_no_answer_and_the_step_does_not_stay() -> None:
    play = Play()
    play.drafts("a", ".\n\n")
    assert play.judges(logs(d9=0.3)) == (takeover(),)
    assert verdict_of(play.last.reading) == (0.3, 0.5, "no answer")
    play = Play(RatedSpec(min_mass=0))
    play.drafts("a", ".\n\n")
    assert play.judges({"none": 0.0}) == (takeover(),)
    assert verdict_of(play.last.reading) == (0.0, 0.0, "no answer")


@pytest.mark.parametrize("spec", [RatedSpec(), DoubtedSpec()])
def test_without_room_for_the_judgement_the_step_does_not_stay(spec: Spec) -> None:
    play = Play(spec)
    play.drafts("a", ".\n\n")
    assert play.judges({}) == (takeover(),)
    assert play.last.reading is not None
    assert play.last.reading.outcome == "no answer"


def test_the_steps_before_a_rejected_one_stay_and_those_after_it_do_not() -> None:
    play = Play(RatedSpec(steps_per_review=3))
    assert decided(play.last) == (draft(1000, most=1536),)
    texts = ("a", ".\n\n", "b", ".\n\n", "c", ".\n\n")
    assert play.watched(*texts) == 6
    play.drafts(*texts)
    assert play.ask.after == ((0, 2),)
    play.judges(logs(d8=0.9))
    assert play.ask.after == ((0, 4),)
    assert verdict_of(play.last.reading) == (8.0, 7.0, "accept")
    assert play.judges(logs(d6=0.9)) == (Take(index=0, num_tokens=2), takeover())
    assert play.writes("B", ".\n\n") == (Keep(num_tokens=2), draft(996, most=1536))


def test_a_draft_of_several_steps_that_all_stay_is_taken_whole() -> None:
    play = Play(RatedSpec(steps_per_review=2))
    play.drafts("a", ".\n\n", "b", ".\n\n")
    play.judges(SURE)
    assert play.judges(SURE) == (Take(index=0, num_tokens=4), draft(996, most=1024))


def test_newlines_that_lengthen_a_break_are_no_step() -> None:
    play = Play(RatedSpec(steps_per_review=2))
    assert play.watched("a", ".\n\n", "\n", "b", "\n", "\n") == 6
    play.drafts("a", ".\n\n", "\n", "b", "\n", "\n")
    play.judges(SURE)
    assert play.ask.after == ((0, 6),)


def test_a_draft_that_ends_the_text_is_judged_first() -> None:
    play = Play()
    play.drafts("a", finish=EOS)
    assert play.judges(SURE) == (Take(index=0, num_tokens=1), Finish(reason=FinishReason.EOS))
    play = Play()
    play.drafts("a", finish=EOS)
    play.judges(POOR)
    assert play.writes("A", ".\n\n") == (Keep(num_tokens=2), draft(998))


def test_a_draft_cut_by_the_context_ends_the_text_where_it_stays() -> None:
    play = Play()
    play.drafts("a", finish=LENGTH)
    assert play.judges(SURE)[-1] == Finish(reason=FinishReason.CONTEXT)
    play = Play()
    assert play.drafts(finish=LENGTH) == (Finish(reason=FinishReason.CONTEXT),)


def test_a_step_of_step_tokens_is_a_step() -> None:
    play = Play(RatedSpec(step_tokens=2))
    play.drafts("a", "b", finish=LENGTH)
    assert play.judges(SURE) == (Take(index=0, num_tokens=2), draft(998, most=2))


def test_where_small_drafts_nothing_large_writes_the_step() -> None:
    play = Play()
    assert play.drafts(finish=EOS) == (takeover(),)
    assert play.writes("A", ".\n\n")[-1] == draft(998)


def test_where_large_writes_nothing_smalls_next_step_stays_unjudged() -> None:
    play = Play(RatedSpec(steps_per_review=3))
    play.drafts("a", ".\n\n")
    play.judges(POOR)
    assert play.writes(finish=EOS) == (Keep(num_tokens=0), draft(1000, most=512))
    assert play.drafts("b", ".\n\n") == (Take(index=2, num_tokens=2), draft(998, most=1536))
    play.drafts("c", ".\n\n")
    assert play.ask.labels == DIGITS


def test_where_neither_writes_the_text_ends() -> None:
    play = Play()
    play.drafts(finish=EOS)
    play.writes(finish=EOS)
    assert play.drafts(finish=EOS) == (Finish(reason=FinishReason.EOS),)


@pytest.mark.parametrize("role", WRITING_ROLES)
def test_a_closing_tag_that_stays_ends_the_reviews(role: ModelRole) -> None:
    play = Play(RatedSpec(answer_role=role))
    assert play.watched("a", "\n", "</think>", "\n\n") == 3
    play.drafts("a", "\n", "</think>", "\n\n")
    assert play.ask.after == ((0, 2),), "judged is what was thought"
    trigger = "answer" if role is LARGE else "resume"
    answers = Generate(role=role, max_tokens=997, trigger=trigger)
    assert play.judges(SURE) == (Take(index=0, num_tokens=3), answers)
    assert play.policy.watcher(play.context, play.last.state) is None
    assert play.writes("8", finish=EOS) == (Keep(num_tokens=1), Finish(reason=FinishReason.EOS))


def test_a_tag_alone_is_judged_by_the_text_before_it() -> None:
    play = Play(DoubtedSpec())
    play.drafts("</think>")
    assert play.ask.after == ()
    assert play.judges(logs(Wait=0.6)) == (takeover(),)


def test_large_may_end_the_think_phase() -> None:
    play = Play()
    play.drafts("a", ".\n\n")
    play.judges(POOR)
    assert play.writes("A", "</think>") == (
        Keep(num_tokens=2),
        Generate(role=SMALL, max_tokens=998, trigger="resume"),
    )


@pytest.mark.parametrize(("doubt", "accepts"), [(0.30, False), (0.24, True), (0.25, False)])
def test_doubt_is_the_probability_of_all_its_words(doubt: float, accepts: bool) -> None:
    play = Play(DoubtedSpec())
    [asked] = play.drafts("a", ".\n\n")
    assert asked == Ask(
        role=LARGE, purpose="doubt", after=((0, 2),), labels=("Wait", "But", "Hmm", "Alternatively"), labels_begin=True
    )
    then = play.judges(logs(Wait=doubt, But=0.25))[-1]
    assert then == (draft(998) if accepts else takeover())
    assert verdict_of(play.last.reading) == (round(doubt + 0.25, 5), 0.5, "accept" if accepts else "reject")


def test_words_that_are_not_likely_are_no_doubt() -> None:
    play = Play(DoubtedSpec())
    play.drafts("a", ".\n\n")
    assert play.judges({"none": 0.0})[-1] == draft(998)
    assert verdict_of(play.last.reading) == (0.0, 0.5, "accept")


def test_what_small_is_sure_of_large_does_not_see() -> None:
    play = Play(RatedSpec(self_check=8, steps_per_review=3))
    play.drafts("a", ".\n\n", "b", ".\n\n", "c", ".\n\n")
    for place, labels in ((2, SURE), (4, logs(d7=0.9)), (6, SURE)):
        assert (play.ask.purpose, play.ask.after) == ("self_check", ((0, place),))
        play.judges(labels, SMALL)
    assert (play.ask.purpose, play.ask.after) == ("rate", ((0, 4),))
    assert verdict_of(play.last.reading) == (9.0, 8.0, "accept")
    assert play.judges(SURE) == (Take(index=0, num_tokens=6), draft(994, most=1536))
    play.drafts("a", ".\n\n")
    assert play.judges(SURE, SMALL)[-1] == draft(992, most=1536)


def test_large_may_write_the_first_steps() -> None:
    play = Play(RatedSpec(first_steps=2))
    assert decided(play.last) == (Generate(role=LARGE, max_tokens=512, trigger="opening"),)
    assert play.watched("a", ".\n\n") == 2
    assert play.writes("a", ".\n\n")[-1] == Generate(role=LARGE, max_tokens=512, trigger="opening")
    assert play.writes("b", ".\n\n")[-1] == draft(996)


def test_requests_are_clamped_and_the_budget_ends_the_text() -> None:
    play = Play(context=context_of(3))
    assert decided(play.last) == (draft(3),)
    play.drafts("a", "b", "c", finish=LENGTH)
    assert play.judges(SURE) == (Take(index=0, num_tokens=3), Finish(reason=FinishReason.LENGTH))
    play = Play(context=context_of(3))
    play.drafts("a", ".\n\n")
    assert play.judges(POOR) == (takeover(3),)
    assert play.writes("a", "b", "c", finish=LENGTH)[-1] == Finish(reason=FinishReason.LENGTH)


def test_an_answer_that_nobody_asked_for_is_refused() -> None:
    play = Play()
    piece = Piece(token_ids=(), texts=())
    with pytest.raises(ValueError, match="small model was to write an aside"):
        play.policy.advance(play.context, play.last.state, Written(role=SMALL, piece=piece, finish=EOS, start_token=0))


def test_presets_have_numbers_of_their_own() -> None:
    assert parse_policy("specreason") == RatedSpec()
    assert parse_policy("specreason:doubt", {"threshold": "0.8"}) == DoubtedSpec(threshold=0.8)
    with pytest.raises(ConfigurationError, match="words must be one word or more"):
        parse_policy("specreason:doubt", {"words": ["Wait", "Wait"]})
    for spec in (RatedSpec(self_check=8), DoubtedSpec()):
        purposes = [ask.purpose for ask in spec.build().asks]
        assert purposes == (["draft", "self_check", "rate"] if spec.self_check else ["draft", "doubt"])


# The published loop, with drafts of several steps.


@dataclass
class Loop(DraftingLoop[Spec]):
    """Small drafts, both may judge, large writes what does not stay."""

    def begin(self) -> None:
        for _ in range(self.spec.first_steps):
            if self.room < 1:
                self.story.reason = FinishReason.LENGTH
            if self.story.reason is not None or not self.is_thinking() or not self.write_step("opening"):
                return

    def review(self, texts: list[str], ends: list[int]) -> int | None:
        judged = [self.judged(texts[:end]) for end in ends]
        unsure = list(range(len(ends)))
        if self.spec.self_check is not None:
            limit = float(self.spec.self_check)
            unsure = [step for step in unsure if not self.judge(SMALL, "self_check", judged[step], limit)]
        name = self.spec.preset.replace("rating", "rate")
        return next((step for step in unsure if not self.judge(LARGE, name, judged[step], self.spec.threshold)), None)

    def judge(self, role: ModelRole, purpose: str, texts: list[str], limit: float) -> bool:
        spec, before = self.spec, [*self.story.texts, *texts]
        question, opening = (spec.question, spec.opening) if isinstance(spec, RatedSpec) else ("", "")
        asked = in_question(before, question, opening)
        fits = len(before) + (QUESTION_TOKENS if question else 0) < self.pair.limits[role]
        token = self.pair.next(role, asked) if fits else END
        labels = DIGITS if isinstance(spec, RatedSpec) else spec.words
        found = self.pair.labels(role, asked, labels) if fits else {}
        accepts, verdict = self.verdict(found, limit)
        self.story.asides.append(Aside(role, purpose, question, () if token == END else (token,), verdict))
        return accepts

    def verdict(self, found: dict[str, float | None], limit: float) -> tuple[bool, Verdict]:
        likely = {label: math.exp(value) for label, value in found.items() if value is not None}
        mass = round(sum(likely.values()), 5)
        if isinstance(self.spec, DoubtedSpec):
            if not found:
                return False, (0.0, limit, "no answer")
            return mass < limit, (mass, limit, "accept" if mass < limit else "reject")
        if mass < self.spec.min_mass or mass == 0:
            return False, (mass, self.spec.min_mass, "no answer")
        score = round(sum(int(digit) * value for digit, value in likely.items()) / sum(likely.values()), 5)
        if self.spec.score == "digit":
            score = float(max(likely, key=lambda digit: likely[digit]))
        return score >= limit, (score, limit, "accept" if score >= limit else "reject")


COMMON = {
    "steps_per_review": st.sampled_from([1, 1, 2, 4]),
    "step_tokens": st.sampled_from([1, 3, 8, 512]),
    "first_steps": st.sampled_from([0, 0, 1, 3]),
    "answer_role": st.sampled_from(WRITING_ROLES),
}
RATED_SPECS = st.builds(
    RatedSpec,
    threshold=st.sampled_from([0.0, 3.0, 5.0, 7.0, 9.0]),
    score=st.sampled_from(["expected", "digit"]),
    min_mass=st.sampled_from([0.0, 0.4, 0.5]),
    self_check=st.sampled_from([None, None, 4.0, 6.5]),
    **COMMON,
)
DOUBTED_SPECS = st.builds(
    DoubtedSpec,
    threshold=st.sampled_from([0.3, 0.5, 0.9, 1.0]),
    self_check=st.sampled_from([None, None, 0.4, 0.9]),
    **COMMON,
)
CASES: dict[str, Any] = {
    "spec": st.one_of(RATED_SPECS, DOUBTED_SPECS),
    "pair": pairs("Wait", limits=(10_000, 10_000, 10_000, 40, 12)),
    "max_tokens": st.sampled_from([1, 20, 90]),
    "think_end": st.sampled_from(["</think>", "</think>", "</think>", ""]),
    "overrun": st.integers(0, 2**16).map(random.Random),
}


@settings(max_examples=2500, derandomize=True, database=None, deadline=None)
@given(**CASES)
def test_specreason_does_as_the_published_loop(
    spec: Spec, pair: Pair, max_tokens: int, think_end: str, overrun: random.Random
) -> None:
    expected = Loop(spec, pair, max_tokens, think_end).run()
    played = Driver(spec.build(), pair, context_of(max_tokens, think_end=think_end), overrun).play()
    assert played == expected
