import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.breaks import BreakFinder
from pipeline.policies.reading.cues import CueLists, cue_finder
from pipeline.policies.reading.reader import Reader, SentenceEndFinder, TextState

FINDER = cue_finder(CueLists())


def reader(state: TextState | None = None, *, window: int = 5, think_end: str = "</think>") -> Reader:
    return Reader(state or TextState(), FINDER, window_tokens=window, think_end=think_end)


def hits(texts: list[str], window: int = 5) -> list[tuple[int, str, int]]:
    """(token, cue, break) of each cue found."""
    read = reader(window=window)
    found = ((index, read.feed(text), read.cue_break) for index, text in enumerate(texts))
    return [(index, cue.words, start) for index, cue, start in found if cue is not None]


@pytest.mark.parametrize(
    ("texts", "breaks"),
    [
        ([".\n\n", "a"], [0]),
        (["\n", "\n", "\n", "a"], [1, 2]),
        ([")\n", "\n"], [1]),
        (["\n\n\n"], [0]),
        (["\n", "", "\n"], [2]),
        (["\n", " ", "\n"], [2]),
        (["\n", " \n"], [1]),
        (["a\n\n  ", "\n"], [0, 1]),
        (["a\n\n", "  ", "b"], [0]),
        (["a\n \t \n", "b"], [0]),
        (["a\r\n\r\n", "b"], [0]),
        (["a\r\n", "\r\n", "b"], [1]),
        (["a\r", "\n", "\r", "\n", "b"], [3]),
        (["a\n", "\u3000", "\n", "b"], [2]),
        (["a\n", " b", "\n"], []),
        (["a\n\nb"], []),
        (["\n\n", ""], [0]),
    ],
)
def test_breaks_are_found_at_token_boundaries(texts: list[str], breaks: list[int]) -> None:
    finder = BreakFinder()
    assert [index for index, text in enumerate(texts) if finder.feed(text)] == breaks


@pytest.mark.parametrize(
    ("texts", "ends", "begins"),
    [
        (["a", "\n\n", "b"], [1], [2]),
        (["a", "\n\n", "\n", "\n\n", "b"], [1], [4]),
        (["a.\n\n", "b\n\n", "\n", "c"], [0, 1], [1, 3]),
        (["a", "\n", "\n", "b", "c"], [2], [3]),
        (["a", "\n\n", " ", "\n", "b"], [1, 3], [2, 4]),
        (["a", "\n\n", ""], [1], [2]),
    ],
)
def test_a_run_of_newlines_ends_one_step_and_the_first_token_after_it_begins_the_next(
    texts: list[str], ends: list[int], begins: list[int]
) -> None:
    finder, ended, begun = BreakFinder(), [], []
    for index, text in enumerate(texts):
        finder.feed(text)
        ended += [index] * finder.ends_step
        begun += [index] * finder.begins_step
    assert (ended, begun) == (ends, begins)


def test_a_run_of_newlines_goes_on_over_a_stored_state() -> None:
    finder = BreakFinder(newlines=2, at_break=True)
    finder.feed("\n")
    assert (finder.at_break, finder.ends_step, finder.begins_step) == (True, False, False)
    finder.feed("a")
    assert finder.begins_step


BLANK_TEXTS = st.text(alphabet=["\n", " ", "\t", "\r", "a", "b"], max_size=20)


@given(text=BLANK_TEXTS, cuts=st.sets(st.integers(1, 19)))
def test_breaks_are_the_same_however_a_text_is_split(text: str, cuts: set[int]) -> None:
    places = sorted({cut for cut in cuts if cut < len(text)} | {0, len(text)})
    finder = BreakFinder()
    seen = {end for start, end in itertools.pairwise(places) if finder.feed(text[start:end])}
    ends = {match.end(1) for match in re.finditer(r"(?=(\n\s*\n))", text)}
    first_places = {min((place for place in places if place >= end), default=0) for end in ends}
    assert seen <= {place for place in places if re.search(r"\n\s*\n\s*\Z", text[:place])}
    assert {place for place in first_places if re.search(r"\n\s*\n\s*\Z", text[:place])} <= seen


def plain_break(before: str, token: str) -> bool:
    """Two newlines and nothing between them."""
    return "\n" in token and (before + token.rstrip(" \t")).endswith("\n\n")


@given(tokens=st.lists(st.sampled_from(["\n", "\n\n", "a", ".\n\n", "\n\na", " a", ""]), max_size=20))
def test_text_without_blanks_between_newlines_has_its_breaks_at_two_newlines(tokens: list[str]) -> None:
    finder = BreakFinder()
    found = [finder.feed(token) for token in tokens]
    assert found == [plain_break("".join(tokens[:index]), token) for index, token in enumerate(tokens)]


