"""Mentor: vectors by hand, and the published loop as one would write it with two engines that block."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError
from pipeline.policies import parse_policy
from pipeline.policies.draws import draw
from pipeline.policies.mentor import MentorSpec
from pipeline.policies.protocol import SampleContext
from pipeline.policies.requests import Ask, Finish, Generate, Take
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, SegmentFinish
from tests.asking_pair import (
    END,
    QUESTION_TOKENS,
    Aside,
    Driver,
    Pair,
    Story,
    Verdict,
    answer,
    in_question,
    pairs,
    verdict_of,
    whole,
)
from tests.by_hand import ByHand, context_of
from tests.decisions import Decision, Keep, decided

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH


class Play(ByHand):
    """One sample; each word is drawn."""

    def __init__(self, spec: MentorSpec | None = None, context: SampleContext | None = None) -> None:
        super().__init__((spec or MentorSpec(rate=1, order="fixed")).build(), context or context_of(1000))

    def watched(self, *texts: str) -> int | None:
        return self.stops_after(texts)

    def asides(
        self, purpose: str, role: ModelRole, *texts: str, finish: SegmentFinish = WATCH, **labels: float
    ) -> tuple[Decision, ...]:
        assert (self.ask.purpose, self.ask.role) == (purpose, role)
        assert self.ask.greedy is (purpose == "choose")
        read = {letter: math.log(value) if value else None for letter, value in labels.items()}
        return self.has_answered(texts, finish, labels=read)

    def drafts(self, *texts: str, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.asides("draft", SMALL, *texts, finish=finish)

    def mentors(self, *texts: str, finish: SegmentFinish = LENGTH) -> tuple[Decision, ...]:
        return self.asides("mentor", LARGE, *texts, finish=finish)

    def chooses(self, role: ModelRole = SMALL, **labels: float) -> tuple[Decision, ...]:
        return self.asides("choose", role, "A", finish=LENGTH, **labels)

    def writes_answer(self) -> tuple[Decision, ...]:
        return self.has_written(["8"], EOS)


def draft(room: int, *, most: int = 128, after: tuple[tuple[int, int], ...] = ()) -> Ask:
    return Ask(role=SMALL, purpose="draft", after=after, max_tokens=min(room, most), greedy=False)


def consult(*after: tuple[int, int], max_tokens: int = 16) -> Ask:
    return Ask(role=LARGE, purpose="mentor", after=after, max_tokens=max_tokens, greedy=False)


def two(own: int = 4, chunk: int = 4, **values: object) -> Play:
    """A sample at the choice between own and large's continuation, behind two tokens that are not drawn about."""
    play = Play(MentorSpec.model_validate({"rate": 1, "order": "fixed", "chunk": chunk, **values}))
    play.last = play.policy.start(play.context)
    play.drafts(*[" cat", " sat", " on", " it"][:own], finish=EOS if own < chunk else WATCH)
    play.mentors(" dog", " ran", " off", ".")
    return play


def test_small_writes_until_a_word_is_drawn_and_a_continuation_more() -> None:
    play = Play(MentorSpec(rate=1, chunk=3))
    assert decided(play.last) == (draft(1000),)
    assert play.watched("The", " cat", " sat", " on") == 3
    assert play.drafts("The", " cat", " sat", " on") == (consult(max_tokens=3),)


def test_a_word_begins_behind_white_space() -> None:
    play = Play(MentorSpec(rate=0, draft_tokens=8))
    play.drafts("So", "up", " is", ".\n\n", "Then", "", " é", " \n", finish=LENGTH)
    assert play.last.state["num_draws"] == 4


def test_equal_first_words_take_nothing_of_larges_and_the_next_word_is_drawn() -> None:
    play = Play(MentorSpec(rate=1, chunk=3))
    play.drafts("the", " cat", " sat")
    assert play.mentors("the", " cat", " sat") == (draft(1, after=((0, 3),)),)
    assert play.last.reading is None
    assert play.drafts(" on", finish=LENGTH) == (consult((0, 1), max_tokens=3),)
    play.mentors(" cat")
    assert play.ask == draft(1, after=((0, 3), (2, 1)))
    play.drafts(finish=EOS)
    assert play.ask == consult((0, 2), max_tokens=3)
    assert play.mentors(" sat") == (consult((0, 3), max_tokens=3),)
    takes = (Take(index=0, num_tokens=3), Take(index=2, num_tokens=1))
    assert play.mentors(" on") == (*takes, Finish(reason=FinishReason.EOS))


