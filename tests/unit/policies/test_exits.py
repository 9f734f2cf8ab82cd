"""Exits: the vectors of their rules, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from pipeline.policies import parse_policy
from pipeline.policies.composition import compose
from pipeline.policies.exits import (
    AgreementExit,
    DeerExit,
    ExitSpec,
    LargeExtractExit,
    RandomExit,
    ThinkBrakeExit,
    exit_names,
    exit_type,
)
from pipeline.policies.exits.trials import INDUCER, TrialExit, confidence, read_answer
from pipeline.policies.protocol import Reading, SampleContext
from pipeline.policies.requests import Ask, Finish, Generate, Insert, Written
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Signal
from tests.by_hand import ByHand, Token, context_of
from tests.decisions import Decision, Keep, decided
from tests.exit_loop import piece

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
CLOSING = Insert(text="\n</think>\n\n", trigger="exit")
SURE = (-0.7, -0.01, -0.02, -0.03)
UNSURE = (-0.7, -0.01, -0.20, -0.03)


class Play(ByHand):
    """One sample of a policy with an exit; the first tokens of steps may have a margin."""

    signal = Signal.FIRST_MARGIN

    def __init__(
        self, exit: TrialExit | ThinkBrakeExit | RandomExit, policy: str = "small-only", **values: object
    ) -> None:
        super().__init__(compose(parse_policy(policy, values).build(), exit=exit), context_of(1000))

    def watched(self, *texts: str, margins: Sequence[float | None] = ()) -> int | None:
        return self.stops_after(_with_margins(texts, margins))

    def write(self, *texts: str, margins: Sequence[float | None] = ()) -> tuple[Decision, ...]:
        return self.has_written(_with_margins(texts, margins), SegmentFinish.WATCH)

    def answer(self, *texts: str, logprobs: Sequence[float] | None = None) -> tuple[Decision, ...]:
        read = tuple(logprobs) if logprobs is not None else (-0.01,) * len(texts)
        return self.has_answered(texts, SegmentFinish.WATCH, signals={Signal.LOGPROB: read})


def _with_margins(texts: Sequence[str], margins: Sequence[float | None]) -> list[Token]:
    return list(zip(texts, [*margins, *[None] * len(texts)], strict=False))


def trial(role: ModelRole = SMALL) -> Ask:
    signals = frozenset({Signal.LOGPROB})
    return Ask(role=role, purpose="trial", question=INDUCER, max_tokens=20, signals=signals)


def each_step(**values: object) -> DeerExit:
    return DeerExit.model_validate({"at": "step", "every_steps": 1} | values)


STEP = (" a", ".\n\n")


def test_a_sure_trial_ends_the_think_phase() -> None:
    play = Play(each_step())
    assert play.watched(*STEP, " b") == 2
    assert play.write(*STEP, " b") == (Keep(num_tokens=2), trial())
    assert play.watched("{", "12", " ", "}", " so") == 4
    found = play.answer("{", "12", " ", "}", logprobs=SURE)
    assert found == (CLOSING, Generate(role=SMALL, max_tokens=1000 - 2 - 12, trigger="answer"))
    assert play.last.reading == Reading(value=0.98023, threshold=0.95, outcome="exit")


def test_an_unsure_trial_lets_small_go_on() -> None:
    play = Play(each_step())
    play.write(*STEP)
    found = play.answer("{", "12", " ", "}", logprobs=UNSURE)
    assert found == (Generate(role=SMALL, max_tokens=998, trigger="start"),)
    assert play.last.reading == Reading(value=0.92641, threshold=0.95, outcome="go_on")


def test_means() -> None:
    assert confidence(SURE, "arithmetic") == 0.98023
    assert confidence(UNSURE, "arithmetic") == 0.92641
    assert confidence(UNSURE, "geometric") == 0.92312
    assert confidence((-0.7,), "arithmetic") is None
    assert confidence((), "arithmetic") is None
    assert confidence((-0.7, -0.1, None), "arithmetic") is None


def test_the_threshold_itself_is_not_sure() -> None:
    play = Play(each_step(confidence=0.98023))
    play.write(*STEP)
    assert play.answer("{", "12", " ", "}", logprobs=SURE)[0] != CLOSING


@pytest.mark.parametrize("texts", [("{12}",), (), ("{", "12", " and"), ("12", "}")])
def test_a_trial_that_is_no_answer_ends_nothing(texts: tuple[str, ...]) -> None:
    play = Play(each_step())
    play.write(*STEP)
    assert play.answer(*texts)[0] != CLOSING


def test_what_comes_after_the_answer_does_not_count() -> None:
    play = Play(each_step(doubts=("but",)))
    play.write(*STEP)
    assert play.answer("{", "12", "}", " but", logprobs=(-0.7, -0.01, -0.01, -9.0))[0] == CLOSING


def answers(play: Play, *given: str) -> list[bool]:
    ended = []
    for text in given:
        play.write(*STEP)
        ended.append(play.answer("{", text, "}")[0] == CLOSING)
    return ended


def agreeing(agree: int = 3) -> AgreementExit:
    return AgreementExit(every_steps=1, agree=agree)


def test_equal_answers_in_a_row_end_the_think_phase() -> None:
    play = Play(agreeing())
    assert answers(play, "12", "13", "12", "12", "12") == [False, False, False, False, True]
    assert play.last.reading == Reading(value=3, threshold=3, outcome="exit")


def test_a_doubtful_trial_breaks_the_row() -> None:
    assert answers(Play(agreeing(2)), "12", "12 but", "12", "12") == [False, False, False, True]


def test_answers_that_differ_in_white_space_and_case_are_equal() -> None:
    assert answers(Play(agreeing()), "X  + 1", " x + 1", "x+1 ") == [False, False, True]


def test_the_eleventh_trial_is_never_asked() -> None:
    play = Play(each_step())
    for _ in range(10):
        play.write(*STEP)
        play.answer("{", "1", "}", logprobs=(-1.0, -1.0, -1.0))
    assert play.watched(*STEP * 3) is None
    assert isinstance(play.write(*STEP)[1], Generate)


def test_a_trial_is_due_after_so_many_steps() -> None:
    play = Play(DeerExit(at="step", every_steps=3))
    assert play.watched(*STEP * 4) == 6
    assert play.watched(" a", ".\n\n", "\n", "\n\n", *STEP, *STEP) == 8  # a run of newlines is one break


@pytest.mark.parametrize(
    ("texts", "place"),
    [
        ((*STEP, " Wait", ",", " no", ".\n\n", " b"), 6),
        ((*STEP, " waiting", ",", " no", ".\n\n", " b"), None),
        ((" Wait", ",", *STEP), None),
        ((*STEP, *[" b"] * 16, " wait", *STEP), None),
        ((*STEP, *[" b"] * 15, " wait", *STEP), 20),
        ((*STEP, " Wait", "\n", "</think>", *STEP), None),
    ],
)
def test_a_trial_is_due_where_a_step_of_hesitation_ends(texts: tuple[str, ...], place: int | None) -> None:
    assert Play(DeerExit()).watched(*texts) == place


def test_a_takeover_at_an_exit_is_dropped() -> None:
    play = Play(each_step(), "random", rate=1.0)
    assert play.write(*STEP) == (Keep(num_tokens=2), trial())
    assert play.answer("{", "1", "}")[1] == Generate(role=SMALL, max_tokens=986, trigger="answer")


def test_a_takeover_happens_after_a_trial_that_ends_nothing() -> None:
    play = Play(each_step(), "random", rate=1.0)
    play.write(*STEP)
    takeover = Generate(role=LARGE, max_tokens=20, takes_over=True, trigger="random")
    assert play.answer("{", "1", "}", logprobs=(-1.0, -1.0, -1.0)) == (takeover,)


def test_a_trial_is_asked_where_small_would_go_on_after_large() -> None:
    play = Play(DeerExit(at="step", every_steps=2), "random", rate=1.0, handback="break")
    play.write(*STEP)
    assert play.write(" b", ".\n\n") == (Keep(num_tokens=2), trial())


def test_large_may_try() -> None:
    play = Play(LargeExtractExit(every_steps=1))
    assert play.policy.roles == {SMALL, LARGE}
    assert play.write(*STEP) == (Keep(num_tokens=2), trial(LARGE))
    assert play.policy.asks == (trial(LARGE),)


def test_a_tag_that_small_writes_itself_needs_no_other() -> None:
    play = Play(each_step())
    texts = (" a", "</think>", ".\n\n", " b")
    assert play.watched(*texts) is None
    assert play.write(*texts)[1:] == (Generate(role=SMALL, max_tokens=996, trigger="start"),)


def test_no_trial_where_an_answer_has_no_room() -> None:
    play = Play(each_step())
    play.num_tokens = 1000 - 2 - 12
    assert isinstance(play.write(*STEP)[1], Generate)
    play = Play(each_step())
    play.num_tokens = 1000 - 2 - 13
    assert play.write(*STEP)[1] == trial()


def test_answers_without_a_box_are_the_first_line() -> None:
    assert read_answer("The answer is", " Blue \nSo", ended=False) == "blue"
    assert read_answer("The answer is", " Blue", ended=False) is None
    assert read_answer("The answer is", " Blue", ended=True) == "blue"
    assert read_answer(INDUCER, r"{\frac{1}{2}} so", ended=False) == r"\frac{1}{2}"
    assert read_answer("\\boxed{", r"\{1\}}", ended=False) == r"\{1\}"


@pytest.mark.parametrize(
    ("margin", "threshold", "ends"), [(0.9, 1.0, True), (0.9, 0.25, False), (None, 5.0, False), (1.0, 1.0, True)]
)
def test_a_near_tag_ends_the_think_phase(margin: float | None, threshold: float, ends: bool) -> None:
    play = Play(ThinkBrakeExit(threshold=threshold))
    texts, margins = (" a", ".\n\n", " So", " b"), (0.0, 0.0, margin, 0.0)
    assert (play.watched(*texts, margins=margins) == 3) is ends
    found = play.write(*texts, margins=margins)
    assert (found[:2] == (Keep(num_tokens=2), CLOSING)) is ends
    assert play.last.reading == (Reading(value=margin or 0, threshold=threshold, outcome="exit") if ends else None)


def test_near_tags_at_breaks_in_a_row_may_have_to_agree() -> None:
    play = Play(ThinkBrakeExit(threshold=1.0, agree=2))
    texts = (" a", ".\n\n") * 5
    assert play.watched(*texts, margins=(None, None, 0.5, None, 2.0, None, 0.5, None, 0.5)) == 9
    play.write(*texts[:4], margins=(None, None, 0.5, None))
    assert play.watched(" a", margins=(0.5,)) == 1


def test_a_random_exit_draws_at_breaks_alone() -> None:
    assert Play(RandomExit(rate=1.0)).watched(" a", " b", ".\n\n", " c") == 3
    assert Play(RandomExit(rate=0.0)).watched(*STEP * 50) is None


def test_a_random_exit_ends_a_share_of_breaks() -> None:
    places = []
    for seed in range(400):
        play = Play(RandomExit(rate=0.25))
        play.context = SampleContext(
            job_seed=seed, problem_id="p", sample_index=0, max_tokens=1000, think_end="</think>", num_prompt_tokens=0
        )
        places.append((play.watched(*STEP * 200) or 0) // 2)
    assert 3.5 < sum(places) / len(places) < 4.5


def test_every_exit_is_found_by_its_name() -> None:
    assert exit_names() == ("cut", "random", "deer", "agreement", "large-extract", "think_brake")
    for name in exit_names():
        assert issubclass(exit_type(name), ExitSpec)
        assert exit_type(name).model_fields["name"].default == name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("think_brake", {"threshold": math.inf}),
        ("deer", {"hesitations": ["wait", "Wait"]}),
        ("agreement", {"hesitations": [""]}),
        ("agreement", {"doubts": ["no", ""]}),
    ],
)
def test_an_exit_that_makes_no_sense_is_refused(name: str, values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        exit_type(name).model_validate(values)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", exit_names())
def test_a_number_that_cannot_be_stored_is_refused(name: str, number: str) -> None:
    spec = exit_type(name)
    for field in (field for field, info in spec.model_fields.items() if info.annotation is float):
        with pytest.raises(ValidationError, match=f"{field}\n.*Input should be"):
            spec.model_validate({field: number})


def test_the_sample_may_end_at_a_trials_place() -> None:
    play = Play(each_step())
    request = play.last.then
    assert isinstance(request, Generate)
    event = Written(role=SMALL, piece=piece(STEP), finish=SegmentFinish.EOS, start_token=0)
    assert decided(play.policy.advance(play.context, play.last.state, event))[1] == Finish(reason=FinishReason.EOS)
