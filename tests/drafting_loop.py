"""Loops in which small drafts steps that somebody judges, and large writes what does not stay: one model at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline.samples import FinishReason, ModelRole
from tests.asking_pair import END, LARGE, SMALL, Aside, Pair, Story, answer, whole


class DraftedSpec(Protocol):
    """The values that these loops read of their policy's."""

    @property
    def steps_per_review(self) -> int: ...

    @property
    def step_tokens(self) -> int: ...

    @property
    def answer_role(self) -> ModelRole: ...


_SpecT = TypeVar("_SpecT", bound=DraftedSpec)


@dataclass
class DraftingLoop(ABC, Generic[_SpecT]):
    """Of a policy ``begin`` and ``review``, and what is done once large has written.

    is_closed: small passes a place where large had nothing to say, and is not judged.
    """

    spec: _SpecT
    pair: Pair
    max_tokens: int
    think_end: str
    story: Story = field(default_factory=Story)
    is_closed: bool = False

    @property
    def room(self) -> int:
        return self.max_tokens - len(self.story.tokens)

    def is_thinking(self, more: list[str] | None = None) -> bool:
        return not self.think_end or self.think_end not in "".join([*self.story.texts, *(more or [])])

    @abstractmethod
    def begin(self) -> None:
        """What is written before the first draft."""

    @abstractmethod
    def review(self, texts: list[str], ends: list[int]) -> int | None:
        """The first step of a draft that does not stay."""

    def large_has_written(self, texts: list[str], trigger: str) -> None:
        """After a step of large's, where the text goes on."""

    def run(self) -> Story:
        self.begin()
        while self.story.reason is None and self.is_thinking() and self.room >= 1:
            self.draft_and_review()
        answer(self.pair, self.story, self.spec.answer_role, self.room)
        return self.story

    def stream(self, role: ModelRole, limit: int, num_steps: int) -> tuple[list[str], list[int], FinishReason | None]:
        """Tokens up to the last of so many steps; why the model wrote no more, None where it was to stop."""
        texts: list[str] = []
        ends: list[int] = []
        can = self.pair.room(role, self.story.texts, limit)
        # What an unfinished character will be is not known: the text that ends with one is at no break.
        at_break = self.story.text.endswith("\n\n") and self.story.texts[-1] != ""
        while len(texts) < can:
            before = self.story.text + "".join(texts)
            text = self.pair.next(role, [*self.story.texts, *texts])
            if text == END:
                return texts, ends, FinishReason.EOS
            texts.append(text)
            lengthens = not text.strip("\n") and at_break
            at_break = text != "" and (before + text).endswith("\n\n")
            is_over = not self.is_thinking(texts)
            if is_over or (not lengthens and "\n" in text and (before + text).endswith("\n\n")):
                ends.append(len(texts))
            if is_over or len(ends) == num_steps:
                return texts, ends, None
        return texts, ends, FinishReason.CONTEXT if can < limit else FinishReason.LENGTH

    def write_step(self, trigger: str) -> int:
        """Large writes a step; how many tokens of it stay."""
        asked = min(self.room, self.spec.step_tokens)
        texts, _, why = self.stream(LARGE, asked, 1)
        if why is FinishReason.LENGTH and asked == self.spec.step_tokens:
            why = None  # its step is over
        texts = whole(texts)
        self.story.put(self.pair, LARGE, trigger, texts, takes_over=trigger == "rejected")
        if why is FinishReason.EOS and self.think_end:
            why = None  # it has nothing more to say here
        if why is FinishReason.EOS or (why is FinishReason.CONTEXT and self.room > 0):
            self.story.reason = why
        elif self.room < 1:
            self.story.reason = FinishReason.LENGTH
        if self.story.reason is None and self.is_thinking():
            self.large_has_written(texts, trigger)
        return len(texts)

    def draft_and_review(self) -> None:
        num_steps = 1 if self.is_closed else self.spec.steps_per_review
        texts, ends, why = self.stream(SMALL, min(self.room, self.spec.step_tokens * num_steps), num_steps)
        self.story.asides.append(Aside(SMALL, "draft", "", tuple(texts), greedy=False))
        stay = whole(texts) or texts
        if len(stay) > (ends[-1] if ends else 0) and why is not None:
            ends.append(len(stay))
        if not ends and (why is FinishReason.CONTEXT or self.is_closed):
            self.story.reason = why
            return
        rejected = None if self.is_closed else self.review(texts, ends) if ends else 0
        if rejected is not None:
            if rejected:
                self.story.put(self.pair, SMALL, "draft", texts[: ends[rejected - 1]])
            self.let_large_write()
            return
        self.story.put(self.pair, SMALL, "draft", texts[: ends[-1]])
        self.is_closed = self.is_closed and why is not None
        if self.is_thinking() and (why is FinishReason.EOS or (why is FinishReason.CONTEXT and self.room > 0)):
            self.story.reason = why

    def let_large_write(self) -> None:
        """Where a step does not stay, or small drafts nothing."""
        self.is_closed = self.write_step("rejected") == 0

    def judged(self, texts: list[str]) -> list[str]:
        """What was thought, without the tokens of the closing tag."""
        if self.is_thinking(texts):
            return texts
        place = len((self.story.text + "".join(texts)).partition(self.think_end)[0]) - len(self.story.text)
        lengths = [len("".join(texts[: count + 1])) for count in range(len(texts))]
        return texts[: next(count for count, length in enumerate(lengths) if length > place)]