def test_both_continuations_are_shown_and_the_letter_is_next() -> None:
    play = two()
    spec = MentorSpec()
    assert play.ask == Ask(
        role=SMALL,
        purpose="choose",
        question=spec.question.replace("{A}", "cat sat on it").replace("{B}", "dog ran off."),
        turn=True,
        opening=spec.opening,
        labels=("A", "B"),
    )


def test_small_chooses_large() -> None:
    play = two()
    took = Take(index=1, num_tokens=4, takes_over=True)
    assert play.chooses(A=0.2, B=0.7) == (took, draft(996))
    assert verdict_of(play.last.reading) == (0.77778, 0.5, "mentor")


def test_small_chooses_itself() -> None:
    play = two()
    assert play.chooses(A=0.7, B=0.2) == (Take(index=0, num_tokens=4), draft(996))
    assert verdict_of(play.last.reading) == (0.22222, 0.5, "own")


def test_of_equals_smalls_own_stays() -> None:
    play = two()
    play.chooses(A=0.4, B=0.4)
    assert verdict_of(play.last.reading) == (0.5, 0.5, "own")


def test_the_order_is_drawn_and_the_letter_read_by_it() -> None:
    seeds = {draw(context_of(1000, job_seed=seed), "order 1") < 0.5: seed for seed in range(20)}
    for own_first, seed in seeds.items():
        play = Play(MentorSpec(rate=1, chunk=2), context_of(1000, job_seed=seed))
        play.drafts(" cat", " sat")
        play.mentors(" dog", " ran")
        assert (play.ask.question.index("cat") < play.ask.question.index("dog")) is own_first
        play.chooses(A=0.2, B=0.7)
        assert play.last.reading is not None
        assert play.last.reading.outcome == ("mentor" if own_first else "own")


def test_both_orders_are_asked_and_a_preference_for_a_place_chooses_nothing() -> None:
    play = two(order="both")
    assert play.chooses(A=0.8, B=0.1)[0] == play.ask
    assert play.last.reading is None
    assert play.ask.question.index("dog") < play.ask.question.index("cat")
    play.chooses(A=0.8, B=0.1)
    assert verdict_of(play.last.reading) == (0.5, 0.5, "own")
    play = two(order="both")
    play.chooses(A=0.4, B=0.4)
    play.chooses(A=0.9, B=0.1)
    assert verdict_of(play.last.reading) == (0.75, 0.5, "mentor")
    play = two(order="both")
    play.chooses(A=0.9, B=0)
    play.chooses(A=0.9, B=0)
    assert verdict_of(play.last.reading) == (0.5, 0.5, "own")


def test_letters_with_too_little_mass_choose_nothing() -> None:
    play = two()
    assert play.chooses(A=0.0002, B=0.0008)[0] == Take(index=0, num_tokens=4)
    assert verdict_of(play.last.reading) == (0.001, 0.5, "no answer")


def test_without_room_for_the_question_own_stays() -> None:
    play = two()
    assert play.chooses()[0] == Take(index=0, num_tokens=4)
    assert verdict_of(play.last.reading) == (0.0, 0.5, "no answer")


@pytest.mark.parametrize("texts", [(), ("</think>",), ("\n", "</think>")])
def test_where_large_writes_no_word_own_stays(texts: tuple[str, ...]) -> None:
    play = Play(MentorSpec(rate=1, chunk=1))
    play.drafts(" cat")
    assert play.mentors(*texts, finish=EOS) == (Take(index=0, num_tokens=1), draft(999))
    assert play.last.reading is None


def test_the_chooser_may_be_large_or_nobody() -> None:
    play = two(chooser="large")
    assert play.chooses(LARGE, A=0.1, B=0.8)[0] == Take(index=1, num_tokens=4, takes_over=True)
    assert two(chooser="own").last.insert == (Take(index=0, num_tokens=4),)
    assert two(chooser="mentor").last.insert == (Take(index=1, num_tokens=4, takes_over=True),)


def test_larges_continuation_ends_with_a_whole_character() -> None:
    play = Play(MentorSpec(rate=1, chunk=3, order="fixed"))
    play.drafts(" cat", " sat", " on")
    play.mentors(" dog", " ran", "")
    assert play.chooses(A=0.1, B=0.8)[0] == Take(index=1, num_tokens=2, takes_over=True)


