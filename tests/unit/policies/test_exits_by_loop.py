"""Exits around delegations against a plain loop: the same text, authors, requests, asides, numbers and end."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from pipeline.policies import Policy, parse_policy
from pipeline.policies.composition import compose
from pipeline.policies.exits import AgreementExit, CutExit, DeerExit, LargeExtractExit, RandomExit, ThinkBrakeExit
from pipeline.policies.protocol import PolicyState, SampleContext, Transition
from pipeline.policies.requests import Answered, Ask, Event, Finish, Generate, Insert, Take, Written
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from tests.exit_loop import Loop, Protocol, Script, piece, plain, tokenise

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE


class Candidates:
    """Small writes a step at a time; then each model is asked for a next one, and one of the two is taken."""

    roles = frozenset({SMALL, LARGE})
    asks = (Ask(role=SMALL, purpose="candidate"),)

    def start(self, context: SampleContext) -> Transition:
        return self._write(context, 0, first=0)

    def watcher(self, context: SampleContext, state: PolicyState) -> None:
        return None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        first = state["first"]
        if isinstance(event, Written):
            keep = len(event.piece)
            used = event.start_token + keep
            if event.finish is SegmentFinish.EOS or used >= context.max_tokens - 40 or first > 12:
                return Transition(state={}, keep=keep, then=Finish(reason=FinishReason.EOS))
            ask = Ask(role=SMALL, purpose="candidate", max_tokens=4)
            return Transition(state={"first": first, "used": used}, keep=keep, then=ask)
        if event.index == first:
            after = ((first, 1),) if event.piece.texts else ()
            ask = Ask(role=LARGE, purpose="second", max_tokens=4, after=after)
            return Transition(state=state | {"num": len(event.piece)}, then=ask)
        assert event.index == first + 1
        insert = (Take(index=first, num_tokens=state["num"]),) if state["num"] else ()
        wrote = self._write(context, state["used"] + state["num"], first=first + 2)
        return Transition(state=wrote.state, insert=insert, then=wrote.then)

    def _write(self, context: SampleContext, used: int, *, first: int) -> Transition:
        then = Generate(role=SMALL, max_tokens=min(12, context.max_tokens - used), trigger="step")
        return Transition(state={"first": first}, then=then)


DELEGATIONS: dict[str, Policy] = {
    "small-only": parse_policy("small-only").build(),
    "improved": parse_policy("speculative-thinking:improved", {"n1": 6, "n2": 12, "threshold": 2, "n3": 8}).build(),
    "every-break": parse_policy(
        "speculative-thinking:improved", {"every_break": True, "n1": 6, "n2": 12, "threshold": 1, "n3": 8}
    ).build(),
    "glimpse": parse_policy("glimpse", {"step_tokens": 12, "answer_role": "large"}).build(),
    "random": parse_policy("random", {"rate": 0.5, "tokens": 5}).build(),
    "code": parse_policy("speculative-thinking:code", {"n1": 6, "n2": 12, "n3": 8}).build(),
    "candidates": Candidates(),
}


def carry_out(policy: Policy, context: SampleContext, script: Script, draw: random.Random) -> Protocol:
    """The sample as a worker writes it: states stored as JSON, engines that write a little past the stop."""
    out, number = Protocol(), 0
    texts_of_asides: list[tuple[str, ...]] = []
    transition = policy.start(context)
    while True:
        for part in transition.insert:
            match part:
                case Insert(text=text, trigger=trigger):
                    out.ids += tokenise(text)
                    out.authors += ["inserted"] * len(tokenise(text))
                    out.inserted.append(trigger)
                case Take(index=index, num_tokens=count):
                    out.ids += texts_of_asides[index][:count]
                    out.authors += [f"taken {index}"] * len(texts_of_asides[index][:count])
        then = transition.then
        if isinstance(then, Finish):
            out.reason = then.reason
            return out
        state = orjson.loads(orjson.dumps(transition.state))
        number += 1
        assert number <= 10 * context.max_tokens, "nothing goes on"
        assert then.max_tokens <= context.max_tokens - len(out.ids) or isinstance(then, Ask)
        output = script.write(then, "".join(out.ids), number)
        watcher = policy.watcher(context, state)
        count, finish = len(output.texts), output.finish
        if watcher is not None:
            for at, text in enumerate(output.texts, 1):
                if watcher.feed(text, {s: values[at - 1] for s, values in output.signals.items()} or None):
                    count = min(at + draw.choice([0, 0, 1, 3]), len(output.texts))
                    finish = SegmentFinish.WATCH if count < len(output.texts) or isinstance(then, Ask) else finish
                    break
        signals = {signal: values[:count] for signal, values in output.signals.items()}
        event: Event
        start = len(out.ids)
        if isinstance(then, Ask):
            after, index = then.after, len(texts_of_asides)
            out.requests.append(("ask", then.role, then.purpose, then.question, after, then.max_tokens, start))
            texts_of_asides.append(output.texts[:count])
            written = piece(output.texts[:count])
            event = Answered(
                index=index, role=then.role, piece=written, finish=finish, start_token=start, signals=signals
            )
            out.asides.append((then.role, then.purpose, output.texts[:count], finish))
        else:
            shown = (
                then.role,
                then.max_tokens,
                str(then.trigger),
                then.cue,
                then.takes_over,
                sorted(then.signals),
                start,
            )
            out.requests.append(shown)
            written = piece(output.texts[:count])
            event = Written(role=then.role, piece=written, finish=finish, start_token=start, signals=signals)
        transition = policy.advance(context, state, event)
        out.readings.append(plain(transition.reading))
        if isinstance(event, Written):
            assert transition.keep is not None
            assert 0 <= transition.keep <= count
            out.ids += output.texts[: transition.keep]
            out.authors += [event.role.value] * transition.keep
            out.discarded.append(count - transition.keep)


def exits_of(kind: str, draw: random.Random) -> Any:
    role = draw.choice([SMALL, SMALL, LARGE])
    trial = {
        "at": draw.choice(["hesitation", "step"]),
        "every_steps": draw.choice([1, 2, 3]),
        "mean": draw.choice(["arithmetic", "geometric"]),
        "agree": draw.choice([1, 2, 3]),
        "confidence": draw.choice([0.0, 0.85, 0.95, 0.98]),
        "max_trials": draw.choice([1, 2, 10]),
        "doubts": draw.choice([(), ("but", "no")]),
        "trial_tokens": draw.choice([3, 8, 20]),
        "answer_role": role,
    }
    match kind:
        case "deer":
            return DeerExit(**trial)
        case "agreement":
            return AgreementExit(**trial)
        case "large-extract":
            return LargeExtractExit(**trial)
        case "think_brake":
            return ThinkBrakeExit(threshold=draw.choice([0.25, 1.0, 2.5]), agree=draw.choice([1, 2]), answer_role=role)
        case "random":
            return RandomExit(rate=draw.choice([0.05, 0.2, 1.0]), answer_role=role)
        case _:
            return CutExit(thinking_tokens=draw.randint(1, 60), answer_role=role)


def compare(kind: str, delegation: str, seed: int) -> tuple[Protocol, Protocol]:
    draw = random.Random(f"{kind}/{delegation}/{seed}")
    context = SampleContext(
        job_seed=seed,
        problem_id="p",
        sample_index=seed % 3,
        max_tokens=draw.choice([40, 90, 200]),
        think_end=draw.choice(["</think>"] * 9 + [""]),
        num_prompt_tokens=5,
    )
    exit, policy = exits_of(kind, draw), DELEGATIONS[delegation]
    found = carry_out(compose(policy, exit=exit), context, Script(seed), draw)
    expected = Loop(policy, exit, context, Script(seed)).run()
    return found, expected


def assert_same(found: Protocol, expected: Protocol, seed: int) -> None:
    assert found.requests == expected.requests, seed
    assert (found.ids, found.authors) == (expected.ids, expected.authors), seed
    assert found.inserted == expected.inserted, seed
    assert [aside[:2] for aside in found.asides] == [aside[:2] for aside in expected.asides], seed
    for written, needed in zip(found.asides, expected.asides, strict=True):
        assert written[2][: len(needed[2])] == needed[2], seed
    assert found.readings == expected.readings, seed
    assert found.reason == expected.reason, seed


NUM_CASES = 350
"""Of each exit around each delegation."""


@pytest.mark.slow
@pytest.mark.parametrize("delegation", DELEGATIONS)
@pytest.mark.parametrize("kind", ["deer", "agreement", "large-extract", "think_brake", "random", "cut"])
def test_an_exit_does_what_a_plain_loop_does(kind: str, delegation: str) -> None:
    closed, tried = 0, 0
    for seed in range(NUM_CASES):
        found, expected = compare(kind, delegation, seed)
        assert_same(found, expected, seed)
        closed += "exit" in found.inserted
        tried += any(aside[1] == "trial" for aside in found.asides)
    assert closed >= 10
    assert tried >= 10 or kind in ("think_brake", "random", "cut")
