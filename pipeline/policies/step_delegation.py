"""Delegation by steps: small writes until a place where large is called in, large writes from there, small goes on.

What ``random`` and the policies of ``thinking_steps`` share. They differ in the place, which each finds with a watcher
of its own.
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
from pipeline.samples import FinishReason, ModelRole


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
        keep, reason = handed_back(turn, self._watch_large(turn.context, turn.state))
        if reason is not None:
            return turn.end(reason, keep)
        return self._after_step(turn, keep, read_kept(turn, keep))

    def _after_step(self, turn: Turn[StepStateT], keep: int, text: TextState) -> Transition:
        """What follows the large model's text. text: the state of the text with what is kept of it."""
        return turn.let_write(ModelRole.SMALL, Trigger.RESUME, {"text": text}, keep=keep)

    @abstractmethod
    def _watch_large(self, context: SampleContext, state: StepStateT) -> HandBackWatcher | None: ...

    def _handback_watcher(self, context: SampleContext, state: StepStateT, *, limit: int) -> HandBackWatcher:
        """limit: most tokens of the takeover that this state waits for."""
        return HandBackWatcher(
            text_reader(context, state.text),
            limit=limit,
            handback=self._handback,
            handback_from=self._handback_from,
        )


def handed_back(turn: Turn[StepStateT], watcher: HandBackWatcher | None) -> tuple[int, FinishReason | None]:
    """How much of a piece stays that is handed back, and why the sample ends with it; None where it goes on."""
    num_kept = watcher.num_kept if watcher is not None and fires(watcher, turn.event) else None
    keep = whole_characters(turn.texts, len(turn.texts) if num_kept is None else num_kept)
    return keep, turn.why_not_back(keep, handed_back=num_kept is not None)


def read_kept(turn: Turn[StepStateT], keep: int) -> TextState:
    """The state of the text with the first tokens of the piece."""
    reader = text_reader(turn.context, turn.state.text)
    for text in turn.texts[:keep]:
        reader.feed(text)
    return reader.state


_NO_CUES = cue_finder(CueLists(verify=(), negative=(), positive=()))


def text_reader(context: SampleContext, text: TextState) -> Reader:
    """A reader that follows breaks and the think phase, and no cues."""
    return Reader(text, _NO_CUES, window_tokens=1, think_end=context.think_end)