def test_a_place_is_not_inside_a_character() -> None:
    seed = next(seed for seed in range(99) if _drawn(seed) == [False, True])
    play = Play(MentorSpec(rate=0.5, chunk=1), context_of(1000, job_seed=seed))
    assert play.watched("a", " ", "", "é") == 4
    play.drafts("a", " ", "", "é")
    assert play.ask == consult((0, 2), max_tokens=1)


def _drawn(seed: int) -> list[bool]:
    return [draw(context_of(1000, job_seed=seed), number) < 0.5 for number in (1, 2)]


def test_words_before_the_place_stay_with_larges_continuation() -> None:
    seed = next(seed for seed in range(99) if _drawn(seed) == [False, True])
    play = Play(MentorSpec(rate=0.5, chunk=2, order="fixed"), context_of(1000, job_seed=seed))
    play.drafts("The", " cat", " sat")
    assert play.ask == consult((0, 1), max_tokens=2)
    play.mentors(" dog", " ran")
    assert play.ask.after == ((0, 1),)
    takes = (Take(index=0, num_tokens=1), Take(index=1, num_tokens=2, takes_over=True))
    assert play.chooses(A=0.1, B=0.8) == (*takes, draft(997))


def test_words_of_own_that_was_chosen_are_not_drawn() -> None:
    play = two()
    play.chooses(A=0.8, B=0.1)
    assert play.last.state["num_draws"] == 1


def test_nothing_is_drawn_behind_the_think_phase_nor_at_its_tag() -> None:
    play = Play(MentorSpec(rate=1, chunk=2))
    assert play.watched("\n", "</think>", " 8") == 2
    answers = Generate(role=SMALL, max_tokens=998, trigger="resume")
    assert play.drafts("\n", "</think>", " 8") == (Take(index=0, num_tokens=2), answers)
    assert play.policy.watcher(play.context, play.last.state) is None
    assert play.writes_answer() == (Keep(num_tokens=1), Finish(reason=FinishReason.EOS))


def test_large_may_end_the_think_phase_with_its_continuation() -> None:
    play = Play(MentorSpec(rate=1, chunk=3, order="fixed", answer_role=LARGE))
    play.drafts(" cat", " sat", " on")
    assert play.watched(" 8.", "</think>", "x") == 2
    play.mentors(" 8.", "</think>", "x")
    assert play.ask.question.endswith("Continuation B:\n8.")
    took = Take(index=1, num_tokens=2, takes_over=True)
    assert play.chooses(A=0.1, B=0.8) == (took, Generate(role=LARGE, max_tokens=998, trigger="answer"))


def test_smalls_end_of_text_is_its_own_continuation() -> None:
    play = two(own=2)
    assert play.chooses(A=0.8, B=0.1) == (Take(index=0, num_tokens=2), Finish(reason=FinishReason.EOS))
    play = two(own=2)
    assert play.chooses(A=0.1, B=0.8)[-1] == draft(996)


def test_without_think_phase_larges_end_of_text_ends_it() -> None:
    play = Play(MentorSpec(rate=1, chunk=3, chooser="mentor"), context_of(1000, think_end=""))
    play.drafts(" cat", " sat", " on")
    took = Take(index=1, num_tokens=1, takes_over=True)
    assert play.mentors(" dog", finish=EOS) == (took, Finish(reason=FinishReason.EOS))


def test_while_it_thinks_larges_end_of_text_hands_back() -> None:
    play = Play(MentorSpec(rate=1, chunk=3, chooser="mentor"))
    play.drafts(" cat", " sat", " on")
    assert play.mentors(" dog", finish=EOS)[-1] == draft(999)


def test_a_closing_tag_that_was_not_taken_closes_nothing() -> None:
    play = Play(MentorSpec(rate=1, chunk=3, chooser="mentor"))
    play.drafts(" cat", "</think>")
    assert play.mentors(" dog", " ran")[-1] == draft(998)
    assert play.watched(" off", " it", " goes") == 3


def test_a_full_context_ends_the_text() -> None:
    play = Play(MentorSpec(rate=0))
    assert play.drafts("a", finish=LENGTH) == (Take(index=0, num_tokens=1), Finish(reason=FinishReason.CONTEXT))
    play = Play(MentorSpec(rate=0))
    assert play.drafts(finish=LENGTH) == (Finish(reason=FinishReason.CONTEXT),)


