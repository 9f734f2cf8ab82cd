"""Relay: the large model leads, and the small one writes the easy ends of its sentences.

Source: RelayGen, arXiv 2602.06454, and its released code ("code"); "ours" is a choice made here. Its loop, while the
model thinks:

    large writes until a switch cue, which stays      a word after which the rest of the sentence is easy: "Thus", "So"
    small writes on to the end of the sentence, or to a break

Then the small model writes the answer. Cues are chosen per pair: words after which large itself was sure, by the mean
difference between its two most likely tokens (the signal MARGIN) in what it writes alone (``calibration.cues``). The
code's own lists, 28 words for Qwen3 and 25 for R1, are of its pairs, so that none is the default here.

Only text is read, so that two vocabularies need nothing else. What differs from the code: a cue is a whole word in any
case (the code's "now" is also in "know"), and a sentence ends at a full stop before white space (the code's also ends
inside "3.14"). A cue is certain at the character after it, and the sentence's end at the white space: the one token
that showed it is thrown away. Large leads, so its end of text is the sample's; small's own end, while the model
thinks, hands back.

Each time that large leads on counts as a takeover.
"""

from __future__ import annotations

from typing import Any, Literal

from pipeline.errors import ConfigurationError
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.reading.cues import CueStream, Words, words_finder
from pipeline.policies.reading.handback import HandBackWatcher
from pipeline.policies.reading.reader import Reader
from pipeline.policies.requests import Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.step_delegation import StepState, handed_back, read_kept, text_reader
from pipeline.policies.turns import PairPolicy, Tokens, Turn, fires, first_turn
from pipeline.samples import ModelRole, WritingRole
from pipeline.signals import Readings


class RelaySpec(PolicySpec):
    """Every number of the policy. It needs switch cues, chosen for the pair."""

    name: Literal["relay"] = "relay"
    switch_cues: Words = ()
    """Words of large after which small writes on; none: the policy is refused. Code: 28 words for Qwen3, 25 for R1,
    such as thus, now, similarly, so."""
    lead_tokens: Tokens = 5
    """Tokens that large has at least written, the cue among them, before a cue lets small write. Code: 5."""
    sentence_tokens: Tokens = 512
    """Most tokens that small then writes. Ours, as a step of large in other policies; code: no limit."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer after the think phase. Code: small."""

    def build(self) -> RelayPolicy:
        """Raises ConfigurationError where there are no cues."""
        if not self.switch_cues:
            raise ConfigurationError(
                "policy relay needs switch_cues, the words after which the small model is to write on; they differ by "
                "pair: specthink calibrate JOB --cues takes them from a pilot of large alone, and the paper's examples "
                """are a start: --set 'policy.switch_cues=["thus","now","similarly","so"]'"""
            )
        return RelayPolicy(self)


class _State(StepState):
    """All that is stored of the policy with a sample."""

    num_led: int = 0
    """Tokens of the text that large has written since it leads."""
    tail: str = ""
    """The end of the text, in which a cue may have begun."""


class RelayPolicy(PairPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: RelaySpec) -> None:
        self._spec = spec
        self._finder = words_finder(spec.switch_cues)

    def start(self, context: SampleContext) -> Transition:
        return first_turn(_State(role=ModelRole.LARGE, max_tokens=context.max_tokens, trigger=Trigger.START))

    # The large model wrote.

    def _watch_large(self, context: SampleContext, state: _State) -> _LeadWatcher | None:
        return self._lead_watcher(context, state) if state.text.thinking else None

    def _after_large(self, turn: Turn[_State]) -> Transition:
        if not turn.state.text.thinking:
            return turn.carry_on({})
        watcher = self._lead_watcher(turn.context, turn.state)
        if not fires(watcher, turn.event):
            num_led = turn.state.num_led + len(turn.texts)
            return turn.carry_on({**self._read(turn, len(turn.texts)), "num_led": num_led})
        if not watcher.cue:
            return self._answer(turn, watcher.reader.position)
        keep = watcher.num_kept
        return turn.let_write(
            ModelRole.SMALL,
            Trigger.RELAY,
            self._read(turn, keep),
            keep=keep,
            max_tokens=self._spec.sentence_tokens,
            cue=watcher.cue,
        )

    # The small model wrote.

    def _watch_small(self, context: SampleContext, state: _State) -> HandBackWatcher | None:
        return self._sentence_watcher(context, state) if state.text.thinking else None

    def _after_small(self, turn: Turn[_State]) -> Transition:
        if not turn.state.text.thinking:
            return turn.carry_on({})
        keep, reason = handed_back(turn, self._sentence_watcher(turn.context, turn.state))
        if reason is not None:
            return turn.end(reason, keep)
        update = self._read(turn, keep)
        if not update["text"].thinking:
            return self._answer(turn, keep)
        return turn.let_write(ModelRole.LARGE, Trigger.LEAD, {**update, "num_led": 0}, keep=keep)

    def _answer(self, turn: Turn[_State], keep: int) -> Transition:
        """The think phase is over: let the answer be written, undisturbed."""
        role = self._spec.answer_role
        trigger = Trigger.ANSWER if role is ModelRole.LARGE else Trigger.RESUME
        return turn.let_write(role, trigger, self._read(turn, keep), keep=keep)

    def _read(self, turn: Turn[_State], keep: int) -> dict[str, Any]:
        """The state's fields about the text, with the first tokens of the piece."""
        stream = CueStream(self._finder, turn.state.tail)
        for text in turn.texts[:keep]:
            stream.feed_all(text)
        return {"text": read_kept(turn, keep), "tail": stream.tail}

    # Watchers.

    def _lead_watcher(self, context: SampleContext, state: _State) -> _LeadWatcher:
        stream = CueStream(self._finder, state.tail)
        lead_tokens = self._spec.lead_tokens - state.num_led
        return _LeadWatcher(text_reader(context, state.text), stream, lead_tokens=lead_tokens)

    def _sentence_watcher(self, context: SampleContext, state: _State) -> HandBackWatcher:
        return HandBackWatcher(
            text_reader(context, state.text),
            limit=self._spec.sentence_tokens,
            handback="sentence",
            handback_from=0.0,
        )


class _LeadWatcher:
    """Ends the large model's request after a switch cue, and at the end of the think phase.

    A cue ends with the token that holds its last character. One that comes too early is passed over.
    """

    __slots__ = ("_cues", "_last_shown", "_lead_tokens", "cue", "num_kept", "reader")

    def __init__(self, reader: Reader, cues: CueStream, *, lead_tokens: int) -> None:
        """lead_tokens: so many tokens, the cue among them, come before it counts."""
        self.reader = reader
        self.cue = ""
        """What ended the request; '' where the end of the think phase did."""
        self.num_kept = 0
        """Tokens up to the end of the cue."""
        self._cues = cues
        self._lead_tokens = lead_tokens
        self._last_shown = 0

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.reader.feed(text)
        for placed in self._cues.feed_all(text):
            end = self._last_shown if placed.is_before else self.reader.position
            is_thought = placed.is_before or self.reader.thinking
            if is_thought and end >= self._lead_tokens:
                self.cue, self.num_kept = placed.cue.words, end
                return True
        if text:
            self._last_shown = self.reader.position
        return not self.reader.thinking
