"""RSD and SpecSearch: vectors by hand, and the loops as one would write them with three engines that block."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError
from pipeline.policies import parse_policy
from pipeline.policies.requests import Ask, Finish, Generate, Layout, Take
from pipeline.policies.reward import FORMS, RsdSpec, SpecSearchSpec
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, SegmentFinish
from tests.asking_pair import (
    END,
    QUESTION_TOKENS,
    WORDS,
    Aside,
    Driver,
    Pair,
    Story,
    Verdict,
    in_question,
    pairs,
    verdict_of,
)
from tests.by_hand import ByHand, context_of
from tests.decisions import Decision, Keep, decided
from tests.drafting_loop import DraftingLoop

SMALL, LARGE, JUDGE = ModelRole.SMALL, ModelRole.LARGE, ModelRole.JUDGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
Spec = RsdSpec | SpecSearchSpec


@dataclass(frozen=True)
class Trio(Pair):
    """Three models: the judge finds a step good, bad or anything between, or says nothing of it."""

    def labels(self, role: ModelRole, before: Sequence[str], labels: Sequence[str]) -> dict[str, float | None]:
        mass = (1.0, 0.9, 0.9, 0.5, 0.3, 0.0)[self._drawn("mass", role.value, tuple(before)) % 6]
        good = self._drawn("good", role.value, tuple(before)) % 11 / 10
        return {
            label: round(math.log(mass * share), 5) if mass * share else None
            for label, share in zip(labels, (good, 1 - good), strict=False)  # a draft has no labels
        }


class Play(ByHand):
    """One sample whose steps have a reward."""

    def __init__(self, spec: Spec | None = None) -> None:
        super().__init__((spec or RsdSpec()).build(), context_of(1000))

    def drafts(self, *texts: str, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        assert (self.ask.role, self.ask.purpose, self.ask.greedy) == (SMALL, "draft", False)
        return self.has_answered(texts, finish)

    def rewards(self, good: float, bad: float, *, of: str = "reward") -> tuple[Decision, ...]:
        """The judge's probabilities of its two answers; both 0: its context has no room."""
        assert (self.ask.role, self.ask.purpose, self.ask.max_tokens, self.ask.greedy) == (JUDGE, of, 1, True)
        assert self.policy.watcher(self.context, self.last.state) is None
        if not good + bad:
            return self.has_answered([], LENGTH)
        read = dict(zip(self.ask.labels, (math.log(value) if value else None for value in (good, bad)), strict=True))
        return self.has_answered(["x"], LENGTH, labels=read)

    def writes(self, *texts: str, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.has_written(texts, finish)

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.last.reading)


def draft(room: int, *, most: int = 512) -> Ask:
    return Ask(role=SMALL, purpose="draft", max_tokens=min(room, most), greedy=False)


def takeover(max_tokens: int = 512) -> Generate:
    return Generate(role=LARGE, max_tokens=max_tokens, trigger="rejected", takes_over=True)


def opening(max_tokens: int = 512) -> Generate:
    return Generate(role=LARGE, max_tokens=max_tokens, trigger="opening")


def test_the_judge_is_asked_of_each_step_that_small_drafts() -> None:
    play = Play()
    assert decided(play.last) == (draft(1000),)
    [asked] = play.drafts("a", ".\n\n", "late")
    assert isinstance(asked, Ask)
    assert (asked.role, asked.after, asked.labels, asked.turn) == (JUDGE, ((0, 2),), ("Yes", "No"), False)
    assert asked.frame == FORMS["chat"].frame
    assert play.rewards(0.9, 0.1) == (Take(index=0, num_tokens=2), draft(998))
    assert play.verdict == (0.9, 0.7, "accept")


@pytest.mark.parametrize(("good", "accepts"), [(0.70, True), (0.6999, False)])
def test_the_threshold_itself_is_enough(good: float, accepts: bool) -> None:
    play = Play()
    play.drafts("a", ".\n\n")
    assert play.rewards(good, 1 - good)[-1] == (draft(998) if accepts else takeover())
    assert play.verdict == (good, 0.7, "accept" if accepts else "reject")


