from __future__ import annotations

from typing import Any

import pytest

from pipeline.policies.requests import Finish, Generate, Insert
from pipeline.policies.speculative_thinking.improved import (
    ImprovedInstructSpec,
    ImprovedRules,
    SpeculativeThinkingSpec,
)
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from tests.by_hand import ByHand, context_of
from tests.decisions import Keep, decided, delegation_state

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
SENTENCE = "Let me check whether there are some wrong steps:"


def split(text: str) -> tuple[str, ...]:
    """Tokens are separated by |."""
    return tuple(text.split("|")) if text else ()


class Play(ByHand):
    """One sample: each call is one request that was carried out."""

    def __init__(self, spec: ImprovedRules | None = None, max_tokens: int = 1000, think_end: str = "</think>") -> None:
        super().__init__(
            (spec or SpeculativeThinkingSpec()).build(), context_of(max_tokens, think_end=think_end, job_seed=1)
        )
        self.output: list[str] = []

    def watched(self, text: str) -> int | None:
        """How many tokens the watcher reads until it ends the request; None: to the end."""
        return self.stops_after(split(text))

    def write(self, role: ModelRole, text: str, finish: SegmentFinish) -> tuple[object, ...]:
        texts = split(text)
        decisions = self.has_written(texts, finish, role=role)
        for decision in decisions:
            if isinstance(decision, Keep):
                self.output += texts[: decision.num_tokens]
            elif isinstance(decision, Insert):
                self.output.append(decision.text)
        return decisions

    def small(self, text: str, finish: SegmentFinish = WATCH) -> tuple[object, ...]:
        return self.write(SMALL, text, finish)

    def large(self, text: str, finish: SegmentFinish = WATCH) -> tuple[object, ...]:
        return self.write(LARGE, text, finish)


def spec(**values: Any) -> SpeculativeThinkingSpec:
    return SpeculativeThinkingSpec(**values)


def words(count: int) -> str:
    return "|".join([" w"] * count)


def test_small_starts_and_both_roles_are_needed() -> None:
    play = Play()
    assert play.policy.roles == {SMALL, LARGE}
    assert decided(play.last) == (Generate(role=SMALL, max_tokens=1000, trigger="start"),)


def test_text_without_a_cue_is_never_interrupted() -> None:
    play = Play()
    text = f"Wait|,| no|.\n\n|{words(20)}| wait|,|.\n\n| checkers|.|</think>|\n\n|Yes|,| 8|."
    assert play.watched(text) is None
    assert play.small(text, EOS) == (Keep(num_tokens=len(split(text))), Finish(reason=FinishReason.EOS))


@pytest.mark.parametrize(
    ("sentence", "trigger", "cue"),
    [
        ("Wait|,", "reflection", "wait"),
        ("So| hold| on|.", "reflection", "hold on"),
        ("Yes|,", "affirmation", "yes"),
        ("Let| me| check|.", "verify", "check"),
        ("So| re|cap|:", "verify", "recap"),
        ("Yes|,| wait|.", "affirmation", "yes"),
    ],
)
def test_a_cue_hands_over_at_its_break(sentence: str, trigger: str, cue: str) -> None:
    play = Play()
    text = f"3| +| 4|.\n\n|{sentence}| more"
    assert play.watched(text) == 4 + len(split(sentence)) - (2 if cue == "yes" and "wait" in sentence else 0)
    assert play.small(text) == (
        Keep(num_tokens=4),
        Generate(role=LARGE, max_tokens=125, takes_over=True, trigger=trigger, cue=cue),
    )


def test_the_step_before_a_doubt_is_written_again() -> None:
    play = Play()
    keep = play.small("Begin|.\n\n|Add| 4|:| 9|.\n\n|Wait|,")[0]
    assert keep == Keep(num_tokens=2)
    play = Play()
    keep = play.small(f"Begin|.\n\n|{words(15)}|.\n\n|{words(4)}| wait|,")[0]
    assert keep == Keep(num_tokens=18)  # the first window closed one token too early


def test_a_break_of_two_tokens_counts() -> None:
    assert Play().small("3|\n|\n|Wait|,")[0] == Keep(num_tokens=3)
    assert Play().small("3|\n|\n|\n|Wait|,")[0] == Keep(num_tokens=3)


def test_a_break_of_two_authors_counts() -> None:
    play = taken_over(spec=spec(handback="tokens", n1=2, window_tokens=4))
    play.large("So|\n")
    assert play.small("\n|a|b| wait|,")[0] == Keep(num_tokens=1)


def taken_over(first: str = "Wait|,", **values: Any) -> Play:
    play = Play(**values)
    play.small(f"a|.\n\n|{first}")
    return play


