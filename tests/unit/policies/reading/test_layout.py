"""Which breaks end a step, in text as instruct models write it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policies.reading.layout import LayoutState, StepEndFinder


def ends(*tokens: str) -> list[str]:
    """The text up to each break that ends a step, from the one before it."""
    finder = StepEndFinder(LayoutState())
    places = [finder.num_kept for token in tokens if finder.feed(token)]
    return ["".join(tokens[start:end]) for start, end in itertools.pairwise([0, *places])]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("First, we add.\n\nThen we multiply.\n\nDone", ["First, we add.\n\n", "Then we multiply.\n\n"]),
        # what follows is announced
        ("To find it, follow these steps:\n\n1. Add.\n\n2. Go", ["To find it, follow these steps:\n\n1. Add.\n\n"]),
        ("我们得到：\n\nx=1。\n\n好", ["我们得到：\n\nx=1。\n\n"]),
        ("so x =\n\n5 eggs.\n\nGo", ["so x =\n\n5 eggs.\n\n"]),
        # headings
        ("### Step 1\n\nWe add.\n\n### Step 2\n\nWe", ["### Step 1\n\nWe add.\n\n"]),
        ("**Step 1: Add**\n\nWe add.\n\nx", ["**Step 1: Add**\n\nWe add.\n\n"]),
        ("**Bold** words end.\n\nx", ["**Bold** words end.\n\n"]),
        # display formulas
        ("We have\n\n\\[\nx = 1\n\n+ 2\n\n\\]\n\nSo", ["We have\n\n\\[\nx = 1\n\n+ 2\n\n\\]\n\n"]),
        ("We have\n\n$$x = 1$$\n\nSo", ["We have\n\n$$x = 1$$\n\n"]),
        ("a\n\n$$\nx\n\ny\n$$\n\nSo", ["a\n\n$$\nx\n\ny\n$$\n\n"]),
        ("\\begin{align}\nx\n\ny\n\\end{align}\n\nSo", ["\\begin{align}\nx\n\ny\n\\end{align}\n\n"]),
        ("It costs $5.\n\nSo", ["It costs $5.\n\n"]),
        ("\\[\na \\\\[2pt]\nb\n\\]\n\nSo 2.\n\nThen", ["\\[\na \\\\[2pt]\nb\n\\]\n\n", "So 2.\n\n"]),
        # code
        ("```python\nx\n\ny\n```\n\nSo", ["```python\nx\n\ny\n```\n\n"]),
        ("````\nx\n\ny\n````\n\nSo", ["````\nx\n\ny\n````\n\n"]),
        ("```x = 1```\n\nSo 2.\n\nThen", ["```x = 1```\n\n", "So 2.\n\n"]),
        # lists
        ("1. Add.\n\n   So 5.\n\n2. Go.", ["1. Add.\n\n   So 5.\n\n"]),
        ("1.\n\nAdd.\n\n2. Go", ["1.\n\nAdd.\n\n"]),
        ("- 3 eggs\n\n- 4 eggs\n\nSo", ["- 3 eggs\n\n", "- 4 eggs\n\n"]),
        # blanks and line ends
        ("We add.\r\n\r\nThen", ["We add.\r\n\r\n"]),
        ("We add.\n \nThen", ["We add.\n \n"]),
        ("We add.\n\n\n\nThen", ["We add.\n\n\n\n"]),
        ("We add.\n\n", []),
    ],
)
def test_breaks_end_steps(text: str, steps: list[str]) -> None:
    assert ends(*text) == steps


def test_a_break_counts_at_the_end_of_its_token() -> None:
    assert ends("We add", ".\n\n", "Then") == ["We add.\n\n"]
    assert ends("1. Add", ".\n\n", "  ", " So", ".\n\n", "2", ".") == ["1. Add.\n\n   So.\n\n"]
    assert ends("a\n\n", "\\", "[", "x", "\n\\]\n\n", "So") == ["a\n\n\\[x\n\\]\n\n"]
    assert ends("a\n\n", "\\", "boxed") == ["a\n\n"]


PARTS = ["We add.", "\n", "\n\n", " ", "  ", "\\[", "\\]", "$$", "```", "### A", "a:", "1.", "- b", "\r\n", "x", ""]


@given(tokens=st.lists(st.sampled_from(PARTS), max_size=30), at=st.integers(0, 30))
def test_reading_goes_on_from_its_state_where_no_break_waits(tokens: list[str], at: int) -> None:
    whole = StepEndFinder(LayoutState())
    found = [whole.feed(token) for token in tokens]
    first = StepEndFinder(LayoutState())
    head = [first.feed(token) for token in tokens[:at]]
    second = StepEndFinder(LayoutState.model_validate_json(first.state.model_dump_json()))
    tail = [second.feed(token) for token in tokens[at:]]
    assert head == found[:at]
    assert second.state == whole.state
    waiting = next((index for index, is_found in enumerate(tail) if is_found != found[at:][index]), None)
    assert waiting is None or (not tail[waiting] and not any(found[at:][:waiting]))
