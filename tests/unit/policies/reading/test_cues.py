import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.policies.reading.cue_lists import NAMED_LISTS
from pipeline.policies.reading.cues import (
    PAPER_CUES,
    Cue,
    CueKind,
    CueLists,
    CueStream,
    SentenceClass,
    classify,
    cue_finder,
)

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
    for bad in ("", " \n", "\u3000"):
        with pytest.raises(ValidationError, match="a blank text is no cue"):
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


@pytest.mark.parametrize(
    ("words", "text", "is_found"),
    [
        ("让我检查", "让我检查一下这个结果", True),
        ("验证", "我们再验证这个结果", True),
        ("等等", "2等等2", True),
        ("wait", "等wait等", True),  # a Han letter ends no Latin word, and begins none
        ("wait", "等waiting等", False),
        ("待って", "ちょっと待ってください", True),
        ("เดี๋ยว", "กเดี๋ยวก่อน", True),
        ("확인", "다시 확인해 보자", True),  # endings follow right after a Korean word
        ("확인", "재확인 ", False),
        ("रुक", "रुको ", False),  # a vowel sign is a part of the word
        ("रुको", "रुको ", True),
        ("стой", "Постой ", False),
        ("wait!", "oh wait!no", True),
        ("wait!", "await! ", False),
        ("re-check", "re-check.", True),
        ("re-check", "re-checked ", False),
        ("→", "a→b", True),
        ("hmm...", "Hmm...so", True),
        ("?", "what?", True),
    ],
)
def test_a_cue_is_whole_where_its_script_separates_words(words: str, text: str, is_found: bool) -> None:
    lists = CueLists(verify=(), negative=(words,), positive=())
    cue = Cue(CueKind.NEGATIVE, words)
    assert (cue in found(text, lists=lists)) is is_found
    assert (cue in found(*text, lists=lists)) is is_found


def test_a_cue_that_no_letter_can_lengthen_is_certain_at_once_and_found_once() -> None:
    lists = CueLists(verify=(), negative=("等等",), positive=())
    assert [cue is not None for cue in found("等", "等", "，", "等等", lists=lists, ended=True)] == [
        False, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "I'm not confident ",
        "I am not very confident ",
        "I’m really not all that confident ",
        "She isn't confident ",
        "I can't be confident ",
        "I cannot be fully confident ",
        "never confident ",
        "hardly confident ",
        "far from confident ",
        "without being confident ",
        "I'm less confident ",
        "not sure that this is the final answer ",
        "There is no final answer ",
        "I wouldn't say yes ",
    ],
)
def test_a_negated_affirmation_is_no_cue(text: str) -> None:
    assert set(found(text)) == set(found(*text)) == {None}
    assert classify(text, LISTS) is SentenceClass.STATEMENT


@pytest.mark.parametrize(
    "text",
    [
        "I am confident ",
        "It is not 5, so yes ",
        "I did not expect that but I am confident ",
        "Not only confident ",
        "No, I am confident ",
        "No doubt: I'm confident ",
        "I want a confident ",
        "That is not it. Yes ",
    ],
)
def test_a_negation_of_something_else_leaves_the_affirmation(text: str) -> None:
    assert any(cue is not None and cue.kind is CueKind.POSITIVE for cue in found(*text))


def test_a_negated_affirmation_is_decided_where_the_word_stands() -> None:
    lists = CueLists(verify=(), negative=("not sure",), positive=("sure", "that's right"))
    assert found("I'm not sure ", lists=lists) == [Cue(CueKind.NEGATIVE, "not sure")]
    assert found("isn't sure that's right ", lists=lists) == [None]
    zh = CueLists(verify=(), negative=(), positive=("正确", "有把握"))
    for text in ("这不正确。", "我没有把握。", "这是不是正确的？", "我并不是很有把握。"):
        assert set(found(*text, lists=zh)) == {None}
    assert Cue(CueKind.POSITIVE, "正确") in found(*"不，这是正确的。", lists=zh)


def stated(text: str, lists: CueLists = LISTS) -> list[str]:
    """The cues of a sentence, which begins at a break."""
    stream = CueStream(cue_finder(lists))
    stream.begin_sentence()
    cues = [*map(stream.feed, text), stream.end()]
    return [cue.words for cue in cues if cue is not None]


@pytest.mark.parametrize(
    "text",
    [
        "**Final Answer:** 12 ",
        "Final answer: 12",
        "**Final Answer**",
        "### Final answer",
        "So the final answer is 12.",
        "Thus, my final answer: \\boxed{3}",
        "That gives 5. The final answer is 5.",
    ],
)
def test_a_line_that_only_states_the_final_answer_is_no_cue(text: str) -> None:
    assert stated(text) == []
    assert classify(text, LISTS) is SentenceClass.AFFIRMATION


def test_a_line_that_says_more_than_the_final_answer_has_its_cues() -> None:
    assert stated("I think the final answer is 12.") == ["final answer"]
    assert stated("Yes, the final answer is 12.") == ["yes", "final answer"]
    assert stated("Final answer: wait, no.") == ["wait"]
    assert stated("最终答案是12。", CueLists.model_validate("zh")) == []
    assert stated("我认为最终答案是12。", CueLists.model_validate("zh")) == ["最终答案"]


def test_lists_have_names_and_can_be_joined() -> None:
    assert CueLists.model_validate("en") == PAPER_CUES
    both = CueLists.model_validate("en+zh")
    assert both == CueLists()
    assert both.verify[:4] == PAPER_CUES.verify == ("verify", "think again", "recap", "check")
    assert "等等" in both.negative
    for name in NAMED_LISTS:
        assert CueLists.model_validate(name).negative
    assert CueLists.model_validate("+".join(NAMED_LISTS)).negative
    with pytest.raises(ValidationError, match="there are no cues 'xx'; there are: en, wide, zh"):
        CueLists.model_validate("xx")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("zh", "等等，让我再想想。", "等等"),
        ("zh", "让我检查一下这个结果。", "检查"),
        ("zh", "我们再验证这个结果。", "验证"),
        ("ja", "ちょっと待って、計算を確認しよう。", "ちょっと待"),
        ("ja", "もう一度考えてみよう。", "もう一度考え"),
        ("ko", "잠깐만, 다시 확인해 보자.", "잠깐"),
        ("de", "Moment, das stimmt nicht.", "moment"),
        ("es", "Espera, creo que me equivoqué.", "espera"),
        ("fr", "Attendez, vérifions ce résultat.", "attendez"),
        ("wide", "Hmm, that doesn't make sense.", "hmm"),
        ("wide", "I'm not sure.", "not sure"),
    ],
)
def test_each_language_has_its_cues(name: str, text: str, words: str) -> None:
    assert stated(text, CueLists.model_validate(name))[0] == words


SCRIPT_PARTS = st.lists(
    st.sampled_from(
        ["wait", "等等", "等", "，", "not", " ", "yes", "n't", "final", " answer", "\n", ".", "不", "没错", "so"]
    ),
    max_size=14,
)


@given(texts=SCRIPT_PARTS, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_a_text_has_the_same_cues_however_it_is_split(texts: list[str], cuts: list[int]) -> None:
    lists = CueLists.model_validate("en+zh")
    text = "".join(texts)
    places = sorted({cut for cut in cuts if cut < len(text)} | {0, len(text)})
    stream = CueStream(cue_finder(lists))
    stream.begin_sentence()
    last = None
    for start, end in itertools.pairwise(places):
        last = stream.feed(text[start:end])
        if last is not None:
            break
    first = (last or stream.end()) if text else None
    assert ([] if first is None else [first.words]) == stated(text, lists)[:1]