def resumed(play: Play, decisions: tuple[object, ...], kept: int) -> bool:
    remaining = play.context.max_tokens - play.num_tokens
    return decisions == (Keep(num_tokens=kept), Generate(role=SMALL, max_tokens=remaining, trigger="resume"))


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        (f"{words(30)}", 20, 20),  # no end: n1
        (f"{words(13)}|.\n\n|{words(20)}", 14, 14),  # at a break
        (f"{words(12)}|.| So|{words(20)}", 14, 13),  # at a sentence's end, seen one token later
        (f"No|.\n\n|{words(30)}", 20, 20),  # too early to end
        (f"No|.\n\n|{words(9)}|.\n\n|{words(9)}", 12, 12),
        (f"{words(12)}|.|14|{words(20)}", 20, 20),  # a number
        (f"{words(3)}|</think>|\n\n", 4, 4),  # the think phase is over
        (f"{words(18)}|||x", 21 - 1, 18),  # never within a character
    ],
)
def test_a_takeover_ends_at_the_end_of_a_sentence_or_at_n1(text: str, stop: int, kept: int) -> None:
    play = taken_over()
    assert play.watched(text) == stop
    assert resumed(play, play.large(text), kept)


def test_a_takeover_may_be_counted_in_tokens_alone() -> None:
    play = taken_over(spec=spec(handback="tokens"))
    text = f"{words(12)}|.\n\n|{words(20)}"
    assert play.watched(text) == 20
    assert resumed(play, play.large(text), 20)


@pytest.mark.parametrize("place", [1, 9, 18])
def test_a_verify_cue_of_large_lets_it_write_on(place: int) -> None:
    play = taken_over()
    text = f"{words(place)}| check|,|{words(130)}"
    assert play.watched(text) == 125
    assert resumed(play, play.large(text), 125)


def test_a_verify_cue_counts_among_the_first_tokens_of_large_only() -> None:
    at_the_end = taken_over(spec=spec(n1=30))
    assert at_the_end.watched(f"{words(19)}| check|{words(130)}") == 125
    too_late = taken_over(spec=spec(n1=30))
    assert too_late.watched(f"{words(20)}| check|{words(130)}") == 30


def test_a_cue_of_large_does_not_reach_over_a_break() -> None:
    assert taken_over().watched(f"I| think|\n\n|again|,|{words(40)}") == 20
    assert taken_over().watched(f"I| think|\n|again|,|{words(130)}") == 125


def test_large_verifies_in_one_go_over_breaks() -> None:
    play = taken_over("Let| me| check|:")
    text = "|".join([f"{words(9)}|.\n\n"] * 13)
    assert play.watched(text) == 70  # the first end from 63 tokens on
    assert resumed(play, play.large(text), 70)


def test_a_request_is_clamped_to_what_is_left() -> None:
    play = Play(max_tokens=30)
    assert play.small("a|.\n\n|Wait|,")[1] == Generate(
        role=LARGE, max_tokens=28, takes_over=True, trigger="reflection", cue="wait"
    )
    assert resumed(play, play.large(words(28)), 20)
    assert play.small(words(8), LENGTH) == (Keep(num_tokens=8), Finish(reason=FinishReason.LENGTH))
    play = Play(max_tokens=10)
    assert play.small("a|.\n\n|Wait|,")[1] == Generate(
        role=LARGE, max_tokens=8, takes_over=True, trigger="reflection", cue="wait"
    )
    assert play.large(words(8), LENGTH) == (Keep(num_tokens=8), Finish(reason=FinishReason.LENGTH))


def test_a_full_context_ends_the_sample() -> None:
    ended = (Keep(num_tokens=3), Finish(reason=FinishReason.CONTEXT))
    assert Play().small(words(3), LENGTH) == ended
    assert taken_over().large(words(3), LENGTH) == ended


def test_the_eos_of_small_ends_the_sample() -> None:
    assert Play().small("", EOS) == (Keep(num_tokens=0), Finish(reason=FinishReason.EOS))
    assert Play().small("a|.\n\n|b", EOS) == (Keep(num_tokens=3), Finish(reason=FinishReason.EOS))


def test_a_cue_right_before_eos_is_certain() -> None:
    assert Play().small("a|.\n\n|wait", EOS)[0] == Keep(num_tokens=2)
    assert Play().small("a|.\n\n|wait", LENGTH) == (Keep(num_tokens=3), Finish(reason=FinishReason.CONTEXT))


def test_the_eos_of_large_hands_back_in_the_think_phase() -> None:
    play = taken_over()
    assert resumed(play, play.large("No|.", EOS), 2)
    play = taken_over(think_end="")
    assert play.large("No|.", EOS) == (Keep(num_tokens=2), Finish(reason=FinishReason.EOS))