def test_a_cue_counts_only_after_a_break() -> None:
    assert hits(["Wait", ",", " no", "\n", "wait", ","]) == []
    assert hits(["a", ".\n\n", "Wait", ","]) == [(3, "wait", 2)]


def test_a_cue_counts_inside_the_window_only() -> None:
    assert hits([".\n\n", *"abc", " check", "."]) == [(5, "check", 1)]
    assert hits([".\n\n", *"abcd", " check", "."]) == [(5, "check", 1)]  # certain as the window closes
    assert hits([".\n\n", *"abcde", " check", "."]) == []
    assert hits([".\n\n", *"abcd", " che", "ck", "."]) == []


def test_the_earliest_window_that_holds_the_cue_gives_the_break() -> None:
    assert hits([".\n\n", "a", ".\n\n", "Wait", ","]) == [(4, "wait", 1)]
    assert hits([".\n\n", "a", "b", ".\n\n", "c", " Wait", ","]) == [(5, "wait", 1)]
    assert hits([".\n\n", "a", "b", ".\n\n", "c", "d", " Wait", ","]) == [(7, "wait", 4)]


def test_a_cue_does_not_reach_over_a_break() -> None:
    assert hits(["\n\n", "think", "\n\n", "again", "."], window=9) == []
    assert hits(["\n\n", "think", "\n", "again", "."], window=9) == [(4, "think again", 1)]


def test_a_cue_closes_the_windows_it_lies_in() -> None:
    assert hits([".\n\n", "Wait", ",", " check", ".", ".\n\n", "Yes", "."], window=9) == [
        (2, "wait", 1),
        (7, "yes", 6),
    ]


def test_reading_ends_with_the_think_phase() -> None:
    for tag in (["</think>"], ["</", "think", ">"], ["<", "/think>\n\n"], ["x</think>"]):
        read = reader()
        assert [read.feed(text) for text in ["a", *tag, "\n\n", "Wait", ","]] == [None] * (len(tag) + 4)
        assert not read.thinking
        assert read.state.windows == ()


def test_a_cue_right_before_the_closing_tag_counts() -> None:
    assert hits(["\n\n", "check", "</think>"]) == [(2, "check", 1)]
    assert hits(["\n\n", "check</think>"]) == [(1, "check", 1)]
    assert hits(["\n\n", "a</think> check "]) == []


def test_a_broken_off_tag_does_not_end_the_think_phase() -> None:
    read = reader()
    for text in ["<", "</thin", " k>", "<</", "x"]:
        read.feed(text)
    assert read.thinking
    for text in ["<</", "think>"]:
        read.feed(text)
    assert not read.thinking


def test_without_a_tag_the_think_phase_never_ends() -> None:
    read = reader(think_end="")
    assert [read.feed(text) is not None for text in ["</think>", "\n\n", "Wait", ","]] == [False, False, False, True]


PARTS = [
    "\n",
    "\n\n",
    ".\n\n",
    "wait",
    " wait",
    ",",
    "ing",
    " think",
    " again",
    "",
    "a",
    "</",
    "think",
    ">",
    "</think>",
]


@given(texts=st.lists(st.sampled_from(PARTS), max_size=40), at=st.integers(0, 40), window=st.integers(1, 8))
def test_reading_goes_on_from_its_state(texts: list[str], at: int, window: int) -> None:
    whole, first = reader(window=window), reader(window=window)
    expected = [whole.feed(text) for text in texts]
    head = [first.feed(text) for text in texts[:at]]
    second = reader(TextState.model_validate_json(first.state.model_dump_json()), window=window)
    assert head + [second.feed(text) for text in texts[at:]] == expected
    assert second.state == whole.state


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        ([" a", ".", " The"], [(2, 2)]),
        (["3", ".", "14"], []),
        ([" so", ".)", "\n"], [(2, 2)]),
        (["x", ".$", " B"], [(2, 2)]),
        (["done", ".\n"], [(1, 2)]),
        (["done", "."], []),
        (["好。", "那"], [(0, 1)]),
        (["no", "?", "", " B"], [(3, 2)]),
        (["no", "!", "\n\n", "\n"], [(2, 2)]),
    ],
)
def test_sentence_ends_are_found_when_they_are_certain(texts: list[str], ends: list[tuple[int, int]]) -> None:
    finder = SentenceEndFinder()
    seen = [(index, finder.feed(text)) for index, text in enumerate(texts)]
    assert [(index, end) for index, end in seen if end is not None] == ends