def test_the_reward_is_the_share_of_the_good_answer() -> None:
    play = Play(RsdSpec(min_mass=0.25))
    play.drafts("a", ".\n\n")
    play.rewards(0.3, 0.1)
    assert play.verdict == (0.75, 0.7, "accept")
    play = Play()
    play.drafts("a", ".\n\n")
    assert play.rewards(0.3, 0.1) == (takeover(),)
    assert play.verdict == (0.4, 0.5, "no answer")


def test_without_room_for_the_judge_the_step_does_not_stay() -> None:
    play = Play()
    play.drafts("a", ".\n\n")
    assert play.rewards(0, 0) == (takeover(),)
    assert play.verdict == (0.0, 0.5, "no answer")


def test_large_writes_the_first_step_that_does_not_stay_and_what_follows_it_is_thrown_away() -> None:
    play = Play(RsdSpec(steps_per_review=3))
    play.drafts("a", ".\n\n", "b", ".\n\n", "c", ".\n\n")
    play.rewards(0.8, 0.2)
    assert play.ask.after == ((0, 4),)
    assert play.rewards(0.6, 0.4) == (Take(index=0, num_tokens=2), takeover())
    assert play.writes("B", ".\n\n") == (Keep(num_tokens=2), draft(996, most=1536))


def test_a_step_that_nobody_could_read_is_not_judged() -> None:
    play = Play()
    assert play.drafts("</think>") == (
        Take(index=0, num_tokens=1), Generate(role=SMALL, max_tokens=999, trigger="resume"),
    )  # fmt: skip
    play = Play()
    assert play.drafts("\n\n") == (Take(index=0, num_tokens=1), draft(999))


def test_a_closing_tag_that_stays_ends_the_reviews() -> None:
    play = Play(RsdSpec(answer_role=LARGE))
    play.drafts("a", "</think>")
    assert play.ask.after == ((0, 1),)
    assert play.rewards(1, 0)[-1] == Generate(role=LARGE, max_tokens=998, trigger="answer")


def test_a_draft_that_ends_the_text_is_judged_first() -> None:
    play = Play()
    play.drafts("a", finish=EOS)
    assert play.rewards(1, 0) == (Take(index=0, num_tokens=1), Finish(reason=FinishReason.EOS))


def test_the_mean_reward_of_larges_first_steps_is_the_first_threshold() -> None:
    play = Play(SpecSearchSpec(first_steps=2))
    assert decided(play.last) == (opening(),)
    [_, asked] = play.writes("A", ".\n\n")
    assert isinstance(asked, Ask)
    assert (asked.role, asked.purpose, asked.after) == (JUDGE, "reward_of_large", ())
    assert play.rewards(0.9, 0.1, of="reward_of_large") == (opening(),)
    assert play.verdict == (0.9, 0.9, "threshold")
    play.writes("B", ".\n\n")
    assert play.rewards(0.7, 0.3, of="reward_of_large") == (draft(996),)
    assert play.verdict == (0.7, 0.8, "threshold")
    play.drafts("c", ".\n\n")
    assert play.rewards(0.8, 0.2)[-1] == draft(994)
    play.drafts("d", ".\n\n")
    assert play.rewards(0.79, 0.21) == (takeover(),)
    play.writes("D", ".\n\n")
    play.rewards(0.6, 0.4, of="reward_of_large")
    assert play.verdict == (0.6, 0.78, "threshold")
    play.drafts("e", ".\n\n")
    play.rewards(0.78, 0.22)
    assert play.verdict == (0.78, 0.78, "accept")


def test_a_step_of_larges_without_a_reward_moves_nothing() -> None:
    play = Play(SpecSearchSpec(first_steps=1))
    play.writes("A", ".\n\n")
    assert play.rewards(0.1, 0.1, of="reward_of_large") == (opening(),)
    assert play.verdict == (0.2, 0.5, "no answer")
    play.writes("B", ".\n\n")
    assert play.rewards(0.5, 0.5, of="reward_of_large") == (draft(996),)
    play.drafts("c", ".\n\n")
    play.rewards(0.4, 0.6)
    play.writes("C", ".\n\n")
    assert play.rewards(0, 0, of="reward_of_large") == (draft(994),)
    play.drafts("d", ".\n\n")
    play.rewards(0.5, 0.5)
    assert play.verdict == (0.5, 0.5, "accept")