def test_the_budget_clamps_and_ends_the_text() -> None:
    play = Play(MentorSpec(rate=1, order="fixed"), context_of(3))
    assert decided(play.last) == (draft(3),)
    assert play.drafts(" a", " b", " c", finish=LENGTH) == (consult(max_tokens=3),)
    play.mentors(" x", " y", " z")
    assert play.chooses(A=0.1, B=0.8)[-1] == Finish(reason=FinishReason.LENGTH)


def test_small_writes_draft_tokens_at_most_before_they_are_put_in() -> None:
    play = Play(MentorSpec(rate=0, draft_tokens=2))
    assert play.drafts("a", " b", finish=LENGTH) == (Take(index=0, num_tokens=2), draft(998, most=2))


def test_a_question_that_shows_only_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"question must have \{A\} and \{B\}"):
        parse_policy("mentor", {"question": "{A} or {A}?"})
    shown = MentorSpec(rate=1, chunk=1, order="fixed", question="{B}|{A}").build()
    assert [ask.question for ask in shown.asks] == ["", "", "y|x"]


def test_a_continuation_with_a_placeholder_is_shown_as_it_is() -> None:
    play = Play(MentorSpec(rate=1, chunk=1, order="fixed", question="{A}|{B}"))
    play.drafts(" {B}")
    play.mentors(" dog")
    assert play.ask.question == "{B}|dog"


# The published loop.


@dataclass
class Loop:
    """One token after the other. What small writes ahead for a continuation is looked up again when it comes to it."""

    spec: MentorSpec
    pair: Pair
    max_tokens: int
    think_end: str
    story: Story = field(default_factory=Story)
    """Of its asides those that large writes, and the choices."""
    num_draws: int = 0

    @property
    def context(self) -> SampleContext:
        return context_of(self.max_tokens, think_end=self.think_end)

    @property
    def room(self) -> int:
        return self.max_tokens - len(self.story.tokens)

    def is_thinking(self, more: str = "") -> bool:
        return not self.think_end or self.think_end not in self.story.text + more

    def shown(self, texts: list[str]) -> str:
        text = "".join(texts)
        return text.split(self.think_end)[0] if self.think_end else text

    def run(self) -> Story:
        while self.story.reason is None and self.is_thinking() and self.room >= 1:
            self.write_token()
        answer(self.pair, self.story, self.spec.answer_role, self.room)
        return self.story

    def write_token(self) -> None:
        texts, why = self.look_ahead(SMALL, 1)
        if not texts:
            self.story.reason = why
            return
        unfinished = len(self.story.texts) - len(whole(self.story.texts))
        if self.begins_word(texts[0]) and self.is_thinking(texts[0]):
            self.num_draws += 1
            if draw(self.context, self.num_draws) < self.spec.rate:
                self.consult(unfinished)
                return
        self.story.add(self.pair, SMALL, texts)

    def begins_word(self, text: str) -> bool:
        before = self.story.text
        return bool(text.strip()) and (text[0].isspace() or not before or before[-1].isspace())

    def look_ahead(self, role: ModelRole, most: int) -> tuple[list[str], FinishReason | None]:
        """What a model writes next, and why no more."""
        texts: list[str] = []
        limit = min(most, self.room)
        can = self.pair.room(role, self.story.texts, limit)
        while len(texts) < can and self.is_thinking("".join(texts)):
            text = self.pair.next(role, [*self.story.texts, *texts])
            if text == END:
                return texts, FinishReason.EOS
            texts.append(text)
        return texts, FinishReason.CONTEXT if can < limit and self.is_thinking("".join(texts)) else None

    def consult(self, unfinished: int) -> None:
        """At a word that is drawn. unfinished: tokens before it that belong to its first character."""
        taken_back = self.story.tokens[len(self.story.tokens) - unfinished :] if unfinished else []
        del self.story.tokens[len(self.story.tokens) - unfinished :]
        own, why = self.look_ahead(SMALL, self.spec.chunk)
        while not own[-1] and why is None and len(own) < self.room:
            own, why = self.look_ahead(SMALL, len(own) + 1)
        chunk, mentor_why = self.look_ahead(LARGE, self.spec.chunk)
        words = self.shown(own).split()
        if words:
            self.story.asides.append(Aside(LARGE, "mentor", "", tuple(chunk), greedy=False))
        chunk = whole(chunk)
        others = self.shown(chunk).split()
        if not words or not others or words[0] == others[0]:
            self.story.tokens += taken_back
            self.story.add(self.pair, SMALL, own[unfinished : unfinished + 1])
            return
        if self.choose(own, chunk):
            self.story.segments.append((LARGE, "mentor", True, len(chunk)))
            self.story.add(self.pair, LARGE, chunk)
            if mentor_why is FinishReason.EOS and not self.think_end:
                self.story.reason = FinishReason.EOS
            return
        self.story.add(self.pair, SMALL, own)
        if self.is_thinking() and (why is FinishReason.EOS or (why is not None and self.room > 0)):
            self.story.reason = why

    def choose(self, own: list[str], chunk: list[str]) -> bool:
        """Whether large's continuation is taken."""
        spec = self.spec
        if spec.chooser in ("own", "mentor"):
            return spec.chooser == "mentor"
        orders = [True, False] if spec.order == "both" else [True]
        if spec.order == "drawn":
            orders = [draw(self.context, f"order {self.num_draws}") < 0.5]
        likely: list[tuple[float, float]] = []
        for own_first in orders:
            read = self.ask(self.shown(own).strip(), self.shown(chunk).strip(), own_first=own_first)
            mass = round(sum(read), 5)
            if mass == 0 or mass < spec.min_mass:
                self.say((mass, spec.min_mass, "no answer"))
                return False
            likely.append(read if own_first else read[::-1])
        of_own, of_mentor = (math.prod(both) ** (1 / len(both)) for both in zip(*likely, strict=True))
        value = round(of_mentor / (of_own + of_mentor), 5) if of_own + of_mentor else 0.5
        self.say((value, 0.5, "mentor" if value > 0.5 else "own"))
        return value > 0.5

    def say(self, verdict: Verdict) -> None:
        self.story.asides[-1].verdict = verdict

    def ask(self, own: str, mentor: str, *, own_first: bool) -> tuple[float, float]:
        """Probabilities of the letters."""
        first, second = (own, mentor) if own_first else (mentor, own)
        question = self.spec.question.replace("{A}", first).replace("{B}", second)
        role = ModelRole(self.spec.chooser)
        asked = in_question(self.story.texts, question, self.spec.opening)
        fits = len(self.story.tokens) + QUESTION_TOKENS < self.pair.limits[role]
        token = self.pair.next(role, asked) if fits else END
        found = self.pair.labels(role, asked, ("A", "B")) if fits else {}
        self.story.asides.append(Aside(role, "choose", question, () if token == END else (token,)))
        likely = [math.exp(value) if value is not None else 0.0 for value in found.values()] or [0.0, 0.0]
        return likely[0], likely[1]


