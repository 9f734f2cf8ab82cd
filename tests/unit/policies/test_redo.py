"""Redo and its preset trig: vectors by hand, and the rule as one would write it with two engines that block."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.policies import parse_policy
from pipeline.policies.protocol import Reading
from pipeline.policies.redo import RedoSpec, TrigSpec
from pipeline.policies.requests import Finish, Generate
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Signal
from tests.by_hand import ByHand, Token, context_of
from tests.decisions import Decision, Keep, decided
from tests.scripted_pair import Model, StepsLoop, drive, lengthens_break, models

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
LOGPROB = frozenset({Signal.LOGPROB})


class Play(ByHand):
    """One sample whose tokens all have a log-probability."""

    signal, usual = Signal.LOGPROB, -0.01

    def __init__(self, spec: RedoSpec | None = None, *, max_tokens: int = 1000) -> None:
        super().__init__((spec or RedoSpec()).build(), context_of(max_tokens))

    def watched(self, *tokens: Token) -> int | None:
        return self.stops_after(tokens)

    def write(self, *tokens: Token, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.has_written(tokens, finish)


def by_large(trigger: str = "redo", max_tokens: int = 512, cue: str = "") -> Generate:
    return Generate(role=LARGE, max_tokens=max_tokens, takes_over=True, trigger=trigger, cue=cue)


def resumes(play: Play, *, is_thinking: bool = True) -> Generate:
    signals = LOGPROB if is_thinking else frozenset()
    return Generate(role=SMALL, max_tokens=play.context.max_tokens - play.num_tokens, trigger="resume", signals=signals)


def step(*logprobs: float) -> list[Token]:
    """A step whose tokens have these log-probabilities; the last one is the break."""
    return [*((" w", logprob) for logprob in logprobs[:-1]), (".\n\n", logprobs[-1])]


FINE = step(*[-0.01] * 6)
BAD = step(-0.01, -0.01, -1.36, -0.01, -0.01)
TRIG = TrigSpec(first_steps=0)


# Judging.


def test_small_begins_and_all_of_its_tokens_are_read() -> None:
    play = Play()
    assert play.policy.roles == {SMALL, LARGE}
    assert decided(play.last) == (Generate(role=SMALL, max_tokens=1000, trigger="start", signals=LOGPROB),)


def test_a_step_with_an_unlikely_token_is_thrown_away_and_large_writes_it() -> None:
    play = Play()
    assert play.watched(*FINE, *BAD, *FINE) == 11
    assert play.write(*FINE, *BAD, " late") == (Keep(num_tokens=6), by_large())
    assert play.last.reading == Reading(value=-1.36, threshold=-1.35, outcome="redo")


@pytest.mark.parametrize(("least", "fires"), [(-1.36, True), (-1.35, False), (-1.34, False)])
def test_the_threshold_itself_calls_nobody(least: float, fires: bool) -> None:
    assert (Play().watched(*step(-0.01, least, -0.01, -0.01, -0.01)) == 5) is fires


@pytest.mark.parametrize(
    ("logprobs", "share"),
    [([-0.01] * 9 + [-0.5], 0.9), ([-0.01] * 8 + [-0.5] * 2, 0.8), ([-0.01] * 17 + [-1] * 3, 0.85)],
)
def test_overconfidence_is_a_share_above_the_threshold(logprobs: list[float], share: float) -> None:
    assert TRIG.of_step(logprobs) == share
    play = Play(TRIG)
    fires = share > 0.85
    assert (play.watched(*step(*logprobs)) == len(logprobs)) is fires
    if fires:
        assert play.write(*step(*logprobs)) == (Keep(num_tokens=0), by_large("offload"))
        assert play.last.reading == Reading(value=0.9, threshold=0.85, outcome="offload")


@pytest.mark.parametrize(("logprob", "is_confident"), [(-0.04879, True), (-0.0488, False)])
def test_a_token_is_confident_below_a_perplexity_of_1_05(logprob: float, is_confident: bool) -> None:
    assert TRIG.of_step([logprob]) == float(is_confident)


def test_statistics_are_rounded_as_readings_are() -> None:
    assert RedoSpec(statistic="mean_logprob").of_step([-0.1, -0.2, -0.2]) == -0.16667
    assert RedoSpec(statistic="min_logprob").of_step([-0.1, -2.5, -0.2]) == -2.5
    assert TRIG.of_step([-0.01, -0.01, -0.5]) == 0.66667


def test_a_mean_may_decide_on_either_side() -> None:
    below = RedoSpec(statistic="mean_logprob", threshold=-0.3)
    assert Play(below).watched(*step(*[-0.31] * 5)) == 5
    assert Play(below).watched(*step(*[-0.3] * 5)) is None
    above = RedoSpec(statistic="mean_logprob", side="above", threshold=-0.3)
    assert Play(above).watched(*step(*[-0.29] * 5)) == 5
    assert Play(above).watched(*step(*[-0.3] * 5)) is None


def test_a_short_step_is_not_judged() -> None:
    assert Play().watched(*step(-9, -9, -9)) is None
    assert Play().watched(*step(-9, -9, -9, -9)) is None
    assert Play().watched(*step(-9, -9, -9, -9, -9)) == 5
    assert Play(RedoSpec(min_step_tokens=3)).watched(*step(-9, -9, -9)) == 3


def test_a_step_without_a_break_is_not_judged() -> None:
    play = Play()
    assert play.watched(*[(" w", -9.0)] * 9) is None
    assert play.write(*[(" w", -9.0)] * 9, finish=EOS) == (Keep(num_tokens=9), Finish(reason=FinishReason.EOS))
    assert Play().watched(*[(" w", -9.0)] * 9, "</think>", "\n\n", *BAD) is None


def test_newlines_that_lengthen_a_break_are_of_no_step() -> None:
    play = Play()
    tokens = [*FINE, ("\n", -9.0), *FINE, ("\n", -9.0), *BAD]
    assert play.watched(*tokens) == 19
    assert play.write(*tokens)[0] == Keep(num_tokens=14)
    assert Play().watched(" a", " b", " c", "\n\n", ("\n", -9.0), ("\n", -9.0), " d") is None


def test_the_break_is_a_token_of_its_step() -> None:
    assert Play().watched(*step(-0.01, -0.01, -0.01, -0.01, -1.5)) == 5


# Turns.


def test_large_hands_back_at_its_break_and_the_next_step_is_judged() -> None:
    play = Play()
    play.write(*BAD)
    assert play.watched(" Let", " me", ".\n\n", " So") == 3
    assert play.write(" Let", " me", ".\n\n", " So") == (Keep(num_tokens=3), resumes(play))
    assert play.watched(*BAD) == 5
    assert play.write(*BAD) == (Keep(num_tokens=0), by_large())


def test_where_large_has_nothing_to_say_the_step_is_written_again_and_stays() -> None:
    play = Play()
    play.write(*FINE, *BAD)
    assert play.write(finish=EOS) == (Keep(num_tokens=0), resumes(play))
    assert play.watched(*BAD, *FINE) is None
    assert play.watched(*BAD, *BAD) == 10


def test_the_rest_of_a_step_that_large_began_is_not_judged() -> None:
    play = Play(RedoSpec(step_tokens=2))
    assert play.write(*BAD)[1] == by_large(max_tokens=2)
    assert play.write(" a", " b") == (Keep(num_tokens=2), resumes(play))
    assert play.watched(*BAD, *BAD) == 10


def test_a_step_that_was_cut_is_not_judged_and_its_streak_goes_on() -> None:
    play = Play(RedoSpec(streak=2))
    play.write("Wait", " so", ".\n\n", " a", (" b", -9.0))
    assert isinstance(play.last.then, Generate)
    assert (play.last.then.role, play.last.then.signals) == (SMALL, LOGPROB)
    assert play.watched(*BAD, "Hmm", " a", ".\n\n") == 8


def test_nothing_is_judged_in_the_answer() -> None:
    play = Play()
    assert play.write("a", "</think>", *BAD) == (
        Keep(num_tokens=7),
        Generate(role=SMALL, max_tokens=993, trigger="start"),
    )
    assert play.policy.watcher(play.context, play.last.state) is None
    play = Play(RedoSpec(answer_role=LARGE))
    assert play.watched("a", "</think>", "\n\n") == 2
    answer = Generate(role=LARGE, max_tokens=998, trigger="answer")
    assert play.write("a", "</think>", "\n\n") == (Keep(num_tokens=2), answer)


def test_the_discarded_step_is_room_for_large() -> None:
    play = Play(max_tokens=11)
    assert play.write(*FINE, *BAD, finish=LENGTH) == (Keep(num_tokens=6), by_large(max_tokens=5))


# Hesitation.


def hesitating(word: str) -> list[Token]:
    return [word, " so", ".\n\n"]


def test_words_of_hesitation_in_steps_in_a_row_let_large_write_the_next() -> None:
    play = Play(RedoSpec(streak=3))
    words = ["Wait", "Hmm,", "Thus", "wait", "Alternatively", "(hmm)"]
    tokens = [token for word in words for token in hesitating(word)]
    assert play.watched(*tokens) == 18
    assert play.write(*tokens, " late") == (Keep(num_tokens=18), by_large("hesitation", cue="hmm"))
    assert play.last.reading == Reading(value=3, threshold=3, outcome="hesitation")


def test_words_of_hesitation_are_whole_words_anywhere_in_the_step() -> None:
    play = Play(RedoSpec(streak=1))
    assert play.watched("Waiting", " for", ".\n\n", " a", " b", " wa", "it", "\n\n") == 8
    assert play.watched(" a", " wait", "ed", ".\n\n") is None


def test_large_writes_as_many_steps_as_it_is_asked_to_and_the_count_begins_anew() -> None:
    play = Play(RedoSpec(streak=2, rescue_steps=2, step_tokens=10))
    assert play.write(*hesitating("Wait"), *hesitating("Hmm"))[1] == by_large("hesitation", max_tokens=20, cue="hmm")
    assert play.watched("a", ".\n\n", "b", ".\n\n", "c") == 4
    play.write("a", ".\n\n", "b", ".\n\n")
    assert play.watched(*hesitating("Wait"), *hesitating("Hmm")) == 6


def test_a_step_that_is_written_again_ends_the_streak() -> None:
    play = Play(RedoSpec(streak=2))
    assert play.write(*hesitating("Wait"), *BAD)[1] == by_large()
    play.write("a", ".\n\n")
    assert play.watched(*hesitating("Wait"), " a", ".\n\n") is None


def test_a_takeover_ends_the_streak_of_earlier_pieces_too() -> None:
    play = Play(RedoSpec(streak=2))
    play.write(*hesitating("Wait"))
    assert play.last.state["streak"] == 1
    assert play.write(*BAD)[1] == by_large()
    play.write("a", ".\n\n")
    assert play.watched(*hesitating("Wait"), " a", ".\n\n") is None


def test_without_a_streak_words_mean_nothing() -> None:
    assert Play().watched(*hesitating("Wait") * 9) is None


# The presets.


def test_trig_is_the_papers() -> None:
    play = Play(TrigSpec())
    assert decided(play.last) == (Generate(role=LARGE, max_tokens=1000, trigger="opening"),)
    steps = ["a", ".\n\n"] * 21
    assert play.watched(*steps) == 40
    assert play.write(*steps) == (Keep(num_tokens=40), resumes(play))
    assert play.watched(*step(*[-0.01] * 9, -0.5)) == 10
    assert parse_policy("redo:trig") == TrigSpec()
    assert parse_policy("redo") == RedoSpec()


@pytest.mark.parametrize(
    "values",
    [{"statistic": "max_logprob"}, {"side": "at"}, {"threshold": math.nan}, {"hesitation": ["wait", "Wait"]},
     {"streak": -1}, {"confident_below_perplexity": 1.0}, {"min_step_tokens": 0}, {"hesitation": [" "]}],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RedoSpec.model_validate(values)


# The rule as a plain loop.

WORDS = [
    " a", " b", ",", ".\n\n", ".\n\n", "\n", "\n\n", " So", "x\n", " ", "</think>", "END", "é", "", "\ufffd", "Hmm",
    "Wa", "it", " alternatively", "s", *[" a", " b", " c", " d"] * 3, *[".\n\n"] * 3, *[" wait"] * 6,
]  # fmt: skip


class RedoLoop(StepsLoop):
    """Look at each step of small's once it is there."""

    def __init__(self, spec: RedoSpec, model: Model, *, max_tokens: int) -> None:
        super().__init__(spec, model, max_tokens=max_tokens)
        self.spec = spec
        self.streak = 0

    def write(self) -> None:
        is_judged = self.open()
        while (step := self.step_of_small()) is not None:
            begin, logprobs, is_whole = step
            is_judged = self.judge(begin, logprobs) if is_judged and is_whole else True
        self.answer(self.spec.answer_role, after=SMALL)

    def step_of_small(self) -> tuple[int, list[float], bool] | None:
        """Where the step begins, how likely its tokens were, and whether nothing cut it; None at the phase's end."""
        begin, logprobs = len(self.text), []
        while self.text.is_thinking:
            before, so_far = list(self.text.tokens), str(self.text)
            token = self.token(SMALL)
            if lengthens_break(before, token):
                begin = len(self.text)
                continue
            logprobs.append(self.model.logprob(so_far, token))
            if self.text.at_break:
                inside = range(begin + 1, len(self.text))
                return begin, logprobs, not any(self.model.is_cut(SMALL, place) for place in inside)
        return None

    def judge(self, begin: int, logprobs: list[float]) -> bool:
        """Whether the next step is judged, too."""
        spec = self.spec
        value = self.statistic(logprobs)
        beyond = value > spec.threshold if spec.side == "above" else value < spec.threshold
        if len(logprobs) >= spec.min_step_tokens and beyond:
            self.streak = 0
            name = "offload" if spec.side == "above" else "redo"
            return self.take_over(begin, (name, value, spec.threshold, name))
        words = [word for word in spec.hesitation if re.search(rf"(?<!\w){word}(?!\w)", self.step_text(begin))]
        self.streak = self.streak + 1 if words else 0
        if not spec.streak or self.streak < spec.streak:
            return True
        cue = min(words, key=lambda word: re.search(rf"(?<!\w){word}(?!\w)", self.step_text(begin)).end())  # type: ignore[union-attr]
        decided = ("hesitation", float(self.streak), float(spec.streak), "hesitation")
        self.streak = 0
        return self.take_over(len(self.text), decided, cue=cue, num_steps=spec.rescue_steps)

    def step_text(self, begin: int) -> str:
        return "".join(self.text.tokens[begin:]).lower()

    def statistic(self, logprobs: list[float]) -> float:
        if self.spec.statistic == "min_logprob":
            return sorted(logprobs)[0]
        if self.spec.statistic == "mean_logprob":
            return round(math.fsum(logprobs) / len(logprobs), 5)
        confident = [logprob for logprob in logprobs if math.exp(-logprob) < self.spec.confident_below_perplexity]
        return round(len(confident) / len(logprobs), 5)