def test_where_large_has_nothing_to_say_small_passes_unwatched() -> None:
    play = taken_over()
    assert resumed(play, play.large("", EOS), 0)
    text = "Wait|,| no|.\n\n|Wait|,"
    assert play.watched(text) == 6
    assert play.small(text)[0] == Keep(num_tokens=4)


def test_a_window_of_large_goes_on_in_the_text_of_small() -> None:
    play = taken_over()
    play.large(f"{words(9)}|.\n\n")
    assert play.small("Wait|,") == (
        Keep(num_tokens=0),
        Generate(role=LARGE, max_tokens=125, takes_over=True, trigger="reflection", cue="wait"),
    )
    play = taken_over(spec=spec(handback="tokens", n1=4))
    play.large("So| let| me| think")
    assert play.small(" again|.")[1] == Generate(
        role=LARGE, max_tokens=125, takes_over=True, trigger="verify", cue="think again"
    )
    play = taken_over(spec=spec(handback="tokens", n1=4))
    play.large(words(4))
    assert play.watched(f"{words(15)}| wait") == 16
    assert play.watched(f"{words(16)}| wait|,") is None


def test_a_cue_that_large_wrote_is_not_the_small_ones() -> None:
    play = taken_over(spec=spec(handback="tokens", n1=2))
    play.large("But| wait")
    assert play.watched(",| so|.") is None


def test_small_answers_undisturbed() -> None:
    play = Play(spec=spec(repetition="off"))
    play.small("a|.\n\n|Wait|,")
    play.large("So| 8|.|</think>")
    assert play.policy.watcher(play.context, play.last.state) is None
    assert play.small("\n\n|Wait|,| check|.", EOS) == (Keep(num_tokens=5), Finish(reason=FinishReason.EOS))


def reflect(play: Play, text: str = f"Wait|,|{words(8)}|.\n\n") -> tuple[object, ...]:
    """One takeover, which large begins with a doubt; ten tokens and a break."""
    decisions = play.small("a|.\n\n|Wait|,")
    play.large(text)
    return decisions[1:]


def test_too_much_reflection_inserts_a_sentence_with_growing_numbers() -> None:
    play = Play(spec=spec(threshold=2, threshold_max=4, threshold_step=1, n3=5, n3_step=5, n3_max=10))
    takeovers = [reflect(play) for _ in range(16)]
    checks = [index for index, decisions in enumerate(takeovers) if isinstance(decisions[0], Insert)]
    assert checks == [2, 6, 11]  # after 2, 3 and 4 doubts of large; what goes on after the sentence is none
    sizes = [takeovers[index][1] for index in checks]
    assert [getattr(decision, "max_tokens", None) for decision in sizes] == [5, 10, 10]
    assert takeovers[2] == (
        Insert(text=SENTENCE, trigger="too_much_reflection"),
        Generate(role=LARGE, max_tokens=5, takes_over=True, trigger="too_much_reflection", cue="wait"),
    )


def test_a_statement_or_an_affirmation_is_no_reflection() -> None:
    play = Play(spec=spec(threshold=1))
    for opening in ("So", "Yes", "Yes|,| wait"):
        assert isinstance(reflect(play, f"{opening}|,|{words(9)}|.\n\n")[0], Generate)
    assert isinstance(reflect(play, f"Wait|,|{words(9)}|.\n\n")[0], Generate)
    assert isinstance(reflect(play)[0], Insert)


def test_each_reflective_sentence_of_large_counts_once() -> None:
    play = Play(spec=spec(threshold=3))
    play.small("a|.\n\n|check|.")
    play.large("|".join(["Wait|,| wait|,| check|.\n\n"] * 2 + [words(80)] + ["\n\n|hold| on|."]))
    assert delegation_state(play.last.state)["reflections"] == 2  # the third came after the takeover's end


def test_the_sentence_is_not_inserted_where_it_has_no_room() -> None:
    play = Play(spec=spec(threshold=1), max_tokens=62)
    reflect(play)
    assert play.num_tokens == 13
    assert play.small("Wait|,")[1:] == (
        Generate(role=LARGE, max_tokens=49, takes_over=True, trigger="reflection", cue="wait"),
    )
    play = Play(spec=spec(threshold=1), max_tokens=63)
    reflect(play)
    assert play.small("Wait|,")[2] == Generate(
        role=LARGE, max_tokens=1, takes_over=True, trigger="too_much_reflection", cue="wait"
    )