SPECS = st.builds(
    MentorSpec,
    rate=st.sampled_from([0.0, 0.1, 0.24, 0.6, 1.0]),
    chunk=st.sampled_from([1, 2, 4, 16]),
    chooser=st.sampled_from(["small", "small", "small", "large", "own", "mentor"]),
    order=st.sampled_from(["drawn", "fixed", "both"]),
    min_mass=st.sampled_from([0.0, 0.4, 0.5]),
    draft_tokens=st.sampled_from([1, 3, 8, 128]),
    answer_role=st.sampled_from(WRITING_ROLES),
)


CASES: dict[str, Any] = {
    "spec": SPECS,
    "pair": pairs(" the", " cat", " the", limits=(10_000, 10_000, 10_000, 40, 12)),
    "max_tokens": st.sampled_from([1, 20, 90]),
    "think_end": st.sampled_from(["</think>", "</think>", "</think>", ""]),
    "overrun": st.integers(0, 2**16).map(random.Random),
}


@settings(max_examples=2500, derandomize=True, database=None, deadline=None)
@given(**CASES)
def test_mentor_does_as_the_published_loop(
    spec: MentorSpec, pair: Pair, max_tokens: int, think_end: str, overrun: random.Random
) -> None:
    expected = Loop(spec, pair, max_tokens, think_end).run()
    driver = Driver(spec.build(), pair, context_of(max_tokens, think_end=think_end), overrun)
    played = driver.play()
    assert (played.tokens, played.reason) == (expected.tokens, expected.reason)
    assert [aside for aside in played.asides if aside.purpose != "draft"] == expected.asides
    assert [segment for segment in played.segments if segment[1] == "mentor"] == [
        segment for segment in expected.segments if segment[1] == "mentor"
    ]
    answers = {"resume", "answer"}
    assert {trigger for role, trigger, _, _ in played.segments if role is SMALL} <= {"draft", *answers}