def test_without_a_threshold_no_step_of_smalls_is_judged() -> None:
    play = Play(SpecSearchSpec())
    assert play.writes(finish=EOS) == (Keep(num_tokens=0), draft(1000))
    assert play.drafts("a", ".\n\n") == (takeover(),)
    assert isinstance(play.writes("A", ".\n\n")[-1], Ask)
    assert play.rewards(0.9, 0.1, of="reward_of_large") == (opening(),)


def test_only_writers_write_and_only_judges_have_frames() -> None:
    for spec in (RsdSpec(), SpecSearchSpec(), RsdSpec(frame="math-shepherd", question="ignored", opening="ignored")):
        policy = spec.build()
        assert policy.roles == {SMALL, LARGE, JUDGE}
        assert [ask.role for ask in policy.asks][:2] == [SMALL, JUDGE]
        assert [ask.frame is not None for ask in policy.asks] == [ask.role is JUDGE for ask in policy.asks]
    plain = RsdSpec(frame="math-shepherd", question="ignored", opening="ignored").ask("reward")
    assert plain.frame is not None
    assert (plain.frame.layout, plain.question, plain.opening, plain.labels) == (Layout.TEXT, "", "", ("+", "-"))
    with pytest.raises(ValueError, match="which only answers an Ask"):
        Generate(role=JUDGE, max_tokens=1, trigger="start")
    with pytest.raises(ValueError, match="must have a frame exactly for a judge"):
        Ask(role=JUDGE, purpose="reward")
    with pytest.raises(ValueError, match="must have a frame exactly for a judge"):
        Ask(role=LARGE, purpose="reward", frame=FORMS["chat"].frame)


def test_values_can_be_set_from_text() -> None:
    assert parse_policy("rsd", {"threshold": "0.8", "frame": "turns"}) == RsdSpec(threshold=0.8, frame="turns")
    assert parse_policy("specsearch", {"decay": "0.8"}) == SpecSearchSpec(decay=0.8)
    rule = parse_policy("rsd").threshold_rule
    assert rule is not None
    assert (rule.statistic, rule.side) == ("aside:reward", "below")
    assert parse_policy("specsearch").threshold_rule is None


@pytest.mark.parametrize("values", [{"bad": "Yes"}, {"good": "-", "frame": "turns"}, {"good": "1", "bad": "1"}])
def test_a_good_and_a_bad_answer_differ(values: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="good and bad must be two answers"):
        parse_policy("rsd", values)


# The loops, one step after the other, with three models that are asked one token at a time.


