"""A sample with an exit, as one would write it with two engines that block: one loop over the whole text.

Nothing of the exits is used but their specs: no states, no readers, no composition. The delegation is the policy that
they are around; everything that an exit does to it is written here once more.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.policies import Policy
from pipeline.policies.exits import CutExit, RandomExit, ThinkBrakeExit
from pipeline.policies.exits.trials import TrialExit
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.requests import Answered, Ask, Finish, Generate, Insert, Written
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish
from pipeline.signals import Signal

SMALL = ModelRole.SMALL
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH


@dataclass(frozen=True)
class Output:
    """What an engine would write if nobody stopped it."""

    texts: tuple[str, ...]
    signals: dict[Signal, tuple[float | None, ...]]
    finish: SegmentFinish


TEXT = (" a", " b", "Wait", " wait", ",", " Yes", " check", "Alternatively", ".\n\n", ".\n\n", ".\n\n", "\n\n", "\n",
        " ", "", "é", "\ufffd", "</think>", "</thi", "nk>", " Wait.\n\n", "waiting", ".\n")  # fmt: skip
TRIAL = ("{", "{", "{1", "1", "2", "12", "}", "}", "} but", "} so", " but", "\\", "\\}", "no", "\n", " ", "")
WEIGHTS = [6, 6, 3, 2, 2, 1, 1, 1, 5, 3, 3, 2, 1, 1, 1, 1, 1, 0.25, 0.1, 0.1, 1, 1, 1]


def text_of(draw: random.Random, num_tokens: int, *, is_long: bool) -> list[str]:
    """So many tokens; of long steps, each with a hesitation where its window ends."""
    texts: list[str] = [] if is_long else draw.choices(TEXT, WEIGHTS, k=num_tokens)
    while len(texts) < num_tokens:
        texts += [*draw.choices((" a", " b", "é"), k=draw.randint(13, 17)), draw.choice((" wait", "Alternatively"))]
        texts += [*draw.choices((" a", " b", ","), k=draw.randint(0, 2)), ".\n\n"]
    return texts[:num_tokens]


@dataclass
class Script:
    """Engines that write the same for the same request. Every fourth seed has long steps."""

    seed: int

    def write(self, request: Generate | Ask, prefix: str, number: int) -> Output:
        draw = random.Random(f"{self.seed}/{request.role}/{number}/{prefix}")
        most = request.max_tokens
        is_long = self.seed % 4 == 0
        if isinstance(request, Ask) and request.purpose == "trial":
            if draw.random() < 0.75:
                texts = [
                    "{",
                    draw.choice(["12", "12", "12", "13", " 1 2", "12 but"]),
                    draw.choice(["}", "}", "}\n", "}."]),
                ]
                texts += draw.choices(TRIAL, k=draw.randint(0, 3))
            else:
                texts = draw.choices(TRIAL, k=draw.randint(0, 24))
        else:
            texts = text_of(draw, draw.randint(0, 60), is_long=is_long)
        finish = LENGTH if len(texts) >= most or draw.random() < 0.05 else EOS
        if not isinstance(request, Ask) and finish is EOS and draw.random() < 0.6:
            texts += text_of(draw, most, is_long=is_long)
            finish = LENGTH
        texts = texts[:most]
        sure = draw.random() < 0.6
        signals = {signal: tuple(self._value(draw, signal, sure) for _ in texts) for signal in sorted(request.signals)}
        return Output(tuple(texts), signals, finish)

    def _value(self, draw: random.Random, signal: Signal, sure: bool) -> float | None:
        if draw.random() < (0.01 if signal is Signal.LOGPROB else 0.3):
            return None
        spread = {Signal.LOGPROB: 0.02 if sure else 0.3, Signal.FIRST_MARGIN: 4.0}.get(signal, 1.3)
        value = round(draw.random() * spread, 5)
        return -value if signal is Signal.LOGPROB else value


@dataclass
class Protocol:
    """What became of a sample."""

    ids: list[str] = field(default_factory=list)
    authors: list[str] = field(default_factory=list)
    inserted: list[str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    asides: list[tuple[str, str, tuple[str, ...], str]] = field(default_factory=list)
    readings: list[Any] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    reason: FinishReason | None = None


def piece(texts: Sequence[str]) -> Piece:
    return Piece(token_ids=tuple(range(len(texts))), texts=tuple(texts))


def tokenise(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def whole(texts: Sequence[str]) -> list[str]:
    texts = list(texts)
    while texts and (texts[-1] == "" or texts[-1].endswith("\ufffd")):
        texts.pop()
    return texts


class Reader:
    """The think phase read from its whole text. An inserted sentence is one unit."""

    def __init__(self, units: Sequence[str], tag: str) -> None:
        self.units, self.tag = units, tag

    def thinking(self, number: int) -> bool:
        return self.tag not in "".join(self.units[: number + 1])

    def is_break(self, number: int) -> bool:
        if number < 0 or "\n" not in self.units[number] or not self.thinking(number):
            return False
        text = "".join(self.units[: number + 1])
        return text[len(text.rstrip()) :].count("\n") >= 2

    def lengthens(self, number: int) -> bool:
        return self.is_break(number) and self.units[number].strip() == ""

    def ends_step(self, number: int) -> bool:
        return self.is_break(number) and not (self.is_break(number - 1) and self.lengthens(number))

    def begins_step(self, number: int) -> bool:
        return self.thinking(number) and self.is_break(number - 1) and not self.lengthens(number)

    def hesitates(self, number: int, words: Sequence[str]) -> bool:
        """Whether the step that begins with that unit begins with a hesitation."""
        if not self.begins_step(number):
            return False
        window: list[str] = []
        for at in range(number, min(number + 16, len(self.units))):
            if not self.thinking(at):
                break
            window.append(self.units[at])
            if self.ends_step(at):
                break
        pattern = r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)"
        return re.search(pattern, "".join(window).casefold()) is not None


@dataclass
class Loop:
    """One sample."""

    policy: Policy
    exit: Any
    context: SampleContext
    script: Script
    out: Protocol = field(default_factory=Protocol)
    units: list[str] = field(default_factory=list)
    margins: list[float | str | None] = field(default_factory=list)
    """Of each unit: its margin, None where it is out of sight, "unread" where it was not read."""
    owners: list[str] = field(default_factory=list)
    aside_texts: list[tuple[str, ...]] = field(default_factory=list)
    num_requests: int = 0
    trials: list[str] = field(default_factory=list)
    """The answers, '' where it was none."""
    since: int = 0
    """Units up to the last trial."""
    lets_pass: bool = False
    """Whether the delegation threw away what was stopped for a trial alone: its next piece is not stopped for one."""

    # What exits decide.

    def due(self, units: list[str], margins: list[Any]) -> Any:
        """Whether the phase may end after the last unit, and by which number."""
        reader, last, exit = Reader(units, self.context.think_end), len(units) - 1, self.exit
        if not units or not reader.thinking(last):
            return None
        if isinstance(exit, CutExit):
            raise AssertionError("cut is decided by tokens")
        if isinstance(exit, RandomExit):
            if not reader.ends_step(last):
                return None
            number = sum(map(reader.ends_step, range(len(units))))
            source = f"exit/{self.context.job_seed}/{self.context.sample_index}/{number}/{self.context.problem_id}"
            drawn = int.from_bytes(hashlib.sha256(source.encode()).digest()[:7]) / 2**56
            return (drawn, exit.rate, "exit") if drawn < exit.rate else None
        if isinstance(exit, ThinkBrakeExit):
            if not reader.begins_step(last):
                return None
            read = [margins[at] for at in range(len(units)) if reader.begins_step(at) and margins[at] != "unread"]
            if margins[last] == "unread" or len(read) < exit.agree:
                return None
            if any(margin is None or margin > exit.threshold for margin in read[-exit.agree :]):
                return None
            return (margins[last], exit.threshold, "exit")
        assert isinstance(exit, TrialExit)
        if not reader.ends_step(last) or len(self.trials) >= exit.max_trials:
            return None
        if exit.at == "hesitation":
            places = range(self.since, len(units))
            return True if any(reader.hesitates(at, exit.hesitations) for at in places) else None
        return True if sum(map(reader.ends_step, range(self.since, len(units)))) >= exit.every_steps else None

    def answer_of(self, texts: Sequence[str], signals: Any, finish: SegmentFinish) -> tuple[str, float | None]:
        exit = self.exit
        text = "".join(texts)
        box = balanced(text)
        answer = "" if box is None else "".join(box.casefold().split())
        logprobs = signals[Signal.LOGPROB][: len(texts)][1:]
        sure = None
        if logprobs and None not in logprobs:
            if exit.mean == "arithmetic":
                sure = round(sum(math.exp(value) for value in logprobs) / len(logprobs), 5)
            else:
                sure = round(math.prod(math.exp(value) for value in logprobs) ** (1 / len(logprobs)), 5)
        doubted = any(re.search(rf"\b{word}\b", text, re.I) for word in exit.doubts)
        if doubted or (exit.confidence and (sure is None or sure <= exit.confidence)):
            answer = ""
        return answer, sure

    # The loop.

    def run(self) -> Protocol:
        transition = self.policy.start(self.context)
        while not isinstance(transition.then, Finish):
            self.put_in(transition)
            transition = self.ask(transition) if isinstance(transition.then, Ask) else self.generate(transition)
        self.put_in(transition)
        self.out.reason = transition.then.reason
        return self.out

    def put_in(self, transition: Transition) -> None:
        for part in transition.insert:
            if isinstance(part, Insert):
                self.out.ids += tokenise(part.text)
                self.out.authors += ["inserted"] * len(tokenise(part.text))
                self.out.inserted.append(part.trigger)
                self.add([part.text])
            else:
                texts = self.aside_texts[self.number_of(part.index)][: part.num_tokens]
                self.out.ids += texts
                self.out.authors += [f"taken {self.number_of(part.index)}"] * len(texts)
                self.add(texts)

    def add(self, units: Sequence[str], margins: Sequence[Any] | None = None) -> None:
        self.units += units
        self.margins += margins if margins is not None else ["unread"] * len(units)

    def number_of(self, own: int) -> int:
        """The sample's number of the delegation's own aside."""
        return [number for number, owner in enumerate(self.owners) if owner == "policy"][own]

    def watch(self, output: Output, stops: Callable[[int], bool]) -> tuple[int, bool]:
        for count in range(1, len(output.texts) + 1):
            if stops(count):
                return count, True
        return len(output.texts), False

    def call(self, request: Generate | Ask) -> Output:
        self.num_requests += 1
        return self.script.write(request, "".join(self.out.ids), self.num_requests)

    def ask(self, transition: Transition) -> Transition:
        ask = transition.then
        assert isinstance(ask, Ask)
        after = tuple((self.number_of(index), count) for index, count in ask.after)
        self.out.requests.append(("ask", ask.role, ask.purpose, ask.question, after, ask.max_tokens, len(self.out.ids)))
        output = self.call(ask)
        event = self.answered(ask, output, len(output.texts), output.finish)
        own = sum(owner == "policy" for owner in self.owners) - 1
        found = self.policy.advance(self.context, transition.state, Answered(**{**event, "index": own}))
        self.out.readings.append(plain(found.reading))
        return found

    def answered(
        self, ask: Ask, output: Output, count: int, finish: SegmentFinish, owner: str = "policy"
    ) -> dict[str, Any]:
        self.owners.append(owner)
        self.aside_texts.append(output.texts[:count])
        self.out.asides.append((ask.role, ask.purpose, output.texts[:count], finish))
        cut = {signal: values[:count] for signal, values in output.signals.items()}
        return {
            "index": len(self.owners) - 1, "role": ask.role, "piece": piece(output.texts[:count]), "finish": finish,
            "start_token": len(self.out.ids), "signals": cut,
        }  # fmt: skip

    def generate(self, transition: Transition) -> Transition:
        then, start = transition.then, len(self.out.ids)
        assert isinstance(then, Generate)
        thinking = not self.units or self.context.think_end not in "".join(self.units)
        acts = then.role is SMALL and thinking and bool(self.context.think_end)
        signals = then.signals | (self.exit.signals if acts else frozenset())
        self.record(then, signals, start)
        output = self.call(Generate(role=then.role, max_tokens=then.max_tokens, trigger="x", signals=signals))
        margins: Any = output.signals.get(Signal.FIRST_MARGIN) if acts else None
        margins = list(margins) if margins is not None else ["unread"] * len(output.texts)
        inner = self.policy.watcher(self.context, transition.state)
        lets_pass, self.lets_pass = self.lets_pass, False
        by_policy = False

        def is_due(count: int) -> Any:
            if not acts or lets_pass:
                return None
            if isinstance(self.exit, CutExit):
                tag = self.context.think_end
                is_over = tag in "".join([*self.units, *output.texts[:count]])
                return None if is_over or start + count < self.exit.thinking_tokens else ()
            return self.due([*self.units, *output.texts[:count]], self.margins + margins[:count])

        def stops(count: int) -> bool:
            nonlocal by_policy
            reading = {signal: values[count - 1] for signal, values in output.signals.items()} or None
            by_policy = inner is not None and inner.feed(output.texts[count - 1], reading)
            return is_due(count) is not None or by_policy

        count, _stopped = self.watch(output, stops)
        why = is_due(count) if count else None
        if why is not None and not isinstance(self.exit, TrialExit):
            back = 1 if isinstance(self.exit, ThinkBrakeExit) else 0
            return self.close(then, output, whole(output.texts[: count - back]), why)
        finish = output.finish if count == len(output.texts) else WATCH
        event = Written(
            role=then.role,
            piece=piece(output.texts[:count]),
            finish=finish,
            start_token=start,
            signals={signal: values[:count] for signal, values in output.signals.items()},
        )
        found = self.policy.advance(self.context, transition.state, event)
        self.keep(then.role, output.texts[: found.keep], count - (found.keep or 0), margins[: found.keep])
        self.lets_pass = why is not None and not by_policy and (found.keep or 0) < count
        next_is_small = isinstance(found.then, Generate) and found.then.role is SMALL and not found.insert
        due_now = self.due_now(start + (found.keep or 0)) if found.keep and not isinstance(found.then, Finish) else None
        if due_now is not None and not isinstance(self.exit, TrialExit) and next_is_small:
            self.out.discarded.pop()
            del self.units[len(self.units) - (found.keep or 0) :], self.margins[len(self.margins) - (found.keep or 0) :]
            del self.out.ids[start:], self.out.authors[start:]
            return self.close(then, output, list(output.texts[: found.keep]), due_now)
        self.out.readings.append(plain(found.reading))
        has_room = self.context.max_tokens - len(self.out.ids) - len(self.closing.encode()) - 1 >= 1
        if (
            due_now is not None
            and isinstance(self.exit, TrialExit)
            and (then.role is SMALL or next_is_small)
            and has_room
        ):
            return self.try_answer(found)
        return found

    def due_now(self, num_tokens: int) -> Any:
        if not self.context.think_end:
            return None
        if isinstance(self.exit, CutExit):
            over = self.context.think_end in "".join(self.units)
            return () if not over and num_tokens >= self.exit.thinking_tokens else None
        return self.due(self.units, self.margins)

    def try_answer(self, found: Transition) -> Transition:
        exit = self.exit
        ask = Ask(
            role=exit.by, purpose="trial", question=exit.inducer, max_tokens=exit.trial_tokens,
            signals=frozenset({Signal.LOGPROB}),
        )  # fmt: skip
        self.out.requests.append(("ask", ask.role, "trial", ask.question, (), ask.max_tokens, len(self.out.ids)))
        output = self.call(ask)
        count, stopped = self.watch(output, lambda count: balanced("".join(output.texts[:count])) is not None)
        finish = output.finish if count == len(output.texts) and not stopped else WATCH
        self.answered(ask, output, count, finish, owner="exit")
        answer, sure = self.answer_of(output.texts[:count], output.signals, finish)
        self.trials.append(answer)
        self.since = len(self.units)
        equal = 0
        while answer and equal < len(self.trials) and self.trials[-1 - equal] == answer:
            equal += 1
        accepted = equal >= exit.agree
        outcome = "exit" if accepted else "go_on"
        if exit.confidence:
            self.out.readings.append(None if sure is None else (sure, exit.confidence, outcome))
        else:
            self.out.readings.append((equal, exit.agree, outcome))
        return self.finish_with_answer() if accepted else found

    @property
    def closing(self) -> str:
        return f"\n{self.context.think_end}\n\n"

    def keep(self, role: ModelRole, texts: Sequence[str], discarded: int, margins: Sequence[Any]) -> None:
        self.out.ids += texts
        self.out.authors += [role.value] * len(texts)
        self.out.discarded.append(discarded)
        self.add(texts, margins)

    def close(self, then: Generate, output: Output, texts: list[str], why: Any) -> Transition:
        self.keep(then.role, texts, 0, ["unread"] * len(texts))
        self.out.discarded[-1] = -1  # how much was thrown away depends on when the engine stopped
        room = self.context.max_tokens - len(self.out.ids) - len(self.closing.encode()) - 1
        self.out.readings.append((tuple(why) or None) if room >= 1 else None)
        if room < 1:
            return Transition(state={}, keep=0, then=Finish(reason=FinishReason.LENGTH))
        return self.finish_with_answer()

    def finish_with_answer(self) -> Transition:
        self.put_in(
            Transition(
                state={}, insert=(Insert(text=self.closing, trigger="exit"),), then=Finish(reason=FinishReason.EOS)
            )
        )
        room = (
            self.context.max_tokens - (len(self.out.ids) - len(tokenise(self.closing))) - len(self.closing.encode()) - 1
        )
        while True:
            request = Generate(role=self.exit.answer_role, max_tokens=room, trigger="answer")
            self.record(request, frozenset(), len(self.out.ids))
            output = self.call(request)
            self.keep(request.role, output.texts, 0, ["unread"] * len(output.texts))
            self.out.readings.append(None)
            asked, room = room, self.context.max_tokens - len(self.out.ids)
            reason = None
            if output.finish is EOS:
                reason = FinishReason.EOS
            elif room <= 0:
                reason = FinishReason.LENGTH
            elif len(output.texts) < asked:
                reason = FinishReason.CONTEXT
            if reason is not None:
                return Transition(state={}, keep=0, then=Finish(reason=reason))

    def record(self, then: Generate, signals: frozenset[Signal], start: int) -> None:
        self.out.requests.append(
            (then.role, then.max_tokens, str(then.trigger), then.cue, then.takes_over, sorted(signals), start)
        )


def balanced(text: str) -> str | None:
    """What stands between the brace that a text begins with and the one that closes it."""
    text = text.lstrip()
    if text[:1] != "{":
        return None
    depth, at = 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[1:at]
        at += 1
    return None


def plain(reading: Any) -> Any:
    return None if reading is None else (reading.value, reading.threshold, reading.outcome)
