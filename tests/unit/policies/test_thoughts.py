"""Whether a sample has thoughts: what its text says where prompt and template leave it open."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.chat.thinking import THINK_FAMILIES, ThinkFamily
from pipeline.policies import Policy, parse_policy
from pipeline.policies.composition import compose
from pipeline.policies.exits import CutExit
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.reading.beginning import read_beginning
from pipeline.policies.requests import Finish, Generate, Written
from pipeline.policies.thoughts import AsThought
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
R1 = THINK_FAMILIES[0]


def split(text: str) -> list[str]:
    """One token for each word, mark and run of newlines."""
    return re.findall(r"\n+|[ ]*\w+|[^\w\n]", text)


def context(family: ThinkFamily = R1, *, opened: bool) -> SampleContext:
    return SampleContext(
        job_seed=1, problem_id="p", sample_index=0, max_tokens=1000, num_prompt_tokens=0,
        think_start=family.opening, think_end=family.closing, think_opened=opened,
    )  # fmt: skip


@pytest.mark.parametrize("family", THINK_FAMILIES, ids=lambda family: family.opening)
@pytest.mark.parametrize(
    ("opened", "text", "thinks"),
    [
        (True, "So 4.", True),
        (True, "\n\n", None),
        (True, "\n{close}\n\nIt is 4.", False),
        (True, "\n So{close}", True),
        (False, "{open}So", True),
        (False, "\n{open}\nSo 4.{close}It is 4.", True),
        (False, "It is 4.", False),
        (False, " ", None),
        (False, "{open}\n\n", None),
        (False, "{open}\n\n{close}\n\nIt is 4.", False),
        (False, "{open}{close}", None),
        (False, "{open}{close}4", False),
        (False, "<b>It</b>", False),
    ],
)
def test_the_first_word_of_a_thought_or_an_answer_decides(
    family: ThinkFamily, opened: bool, text: str, thinks: bool | None
) -> None:
    told = context(family, opened=opened)
    written = text.format(open=family.opening, close=family.closing)
    assert read_beginning(told, "", written)[1] is thinks
    head, found = "", None
    for letter in written:  # and so it does where every token is one letter
        head, found = read_beginning(told, head, letter)
        if found is not None:
            break
    assert found is thinks


class Play:
    """One sample whose models write given texts, one token a word."""

    def __init__(self, policy: Policy, told: SampleContext) -> None:
        self.policy = AsThought(policy)
        self.context = told
        self.last: Transition = self.policy.start(told)
        self.num_tokens = 0
        self.text = ""

    def write(self, text: str, finish: SegmentFinish = EOS) -> int | None:
        """Stream past the watcher; after how many tokens it spoke."""
        request = self.last.then
        assert isinstance(request, Generate)
        texts = split(text)
        watcher = self.policy.watcher(self.context, self.last.state)
        tokens = enumerate(texts, 1)
        ended = None if watcher is None else next((count for count, part in tokens if watcher.feed(part)), None)
        piece = Piece(token_ids=tuple(range(len(texts))), texts=tuple(texts)).head(ended or len(texts))
        event = Written(role=request.role, piece=piece, finish=WATCH if ended else finish, start_token=self.num_tokens)
        self.last = self.policy.advance(self.context, self.last.state, event)
        self.text += piece.head(self.last.keep or 0).text
        self.num_tokens += self.last.keep or 0
        return ended

    @property
    def writer(self) -> ModelRole | None:
        return self.last.then.role if isinstance(self.last.then, Generate) else None


def thinking(**values: Any) -> Policy:
    return parse_policy("speculative-thinking", values).build()


ANSWER = "So 2+2=4.\n\nWait, let me see."


@pytest.mark.parametrize(
    ("opened", "beginning"), [(False, ""), (False, "<think>\n\n</think>\n\n"), (True, "\n</think>\n\n"), (False, "\n")]
)
def test_a_text_without_thoughts_is_read_as_one_of_a_model_that_does_not_reason(opened: bool, beginning: str) -> None:
    play = Play(thinking(), context(opened=opened))
    assert play.write(beginning + ANSWER), "the cue in the answer is found while it streams"
    assert play.writer is LARGE
    assert play.text == f"{beginning}So 2+2=4.\n\n"
    play.write("The answer is 4.")
    assert play.last.then == Finish(reason=FinishReason.EOS), "the large model's end of turn ends the text"


@pytest.mark.parametrize(("opened", "beginning"), [(True, ""), (False, "<think>\n")])
def test_behind_real_thoughts_nobody_is_called(opened: bool, beginning: str) -> None:
    play = Play(thinking(), context(opened=opened))
    assert play.write(f"{beginning}It is 4.</think>\n\n{ANSWER}") is None
    assert play.last.then == Finish(reason=FinishReason.EOS)


@pytest.mark.parametrize(("opened", "beginning"), [(True, ""), (False, "<think>\n")])
def test_in_real_thoughts_the_large_models_end_of_turn_is_ignored(opened: bool, beginning: str) -> None:
    play = Play(thinking(), context(opened=opened))
    assert play.write(beginning + ANSWER)
    play.write("The answer is 4.")
    assert play.writer is SMALL


def test_once_the_text_thinks_the_state_is_the_policys_own() -> None:
    told = context(opened=True)
    play, inside = Play(thinking(), told), thinking()
    assert play.last.state.keys() == {"think_phase"}
    play.write(ANSWER)
    alone = inside.start(told)
    assert play.last.state.keys() == alone.state.keys()


def test_an_exit_closes_no_phase_that_was_never_opened() -> None:
    policy = compose(thinking(), exit=CutExit(thinking_tokens=2))
    play = Play(policy, context(opened=False))
    play.write("It is 4. That is all.")
    assert play.last.insert == ()
    assert play.last.then == Finish(reason=FinishReason.EOS)
    play = Play(policy, context(opened=False))
    play.write("<think>It is 4. That is all.")
    assert [part.text for part in play.last.insert if hasattr(part, "text")] == ["\n</think>\n\n"]


def test_a_job_without_a_think_phase_is_as_before() -> None:
    told = SampleContext(job_seed=1, problem_id="p", sample_index=0, max_tokens=9, think_end="", num_prompt_tokens=0)
    policy = thinking()
    assert AsThought(policy).start(told) == policy.start(told)


def test_a_beginning_in_two_pieces_is_read_as_one() -> None:
    told = context(opened=False)
    policy = AsThought(parse_policy("small-only").build())
    first = policy.start(told)
    texts = ("<think>", "\n")
    piece = Piece(token_ids=(0, 1), texts=texts)
    assert isinstance(first.then, Generate)
    event = Written(role=SMALL, piece=piece, finish=WATCH, start_token=0)
    second = policy.advance(told, first.state, event)
    assert second.state["think_phase"]["head"] == "<think>"
    assert second.state["think_phase"]["has_thoughts"] is None
    more = Piece(token_ids=(2, 3), texts=("</think>", "4"))
    third = policy.advance(told, second.state, Written(role=SMALL, piece=more, finish=WATCH, start_token=2))
    assert third.state["think_phase"]["has_thoughts"] is False
    thought = Piece(token_ids=(2,), texts=("So",))
    third = policy.advance(told, second.state, Written(role=SMALL, piece=thought, finish=WATCH, start_token=2))
    assert third.state.keys() == {"max_tokens"}


def test_no_break_of_an_empty_block_calls_the_large_model() -> None:
    play = Play(thinking(every_break=True), context(opened=False))
    assert play.write("<think>\n\n</think>\n\nIt is 4.\n\nYes.")
    assert play.text == "<think>\n\n</think>\n\nIt is 4.\n\n"
    assert play.writer is LARGE


def test_a_text_that_nobody_watches_is_not_watched_for_its_beginning() -> None:
    told = context(opened=False)
    policy = AsThought(parse_policy("small-only").build())
    assert policy.watcher(told, policy.start(told).state) is None
