import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.policies.reading.cues import Cue, CueKind, CueLists, CueStream, SentenceClass, classify, cue_finder

LISTS = CueLists()
WAIT = Cue(CueKind.NEGATIVE, "wait")


def found(*texts: str, lists: CueLists = LISTS, ended: bool = False) -> list[Cue | None]:
    stream = CueStream(cue_finder(lists))
    cues = [stream.feed(text) for text in texts]
    return [*cues, stream.end()] if ended else cues


@pytest.mark.parametrize("text", ["wait,", "Wait!", " WAIT ", "(wait)", "so\twait\n", "re-wait-", "'wait'"])
def test_a_cue_is_found_as_a_whole_word_in_any_case(text: str) -> None:
    assert found(text) == [WAIT]


@pytest.mark.parametrize("text", ["waiting ", "await ", "wait_ ", "wait2 ", "checkers ", "Bayes ", "éwait ", "waité "])
def test_a_part_of_a_word_is_no_cue(text: str) -> None:
    assert found(text) == [None]


def test_a_cue_is_certain_once_the_next_character_shows() -> None:
    assert found(" Wa", "it", ",") == [None, None, WAIT]
    assert found(" wait", "ing", " ") == [None, None, None]
    assert found(" wait", "", " ") == [None, None, WAIT]


def test_a_cue_at_the_end_is_certain_when_the_text_ends() -> None:
    assert found(" wait", ended=True) == [None, WAIT]
    assert found(" waiti", ended=True) == [None, None]
    assert found(" wait", ".", ended=True) == [None, WAIT, None]


def test_words_of_a_cue_may_stand_any_white_space_apart() -> None:
    cue = Cue(CueKind.POSITIVE, "final answer")
    assert found("Final", " \n", "\t", " " * 100, "an", "swer", ":")[-1] == cue
    assert found("final", "answer", " ") == [None] * 3
    assert found("final, answer ") == [None]


def test_the_cue_that_completes_first_is_found() -> None:
    lists = CueLists(verify=("hold on tight",), negative=("on",), positive=())
    assert found("hold on tight ", lists=lists) == [Cue(CueKind.NEGATIVE, "on")]
    assert found("wait yes ") == [WAIT]
    assert found("yes wait ") == [Cue(CueKind.POSITIVE, "yes")]


def test_a_cue_is_reported_once() -> None:
    assert found("wait ", "a ", "b ", "wait ") == [WAIT, None, None, WAIT]


def test_every_default_cue_is_found() -> None:
    for kind, cues in zip(CueKind, (LISTS.verify, LISTS.negative, LISTS.positive), strict=True):
        for words in cues:
            assert found(f"{words.title()}.") == [Cue(kind, words)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sum is 8.", SentenceClass.STATEMENT),
        ("Yes, but wait.", SentenceClass.REFLECTION),
        ("Yes, yes, but wait.", SentenceClass.AFFIRMATION),
        ("Let me check", SentenceClass.REFLECTION),
        ("Final  answer", SentenceClass.AFFIRMATION),
        ("Checkers and Bayes", SentenceClass.STATEMENT),
    ],
)
def test_classes_are_counted(text: str, expected: SentenceClass) -> None:
    assert classify(text, LISTS) is expected


def test_lists_are_folded_and_checked() -> None:
    assert CueLists(verify=("  Think \n AGAIN ",)).verify == ("think again",)
    for bad in ("", "wait!", "a-b"):
        with pytest.raises(ValidationError, match="is no cue"):
            CueLists(negative=(bad,))
    with pytest.raises(ValidationError, match="named twice: wait"):
        CueLists(verify=("wait",))


def test_empty_lists_find_nothing() -> None:
    assert found("wait ", lists=CueLists(verify=(), negative=(), positive=()), ended=True) == [None, None]


TEXTS = st.lists(
    st.sampled_from(["wait", "Wa", "it", "ing", " ", "  ", "\n", "", ",", "think", " again", "final", "answer", "check",
                     "ers", "yes", "é", "hold", " on", "a"]),
    max_size=30,
)  # fmt: skip


@given(texts=TEXTS)
def test_a_stream_finds_the_cues_of_the_whole_text_at_their_first_certain_token(texts: list[str]) -> None:
    any_cue = "|".join(r"\s+".join(cue.split()) for cue in (*LISTS.verify, *LISTS.negative, *LISTS.positive))
    whole = "".join(texts).casefold()
    ends = {match.end() for match in re.finditer(rf"(?<!\w)(?:{any_cue})(?=\W)", whole)}
    length, expected = 0, []
    for text in texts:
        expected.append(any(length <= end < length + len(text) for end in ends))
        length += len(text)
    assert [cue is not None for cue in found(*texts)] == expected


@given(texts=TEXTS, at=st.integers(0, 30))
def test_a_stream_goes_on_from_its_tail(texts: list[str], at: int) -> None:
    first = CueStream(cue_finder(LISTS))
    for text in texts[:at]:
        first.feed(text)
    second = CueStream(cue_finder(LISTS), first.tail)
    assert [second.feed(text) for text in texts[at:]] == found(*texts)[at:]