def test_the_sentence_is_inserted_after_a_break_only() -> None:
    play = Play(spec=spec(threshold=1, handback="tokens", n1=5))
    play.small("a|.\n\n|Wait|,")
    play.large("Wait|,| w|.\n\n|So")
    assert delegation_state(play.last.state)["reflections"] == 1
    assert play.small(" wait|,") == (
        Keep(num_tokens=0),
        Generate(role=LARGE, max_tokens=125, takes_over=True, trigger="reflection", cue="wait"),
    )


def test_what_the_sentence_took_is_counted() -> None:
    play = Play(spec=spec(threshold=1), max_tokens=80)
    reflect(play)
    play.small("a|.\n\n|Wait|,")
    play.num_tokens += 9  # the sentence became ten tokens
    assert play.large(words(18), LENGTH)[1] == Generate(role=SMALL, max_tokens=80 - 13 - 10 - 18, trigger="resume")


LOOP = "|".join([" so| it| is| 8|."] * 80)


def test_a_loop_ends_the_sample() -> None:
    play = Play()
    assert play.watched(LOOP) == 256
    assert play.small(LOOP, LENGTH) == (Keep(num_tokens=256), Finish(reason=FinishReason.REPETITION))


def test_a_loop_may_hand_over() -> None:
    play = Play(spec=spec(repetition="hand_over"))
    assert play.watched(f"a|{LOOP}") == 320  # looked for every 64 tokens
    assert play.small(f"a|{LOOP}") == (
        Keep(num_tokens=6),
        Generate(role=LARGE, max_tokens=125, takes_over=True, trigger="repetition"),
    )
    assert play.watched(words(125)) == 125


def test_a_loop_in_the_answer_ends_the_sample_in_any_case() -> None:
    decisions = Play(spec=spec(repetition="hand_over")).small(f"</think>|{LOOP}")
    assert decisions == (Keep(num_tokens=320), Finish(reason=FinishReason.REPETITION))


def test_a_loop_may_be_left_alone() -> None:
    play = Play(spec=spec(repetition="off"))
    assert play.watched(LOOP) is None
    assert play.small(LOOP, EOS)[1] == Finish(reason=FinishReason.EOS)


def test_a_request_that_was_cut_short_goes_on() -> None:
    play = Play()
    play.small("a|.\n\n|Wa", WATCH)
    assert decided(play.last)[1] == Generate(role=SMALL, max_tokens=997, trigger="start")
    assert play.small("it|,")[0] == Keep(num_tokens=0)
    play = taken_over()
    assert resumed(play, play.large("So", WATCH), 1)


def test_the_other_model_is_refused() -> None:
    with pytest.raises(ValueError, match="the small model was to write, but large did"):
        Play().large("a")


def test_newlines_after_a_break_are_no_step_of_large() -> None:
    play = taken_over(spec=spec(handback="break"))
    assert play.watched("\n|Then| so|.\n\n|more") == 4
    assert play.large("\n|Then| so|.\n\n")[0] == Keep(num_tokens=4)


def test_a_takeover_may_begin_at_the_nearest_break() -> None:
    text = "a|.\n\n|b|.\n\n|Wait|,"
    for takeover_from, kept in (("earliest", 2), ("nearest", 4)):
        play = Play(SpeculativeThinkingSpec.model_validate({"takeover_from": takeover_from}))
        decisions = play.write(SMALL, text, WATCH)
        assert decisions[0] == Keep(num_tokens=kept)
        assert isinstance(decisions[-1], Generate)
        assert decisions[-1].takes_over


def test_an_instruct_model_is_led_at_the_ends_of_its_steps() -> None:
    play = Play(ImprovedInstructSpec(), think_end="")
    assert isinstance(play.last.then, Generate)
    assert (play.last.then.role, play.last.then.max_tokens, play.last.then.trigger) == (LARGE, 100, "opening")
    play.write(LARGE, "Okay|,| we| have|:\n\n|\\[|x", WATCH)
    formula = "| =|\n\n|1|\n\\|]\n\n"  # begun by large, and a break inside it
    assert play.watched(f"{formula}|So|.") == 7
    decisions = play.write(SMALL, f"{formula}|So|.", WATCH)
    assert decisions[0] == Keep(num_tokens=6)
    assert isinstance(decisions[-1], Generate)
    assert (decisions[-1].role, decisions[-1].trigger) == (LARGE, "every_break")


def test_a_line_that_states_the_final_answer_calls_nobody() -> None:
    play = Play()
    assert play.watched("x|.\n\n|**|Final| Answer|:**| 12|.\n\n|So| the| final| answer| is| 12|.") is None
    assert play.watched("x|.\n\n|I| think| the| final| answer| is| 12|.") == 8
