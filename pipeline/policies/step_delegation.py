"""Delegation by steps: small writes until a place where large is called in, large writes from there, small goes on.

What ``random`` and ``glimpse`` share. They differ in the place, which each finds with a watcher of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.reading.cues import CueLists, cue_finder
from pipeline.policies.reading.handback import HandBack, HandBackWatcher
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Trigger
from pipeline.policies.turns import PairPolicy, Turn, TurnState, fires, whole_characters
from pipeline.samples import ModelRole


class StepState(TurnState):
    """All that is stored of such a policy with a sample, at least; what ``text`` follows is the kept text."""

    text: TextState = TextState()


StepStateT = TypeVar("StepStateT", bound=StepState)


class StepPolicy(PairPolicy[StepStateT]):
    """Hands back where a step or sentence of large ends, or after so many tokens."""

    def __init__(self, *, handback: HandBack, handback_from: float = 0.0) -> None:
        self._handback = handback
        self._handback_from = handback_from

    def _after_large(self, turn: Turn[StepStateT]) -> Transition:
        watcher = self._watch_large(turn.context, turn.state)
        handed_back = watcher is not None and fires(watcher, turn.event)
        num_written = watcher.num_kept if watcher is not None and handed_back else len(turn.texts)
        keep = whole_characters(turn.texts, num_written)
        reason = turn.why_not_back(keep, handed_back=handed_back)
        if reason is not None:
            return turn.end(reason, keep)
        reader = text_reader(turn.context, turn.state.text)
        for text in turn.texts[:keep]:
            reader.feed(text)
        return self._after_step(turn, keep, reader.state)

    def _after_step(self, turn: Turn[StepStateT], keep: int, text: TextState) -> Transition:
        """What follows the large model's text. text: the state of the text with what is kept of it."""
        return turn.let_write(ModelRole.SMALL, Trigger.RESUME, {"text": text}, keep=keep)

    @abstractmethod
    def _takeover_limit(self, context: SampleContext, state: StepStateT) -> int:
        """Most tokens of the takeover that this state waits for."""

    def _watch_large(self, context: SampleContext, state: StepStateT) -> HandBackWatcher | None:
        return HandBackWatcher(
            text_reader(context, state.text),
            limit=self._takeover_limit(context, state),
            handback=self._handback,
            handback_from=self._handback_from,
            at_break=state.text.at_break,
        )


_NO_CUES = cue_finder(CueLists(verify=(), negative=(), positive=()))


def text_reader(context: SampleContext, text: TextState) -> Reader:
    """A reader that follows breaks and the think phase, and no cues."""
    return Reader(text, _NO_CUES, window_tokens=1, think_end=context.think_end)
