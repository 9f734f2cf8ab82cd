import re
from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.chat.steps import Step
from pipeline.chat.steps import split_steps as split_steps_by
from pipeline.policies.reading.cues import CueLists, SentenceClass
from pipeline.samples import Author
from pipeline.segments import WrittenSegment
from tests.pieces import written


def split_steps(segments: Iterable[WrittenSegment]) -> tuple[Step, ...]:
    return split_steps_by(segments, CueLists())


def segment(author: Author, text: str, trigger: str, *, takes_over: bool = False) -> WrittenSegment:
    """Tokens are separated by | in text."""
    return written(author, text.split("|"), trigger=trigger, takes_over=takes_over)


def test_a_sample_is_split_at_its_breaks() -> None:
    steps = split_steps(
        [
            segment(Author.SMALL, "Start| at| 3|.\n\n|Add| 4|:| 8|.\n\n", "start"),
            segment(Author.LARGE, "Wait|,| 7|.\n\n", "reflection", takes_over=True),
            segment(Author.SMALL, "So| 7|.", "resume"),
        ]
    )
    assert [step.text for step in steps] == ["Start at 3.\n\n", "Add 4: 8.\n\n", "Wait, 7.\n\n", "So 7."]
    assert [step.step_index for step in steps] == [0, 1, 2, 3]
    assert [step.author for step in steps] == [Author.SMALL, Author.SMALL, Author.LARGE, Author.SMALL]
    assert [step.trigger for step in steps] == [None, None, "reflection", None]
    assert [step.start_token for step in steps] == [0, 4, 9, 13]
    assert [step.sentence_class for step in steps] == [SentenceClass.STATEMENT] * 2 + [
        SentenceClass.REFLECTION,
        SentenceClass.STATEMENT,
    ]


def test_classes_go_by_the_cues_of_the_job() -> None:
    segments = [segment(Author.SMALL, "Moment|,| 7|.", "start")]
    assert split_steps(segments)[0].sentence_class is SentenceClass.STATEMENT
    assert split_steps_by(segments, CueLists(negative=("moment",)))[0].sentence_class is SentenceClass.REFLECTION


def test_a_step_may_have_several_authors() -> None:
    (step,) = split_steps(
        [
            segment(Author.SMALL, "So", "start"),
            segment(Author.INSERTED, "Let| me| check|:", "too_much_reflection"),
            segment(Author.LARGE, " 3| +| 4", "too_much_reflection", takes_over=True),
            segment(Author.SMALL, " =| 7|.", "resume"),
        ]
    )
    assert (step.tokens_small, step.tokens_large, step.tokens_inserted) == (4, 3, 4)
    assert step.author is Author.SMALL  # of equals, the one who began
    assert step.trigger == "too_much_reflection"


def test_newlines_after_a_break_belong_to_the_step_before() -> None:
    steps = split_steps([segment(Author.SMALL, "\n\n|a|\n|\n|\n|b", "start")])
    assert [step.text for step in steps] == ["\n\na\n\n\n", "b"]


def test_a_break_of_two_authors_is_a_break() -> None:
    steps = split_steps([segment(Author.SMALL, "a|\n", "start"), segment(Author.LARGE, "\n|b", "verify")])
    assert [step.text for step in steps] == ["a\n\n", "b"]


def test_only_the_first_tokens_give_the_class() -> None:
    (early,) = split_steps([written(Author.SMALL, ["x "] * 19 + ["wait"])])
    (late,) = split_steps([written(Author.SMALL, ["x "] * 20 + ["wait"])])
    assert (early.sentence_class, late.sentence_class) == (SentenceClass.REFLECTION, SentenceClass.STATEMENT)


def test_a_large_model_alone_takes_nothing_over() -> None:
    (step,) = split_steps([segment(Author.LARGE, "a|b", "start")])
    assert (step.author, step.trigger) == (Author.LARGE, None)


def test_an_empty_output_has_no_steps() -> None:
    assert split_steps([]) == ()
    assert split_steps([written(Author.SMALL, [])]) == ()


SEGMENTS = st.lists(
    st.builds(
        written,
        st.sampled_from(Author),
        st.lists(st.sampled_from(["a", " b", "\n", "\n\n", ".\n\n", "", "\n\n ", " \n", "a\n\nb", "é"]), max_size=12),
        trigger=st.sampled_from(["start", "resume", "verify", "reflection"]),
        takes_over=st.booleans(),
    ),
    max_size=8,
)


@given(segments=SEGMENTS)
def test_steps_are_the_whole_output(segments: list[WrittenSegment]) -> None:
    steps = split_steps(segments)
    texts = [text for segment in segments for text in segment.kept.texts]
    assert "".join(step.text for step in steps) == "".join(texts)
    places = [*(step.start_token for step in steps), len(texts)]
    assert places == sorted({0, *places})
    for author, counted in (
        (Author.SMALL, sum(step.tokens_small for step in steps)),
        (Author.LARGE, sum(step.tokens_large for step in steps)),
        (Author.INSERTED, sum(step.tokens_inserted for step in steps)),
    ):
        assert counted == sum(len(segment.kept) for segment in segments if segment.author is author)
    for step, (start, end) in zip(steps, pairwise(places), strict=True):
        assert step.text == "".join(texts[start:end])
    for step in steps[:-1]:
        assert re.search(r"\n\s*\n\s*\Z", step.text)
        assert step.text.strip()
