"""Stop strings: they end a sample outside its thoughts, are no part of it, and do not care where tokens are split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policies import Policy, parse_policy
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.requests import Ask, Finish, Generate, Insert, Take, Trigger, Written
from pipeline.policies.stops import Stopping
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
THOUGHT: dict[str, Any] = {"think_start": "<think>", "think_end": "</think>", "think_opened": True}
BY_TEXT = THOUGHT | {"think_opened": False}
PLAIN: dict[str, Any] = {"think_end": ""}


def context(**more: Any) -> SampleContext:
    usual: dict[str, Any] = {
        "job_seed": 1,
        "problem_id": "p",
        "sample_index": 0,
        "max_tokens": 1000,
        "num_prompt_tokens": 0,
    }
    return SampleContext(**(usual | more))


class Play:
    """One sample whose models write given tokens."""

    def __init__(self, policy: Policy, told: SampleContext) -> None:
        self.policy = policy
        self.context = told
        self.last: Transition = policy.start(told)
        self.text = ""
        self.num_tokens = 0

    def write(self, texts: Sequence[str], finish: SegmentFinish = EOS, *, more: Sequence[str] = ()) -> None:
        """Stream tokens past the watcher. more: tokens that come before the engine hears of its word."""
        request = self.last.then
        assert isinstance(request, Generate)
        watcher = self.policy.watcher(self.context, self.last.state)
        ended = watcher and next((count for count, text in enumerate(texts, 1) if watcher.feed(text)), None)
        written = [*texts[:ended], *more] if ended else list(texts)
        piece = Piece(token_ids=tuple(range(len(written))), texts=tuple(written))
        event = Written(role=request.role, piece=piece, finish=WATCH if ended else finish, start_token=self.num_tokens)
        self.last = self.policy.advance(self.context, self.last.state, event)
        kept = piece.head(self.last.keep or 0)
        self.text += kept.text + "".join(part.text for part in self.last.insert if isinstance(part, Insert))
        self.num_tokens += len(kept) + len(self.last.insert)

    @property
    def reason(self) -> FinishReason | None:
        return self.last.then.reason if isinstance(self.last.then, Finish) else None


def alone(*stops: str, role: ModelRole = SMALL) -> Policy:
    policy = parse_policy(f"{role}-only").build()
    return Stopping(policy, {SMALL: (), LARGE: ()} | {role: stops})


def played(policy: Policy, *texts: str, **told: Any) -> Play:
    play = Play(policy, context(**told))
    play.write(texts)
    return play


def test_the_text_ends_before_the_stop_string() -> None:
    play = played(alone("Q:"), "It is 4.", "\n", "Q:", " What", **PLAIN)
    assert (play.text, play.reason) == ("It is 4.\n", FinishReason.STOP)


def test_without_a_stop_string_the_model_ends_the_text() -> None:
    play = played(alone("Q:"), "It is 4", ".", **PLAIN)
    assert (play.text, play.reason) == ("It is 4.", FinishReason.EOS)


def test_a_stop_string_inside_a_token_leaves_what_stands_before_it() -> None:
    play = played(alone("Q:"), "It is", " 42\n\nQ", ": next", **PLAIN)
    assert (play.text, play.reason) == ("It is 42\n\n", FinishReason.STOP)
    assert play.last.keep == 1
    assert play.last.insert == (Insert(text=" 42\n\n", trigger=Trigger.STOP),)


def test_a_token_stays_whole_where_its_beginning_may_have_no_room() -> None:
    play = played(alone("Q:"), "a", " 42Q: x", max_tokens=4, **PLAIN)
    assert (play.text, play.last.insert, play.reason) == ("a 42Q: x", (), FinishReason.STOP)


def test_inside_an_open_think_phase_nothing_ends_the_text() -> None:
    play = played(alone("Q:"), "Q: is", " hard.", "</think>", "4", "Q:", **THOUGHT)
    assert (play.text, play.reason) == ("Q: is hard.</think>4", FinishReason.STOP)


def test_a_stop_string_in_the_token_that_closes_the_phase_counts_behind_the_tag() -> None:
    play = played(alone("Q:"), "Q:", "Q: </think>Q: 5", **THOUGHT)
    assert (play.text, play.reason) == ("Q:Q: </think>", FinishReason.STOP)


def test_a_phase_that_the_text_opens_is_one() -> None:
    play = played(alone("Q:"), "<th", "ink>Q:", "</th", "ink>4 Q", ":", **BY_TEXT)
    assert (play.text, play.reason) == ("<think>Q:</think>4 ", FinishReason.STOP)


def test_a_text_that_opens_no_phase_is_all_answer() -> None:
    play = played(alone("Q:"), "4 ", "Q:", **BY_TEXT)
    assert (play.text, play.reason) == ("4 ", FinishReason.STOP)


def test_a_phase_that_is_opened_again_is_one_again() -> None:
    play = played(alone("Q:"), "a</think>b<think>Q:</think>", "c Q:", **THOUGHT)
    assert play.text == "a</think>b<think>Q:</think>c "


def test_the_first_of_several_counts() -> None:
    assert played(alone("##", "Q:"), "a Q: ", "## b", **PLAIN).text == "a "
    assert played(alone("ab", "xabc"), "1xab", "c", **PLAIN).text == "1x", "the first that is whole"


def test_tokens_that_came_after_the_watchers_word_are_no_part_of_it() -> None:
    play = Play(alone("Q:"), context(**PLAIN))
    play.write(["a", "Q:"], more=[" b", "Q:"])
    assert (play.text, play.reason) == ("a", FinishReason.STOP)


def test_a_character_of_several_tokens_is_not_torn() -> None:
    play = played(alone("。"), "四", "", "", "。", "x", **PLAIN)
    assert (play.text, play.last.keep) == ("四", 1)


def test_a_stop_string_that_was_begun_before_ends_the_next_piece() -> None:
    play = Play(alone("\n\nQ:"), context(**PLAIN))
    play.write(["a", "\n\n"], WATCH)
    assert play.text == "a\n\n"
    assert isinstance(play.last.then, Generate)
    play.write(["Q", ": b"])
    assert (play.text, play.reason) == ("a\n\n", FinishReason.STOP)


def test_a_stop_string_of_one_role_does_not_end_the_other() -> None:
    policy = Stopping(
        parse_policy("speculative-thinking", {"n1": 2, "handback": "tokens"}).build(), {SMALL: ("Q:",), LARGE: ()}
    )
    play = Play(policy, context(**PLAIN))
    play.write(["So 4.", "\n\n", "Wait", ","], LENGTH)
    assert isinstance(play.last.then, Generate)
    assert play.last.then.role is LARGE
    play.write([" Q", ":"])
    assert play.reason is not FinishReason.STOP
    assert play.text.endswith(" Q:")


def test_an_inserted_text_ends_nothing() -> None:
    class Inserts:
        roles = frozenset({SMALL})
        asks: tuple[Ask, ...] = ()

        def start(self, context: SampleContext) -> Transition:
            return self._then(insert=(Insert(text="a Q", trigger="x"),))

        def watcher(self, context: SampleContext, state: Any) -> None:
            return None

        def advance(self, context: SampleContext, state: Any, event: Any) -> Transition:
            return Transition(state={}, keep=len(event.piece), then=Finish(reason=FinishReason.EOS))

        def _then(self, insert: tuple[Take | Insert, ...]) -> Transition:
            then = Generate(role=SMALL, max_tokens=9, trigger="x")
            return Transition(state={}, insert=insert, then=then)

    play = played(Stopping(Inserts(), {SMALL: ("Q:",), LARGE: ()}), ": b", "Q:", **PLAIN)
    assert play.reason is FinishReason.STOP
    assert play.text == ": b"


ALPHABET = ["a", "Q", ":", "\n", "</think>", "<think>", "</th", "。"]


def without_stop(text: str, stops: Sequence[str], told: dict[str, Any]) -> tuple[str, bool]:
    """The plain reading: character by character, all of the text at hand."""
    thinking = bool(told["think_end"]) and told.get("think_opened", True)
    start, end = told.get("think_start", ""), told["think_end"]
    begin = 0
    for at in range(len(text) + 1):
        if thinking:
            if text[begin:at].endswith(end):
                thinking, begin = False, at
            continue
        found = [at - len(stop) for stop in stops if text[begin:at].endswith(stop)]
        if found:
            return text[: min(found)], True
        if start and text[begin:at].endswith(start):
            thinking, begin = True, at
    return text, False


@given(st.data())
def test_splits_make_no_difference(data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(ALPHABET), max_size=24)))
    stops = data.draw(st.lists(st.sampled_from(["Q", "Q:", "\n\n", "a:", "。a", "aa"]), min_size=1, max_size=2))
    told = data.draw(st.sampled_from([THOUGHT, BY_TEXT, PLAIN]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    tokens = [text[start:end] for start, end in pairwise(cuts)]
    play = played(alone(*stops), *tokens, **told)
    single = played(alone(*stops), *text, **told)
    wanted, stopped = without_stop(text, stops, told)
    assert (single.text, single.reason is FinishReason.STOP) == (wanted, stopped)
    assert (play.reason is FinishReason.STOP) == stopped
    if len(stops) == 1:
        assert play.text == wanted, "of several strings, a token may complete two"


@pytest.mark.parametrize("preset", ["improved", "paper", "code"])
def test_every_preset_can_be_stopped(preset: str) -> None:
    play = Play(
        Stopping(parse_policy(f"speculative-thinking:{preset}").build(), {SMALL: ("##",), LARGE: ("##",)}),
        context(**THOUGHT),
    )
    play.write(["So ", "##", " it is 4.", "</think>", "4", " #", "#", " b"])
    assert (play.text, play.reason) == ("So ## it is 4.</think>4 ", FinishReason.STOP)