@dataclass
class Loop(DraftingLoop[Spec]):
    """Small drafts, the judge rewards, large writes what does not stay."""

    threshold: float | None = None
    first_rewards: list[float] = field(default_factory=list)

    def begin(self) -> None:
        if isinstance(self.spec, RsdSpec):
            self.threshold = self.spec.threshold
            for _ in range(self.spec.first_steps):
                if self.story.reason is None and self.is_thinking() and not self.write_step("opening"):
                    break
        else:
            self.find_threshold()

    def find_threshold(self) -> None:
        """Large writes until enough of its steps have a reward, or it has nothing to write."""
        while self.threshold is None and self.story.reason is None and self.is_thinking():
            if not self.write_step("opening"):
                return

    def large_has_written(self, texts: list[str], trigger: str) -> None:
        if isinstance(self.spec, SpecSearchSpec) and "".join(texts).strip():
            self.move_threshold()

    def move_threshold(self) -> None:
        assert isinstance(self.spec, SpecSearchSpec)
        aside, reward = self.asked("reward_of_large", [])
        if reward is None:
            return
        if self.threshold is None:
            self.first_rewards.append(reward)
            moved = round(sum(self.first_rewards) / len(self.first_rewards), 5)
            self.threshold = moved if len(self.first_rewards) == self.spec.first_steps else None
        else:
            self.threshold = moved = round(self.spec.decay * self.threshold + (1 - self.spec.decay) * reward, 5)
        aside.verdict = (reward, moved, "threshold")

    def let_large_write(self) -> None:
        super().let_large_write()
        if not self.is_closed:
            self.find_threshold()

    def review(self, texts: list[str], ends: list[int]) -> int | None:
        if self.threshold is None:
            return 0
        for step, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            judged = self.judged(texts[:end])
            if "".join(judged[begin:]).strip() and not self.accepts(judged, self.threshold):
                return step
        return None

    def accepts(self, texts: list[str], threshold: float) -> bool:
        aside, reward = self.asked("reward", texts)
        if reward is None:
            return False
        aside.verdict = (reward, threshold, "accept" if reward >= threshold else "reject")
        return reward >= threshold

    def asked(self, purpose: str, texts: list[str]) -> tuple[Aside, float | None]:
        """What the judge says of the last step; without an answer its aside says so."""
        question = self.spec.question if self.spec.frame == "chat" else ""
        good, bad = ("Yes", "No") if self.spec.frame == "chat" else ("+", "-")
        before = [*self.story.texts, *texts]
        asked = in_question(before, question, "")
        fits = len(before) + (QUESTION_TOKENS if question else 0) < self.pair.limits[JUDGE]
        token = self.pair.next(JUDGE, asked) if fits else END
        found = self.pair.labels(JUDGE, asked, [good, bad]) if fits else {}
        likely = {label: math.exp(value) for label, value in found.items() if value is not None}
        mass = round(sum(likely.values()), 5)
        aside = Aside(JUDGE, purpose, question, () if token == END else (token,))
        self.story.asides.append(aside)
        if mass < self.spec.min_mass or mass == 0:
            aside.verdict = (mass, self.spec.min_mass, "no answer")
            return aside, None
        return aside, round(likely.get(good, 0.0) / sum(likely.values()), 5)


COMMON: dict[str, Any] = {
    "steps_per_review": st.sampled_from([1, 1, 2, 4]),
    "step_tokens": st.sampled_from([1, 3, 8, 512]),
    "answer_role": st.sampled_from(WRITING_ROLES),
    "frame": st.sampled_from(["chat", "turns", "math-shepherd"]),
    "min_mass": st.sampled_from([0.0, 0.4, 0.5]),
}
RSD = st.builds(
    RsdSpec,
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    first_steps=st.sampled_from([0, 0, 1, 3]),
    **COMMON,
)
SPECSEARCH = st.builds(
    SpecSearchSpec,
    first_steps=st.sampled_from([1, 2, 3]),
    decay=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    **COMMON,
)
TRIOS = st.builds(
    lambda pair, limit: Trio(pair.seed, {**pair.words, JUDGE: WORDS}, {**pair.limits, JUDGE: limit}),
    pairs(limits=(10_000, 10_000, 10_000, 40, 12)),
    st.sampled_from([10_000, 10_000, 10_000, 30]),
)
ROOM = {
    "max_tokens": st.sampled_from([1, 20, 90]),
    "think_end": st.sampled_from(["</think>", "</think>", "</think>", ""]),
    "overrun": st.integers(0, 2**16).map(random.Random),
}
RSD_CASES: dict[str, Any] = {"spec": RSD, "pair": TRIOS, **ROOM}
SPECSEARCH_CASES: dict[str, Any] = {"spec": SPECSEARCH, "pair": TRIOS, **ROOM}


def both(spec: Spec, pair: Pair, max_tokens: int, think_end: str, overrun: random.Random) -> tuple[Story, Story]:
    """What the policy comes to, and what the loop does."""
    played = Driver(spec.build(), pair, context_of(max_tokens, think_end=think_end), overrun).play()
    return played, Loop(spec, pair, max_tokens, think_end).run()


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(**RSD_CASES)
def test_rsd_does_as_the_published_loop(
    spec: RsdSpec, pair: Pair, max_tokens: int, think_end: str, overrun: random.Random
) -> None:
    played, expected = both(spec, pair, max_tokens, think_end, overrun)
    assert played == expected


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(**SPECSEARCH_CASES)
def test_specsearch_does_as_a_loop_with_a_moving_threshold(
    spec: SpecSearchSpec, pair: Pair, max_tokens: int, think_end: str, overrun: random.Random
) -> None:
    played, expected = both(spec, pair, max_tokens, think_end, overrun)
    assert played == expected