TRIG_SPECS = st.builds(TrigSpec, first_steps=st.sampled_from([0, 2, 20]))
SPECS = st.one_of(
    st.builds(
        lambda rule, side, more: RedoSpec(statistic=rule[0], side=side, threshold=rule[1], **more),
        st.sampled_from([("min_logprob", -1.35), ("min_logprob", -0.05), ("min_logprob", -2.9), ("mean_logprob", -0.5),
                         ("confident_share", 0.85), ("confident_share", 0.5), ("confident_share", 0.2),
                         ("confident_share", 1.0)]),
        st.sampled_from(["above", "below"]),
        st.fixed_dictionaries({
            "first_steps": st.sampled_from([0, 0, 0, 2]), "step_tokens": st.sampled_from([1, 3, 512]),
            "answer_role": st.sampled_from(WRITING_ROLES), "min_step_tokens": st.sampled_from([1, 3, 5]),
            "streak": st.sampled_from([0, 1, 2, 2, 3]), "rescue_steps": st.sampled_from([1, 2]),
            "confident_below_perplexity": st.sampled_from([1.05, 1.02, 1.5]),
        }),
    ),
    TRIG_SPECS,
)  # fmt: skip


CASES: dict[str, Any] = {
    "spec": SPECS,
    "model": models(WORDS, cut=SMALL),
    "max_tokens": st.sampled_from([1, 20, 80, 80, 80]),
    "overrun": st.integers(0, 2**16).map(random.Random),
}


@settings(max_examples=2500, derandomize=True, database=None, deadline=None)
@given(**CASES)
def test_redo_does_as_the_plain_loop(spec: RedoSpec, model: Model, max_tokens: int, overrun: random.Random) -> None:
    expected = RedoLoop(spec, model, max_tokens=max_tokens).run()
    assert drive(spec.build(), model, max_tokens=max_tokens, overrun=overrun) == expected
