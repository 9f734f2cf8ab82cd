"""The presets ``paper`` and ``code`` at their own numbers, by hand; test_reference_loops.py has thousands of cases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.policies.reading.cues import CueLists, SentenceClass, read_loosely
from pipeline.policies.requests import Finish, Generate, Insert
from pipeline.policies.speculative_thinking.improved import SpeculativeThinkingSpec
from pipeline.policies.speculative_thinking.paper import PaperSpec
from pipeline.policies.speculative_thinking.released_code import CodeSpec
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from tests.by_hand import ByHand, context_of
from tests.decisions import Decision, Keep, decided, delegation_state

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
DRAFT = "So| 3|.\n\n"


class Play(ByHand):
    """One sample; tokens are separated by |."""

    def __init__(
        self,
        spec: CodeSpec | PaperSpec | SpeculativeThinkingSpec,
        max_tokens: int = 32_768,
        num_prompt_tokens: int = 50,
    ) -> None:
        super().__init__(spec.build(), context_of(max_tokens, num_prompt_tokens=num_prompt_tokens))

    def write(self, text: str, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.has_written(text.split("|") if text else [], finish)

    def watched(self, text: str) -> int | None:
        return self.stops_after(text.split("|"))


def words(count: int) -> str:
    return "|".join([" w"] * count)


def asks(decisions: tuple[Decision, ...]) -> tuple[ModelRole, int, str]:
    request = decisions[-1]
    assert isinstance(request, Generate)
    return request.role, request.max_tokens, request.trigger


@pytest.mark.parametrize(
    ("text", "sentence_class", "cue", "verify"),
    [
        ("The sum is 8.", SentenceClass.STATEMENT, "", ""),
        ("Bayes", SentenceClass.AFFIRMATION, "yes", ""),
        ("Draughts and CHECKERS", SentenceClass.REFLECTION, "check", "check"),
        ("yes wait", SentenceClass.REFLECTION, "wait", ""),
        ("wait yes yes", SentenceClass.AFFIRMATION, "yes", ""),
        ("yes yes check", SentenceClass.AFFIRMATION, "yes", "check"),
        ("another recap", SentenceClass.REFLECTION, "another", "recap"),
    ],
)
def test_bare_substrings_are_counted(text: str, sentence_class: SentenceClass, cue: str, verify: str) -> None:
    reading = read_loosely(text, CueLists())
    assert (reading.sentence_class, reading.cue, reading.verify) == (sentence_class, cue, verify)


def test_code_drafts_peeks_and_samples_a_statement_again() -> None:
    play = Play(CodeSpec())
    assert asks(decided(play.last)) == (SMALL, 1024, "start")
    assert play.watched(f"{DRAFT}| more") == 3
    assert play.write(f"{DRAFT}| more") == (
        Keep(num_tokens=3),
        Generate(role=SMALL, max_tokens=20, trigger="peek"),
    )
    assert play.watched("Wait|,") is None
    assert play.write(words(20), LENGTH) == (
        Keep(num_tokens=0),
        Generate(role=SMALL, max_tokens=1024, trigger="sample_again"),
    )


def test_code_verifies_on_top_of_the_takeover_also_after_the_think_phase() -> None:
    play = Play(CodeSpec())
    play.write("</think>|\n\n")
    play.write(f"{DRAFT}")
    assert asks(play.write(f"Bayes|{words(19)}", LENGTH)) == (LARGE, 20, "affirmation")
    assert play.write(f"checkers|{words(19)}", LENGTH) == (
        Keep(num_tokens=20),
        Generate(role=LARGE, max_tokens=125, trigger="verify", cue="check"),
    )
    assert asks(play.write(words(125), LENGTH)) == (SMALL, 1024, "resume")


def test_code_checks_all_before_it_peeks_with_growing_numbers() -> None:
    play = Play(CodeSpec(), max_tokens=10**6)
    seen = []
    for _ in range(80):
        decisions = play.write(DRAFT)
        if isinstance(decisions[1], Insert):
            seen.append(asks(decisions))
            decisions = play.write(words(asks(decisions)[1]), LENGTH)
        else:
            play.write("wait", EOS)
            decisions = play.write(f"wait|{words(19)}", LENGTH)
        assert asks(decisions)[0] is SMALL
    assert seen == [(LARGE, n3, "too_much_reflection") for n3 in (125, 150, 175)]
    assert delegation_state(play.last.state)["threshold"] == 30


def test_code_looks_at_its_budget_between_two_rounds_only() -> None:
    play = Play(CodeSpec(), max_tokens=100, num_prompt_tokens=97)
    assert asks(play.write(DRAFT)) == (SMALL, 20, "peek")
    assert asks(play.write("wait", EOS)) == (LARGE, 20, "reflection")
    assert play.write(words(20), LENGTH) == (Keep(num_tokens=20), Finish(reason=FinishReason.LENGTH))
    play = Play(CodeSpec(), max_tokens=100, num_prompt_tokens=97)
    play.write(DRAFT)
    assert asks(play.write(words(20), LENGTH)) == (SMALL, 97, "sample_again")


def test_code_never_keeps_more_than_max_tokens() -> None:
    play = Play(CodeSpec(), max_tokens=10, num_prompt_tokens=0)
    assert asks(play.write(DRAFT)) == (SMALL, 7, "peek")
    assert asks(play.write("wait", EOS)) == (LARGE, 7, "reflection")
    assert play.write(words(7), LENGTH) == (Keep(num_tokens=7), Finish(reason=FinishReason.LENGTH))


def test_code_stops_at_an_end_in_its_last_tokens() -> None:
    assert Play(CodeSpec()).write("8|.", EOS) == (Keep(num_tokens=2), Finish(reason=FinishReason.EOS))
    play = Play(CodeSpec())
    play.write(DRAFT)
    play.write("wait", EOS)
    assert play.write("8|.", EOS) == (Keep(num_tokens=2), Finish(reason=FinishReason.EOS))


@pytest.mark.parametrize(("num_after", "goes_on"), [(19, False), (20, True)])
def test_code_may_write_on_after_an_end(num_after: int, goes_on: bool) -> None:
    play = Play(CodeSpec(n2=num_after))
    play.write(DRAFT)
    play.write("wait", EOS)
    assert asks(play.write("check", EOS)) == (LARGE, num_after, "verify")
    decisions = play.write(words(num_after), LENGTH)
    assert (decisions[1] == Finish(reason=FinishReason.EOS)) is not goes_on


@pytest.mark.parametrize(
    ("peek", "answer", "keeps_large"),
    [("wait", "w", True), ("wait", "but wait", False), ("yes", "wait", True), ("yes", "w", False)],
)
def test_code_may_keep_the_peek_where_the_classes_agree(peek: str, answer: str, keeps_large: bool) -> None:
    play = Play(CodeSpec(choose_large=False))
    play.write(DRAFT)
    play.write(f"{peek}|{words(19)}", LENGTH)
    decisions = play.write(f"{answer}|{words(19)}", LENGTH)
    if keeps_large:
        assert decisions[0] == Keep(num_tokens=20)
    else:
        assert decisions[:2] == (Keep(num_tokens=0), Insert(text=peek + " w" * 19, trigger="peek_kept"))
    assert asks(decisions) == (SMALL, 1024, "resume")


def test_code_asks_again_for_what_was_cut_short() -> None:
    play = Play(CodeSpec())
    for text in (DRAFT, "wait", "wait"):
        request = play.last.then
        state = play.last.state
        assert isinstance(request, Generate)
        assert play.write("wa", WATCH) == (Keep(num_tokens=0), replace(request, takes_over=False))
        assert play.last.state == state
        play.write(text, EOS)


def test_code_ends_where_the_context_is_full() -> None:
    assert Play(CodeSpec()).write(words(3), LENGTH) == (Keep(num_tokens=3), Finish(reason=FinishReason.CONTEXT))
    play = Play(CodeSpec())
    play.write(DRAFT)
    assert play.write(words(3), LENGTH) == (Keep(num_tokens=0), Finish(reason=FinishReason.CONTEXT))


@pytest.mark.parametrize("preset", [CodeSpec, PaperSpec, SpeculativeThinkingSpec])
def test_a_small_model_that_does_not_reason_is_led(
    preset: type[CodeSpec] | type[PaperSpec] | type[SpeculativeThinkingSpec],
) -> None:
    play = Play(preset(opening_tokens=100, every_break=True))
    assert asks(decided(play.last)) == (LARGE, 100, "opening")
    assert asks(play.write(words(100), LENGTH))[::2] == (SMALL, "resume")
    assert play.watched(f"{DRAFT}| more") == 3
    decisions = play.write(f"{DRAFT}| more")
    assert decisions[0] == Keep(num_tokens=3)
    if preset is CodeSpec:
        decisions = play.write(words(20), LENGTH)
    assert asks(decisions)[::2] == (LARGE, "every_break")
    assert asks(play.write(words(20), LENGTH if preset is CodeSpec else WATCH))[::2] == (SMALL, "resume")


def test_paper_goes_on_with_a_statement() -> None:
    play = Play(PaperSpec())
    text = f"{DRAFT}|{words(20)}| wait|.\n\n|{words(20)}"
    assert play.watched(text) is None
    assert play.write(text, EOS) == (Keep(num_tokens=45), Finish(reason=FinishReason.EOS))


def test_paper_reads_the_whole_sentence_before_it_decides() -> None:
    play = Play(PaperSpec())
    text = f"{DRAFT}| wait|{words(17)}| yes| yes| more"
    assert play.watched(text) == 23
    assert play.write(text) == (
        Keep(num_tokens=3),
        Generate(role=LARGE, max_tokens=125, takes_over=True, trigger="affirmation", cue="yes"),
    )
    assert play.watched(words(30)) == 20
    assert asks(play.write(words(20))) == (SMALL, 32_768 - 23, "resume")


def test_paper_verifies_instead_of_the_short_takeover() -> None:
    play = Play(PaperSpec())
    assert asks(play.write(f"{DRAFT}| checkers|{words(19)}")) == (LARGE, 125, "verify")
    assert play.watched(words(200)) is None
    assert asks(play.write(words(125), LENGTH))[::2] == (SMALL, "resume")
    play = Play(PaperSpec())
    assert asks(play.write(f"{DRAFT}| wait|{words(19)}")) == (LARGE, 125, "reflection")
    assert play.watched(f"{words(19)}| recap|{words(200)}") == 125


def test_paper_checks_all_at_the_reflection_that_reaches_the_threshold() -> None:
    play = Play(PaperSpec(), max_tokens=10**6)
    seen = []
    for index in range(40):
        decisions = play.write(f"{DRAFT}| wait|{words(19)}")
        if isinstance(decisions[1], Insert):
            seen.append((index, decisions[1].text, asks(decisions)[1]))
        assert asks(play.write(words(20)))[0] is SMALL
    sentence = "Let us check whether there are some wrong steps."
    assert seen == [(14, sentence, 125), (29, sentence, 125)]


def test_paper_goes_on_where_a_request_was_cut_short() -> None:
    play = Play(PaperSpec())
    assert asks(play.write(f"{DRAFT}| wa"))[::2] == (SMALL, "start")
    assert play.watched(f"it|{words(30)}") == 19
    assert play.write(f"it|{words(18)}")[0] == Keep(num_tokens=0)
