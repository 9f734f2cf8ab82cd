"""Each preset of Speculative Thinking against the plain loop of tests/reference_loops.py, on thousands of scripts."""

from __future__ import annotations

import itertools
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.policies.protocol import Policy, SampleContext, Transition, Watcher
from pipeline.policies.requests import Finish, Generate, Insert, Written
from pipeline.policies.speculative_thinking.improved import (
    ImprovedInstructSpec,
    ImprovedRules,
    SpeculativeThinkingSpec,
)
from pipeline.policies.speculative_thinking.paper import PaperSpec
from pipeline.policies.speculative_thinking.released_code import CodeSpec
from pipeline.samples import Author, FinishReason, ModelRole, Piece, SegmentFinish
from tests.decisions import Keep, decided, delegation_state
from tests.reference_loops import (
    Answer,
    Asked,
    ContextFull,
    Protocol,
    Sample,
    Token,
    code_loop,
    improved_loop,
    paper_loop,
    tokenise,
)

THOROUGH = settings(
    max_examples=2000,
    derandomize=True,  # the same cases everywhere
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
END = "END"
"""A model's end of sequence in a script."""
PHRASES = [phrase.split("|") for phrase in (
    # breaks, whole, split over tokens, inside a token
    ".\n\n", "\n\n", "\n|\n", ")\n\n  ", "\n||\n", "\n\n So", "a\n\nb", "\n", "a|\n\n|b", ".\n\n",
    # sentences that begin with a cue, or nearly
    "\n\n|Wait|,", ".\n\n| Wa|it|.", "\n\n|yes|,", ".\n\n| check|:", "\n\n| a| b| wait|,", "\n\n|yes| yes| wait|.",
    ".\n\n| think|\n\n|again|.", "\n\n| think| again|.", ".\n\n|Ba|yes| a", "\n\n| check|ers", "\n\n| final| answer|:",
    # cues anywhere
    " Wait|,", "wait", " Wa|it", " another| a", " hold| on|,", " check|,", " re|cap|.", " final| answer", " confident",
    # what is none
    " a", " b| a", " a| b| a", "ing", "é", "", "\ufffd", " ", "3|.|14", "? | So", "。", "a|.| So",
    # ends of the think phase and of the text
    "</think>", "</|think|>", "END", "END", " check|END", "\n\n| recap|.|END",
)]  # fmt: skip


LAYOUT = [phrase.split("|") for phrase in (
    # lines that need what follows, and their breaks
    "\n\n|#| Step|\n\n", "\n\n|**|Step| 1|:|**|\n\n", "\n|__|a|__|\n\n", " we| get|:|\n\n", " =|\n\n", "\n|1|.|\n\n",
    "\n(|b|)|\n\n", "\n-|\n\n", " a|,|**|\n\n", "\\\\|\n\n", "\n\n|#######| a|\n\n", "\n|xi|.|\n\n",
    # formulas and code, open and closed, over a break and behind one
    "\n\n|\\[|\n\n", "\\|[|\n", "\n|\\]|\n\n", "\n\n|$$|\n\n", "$|$\n\n", "\\begin{a}|\n\n", "\n\n\\|begin|{a}|\n",
    "\\end{a}|\n\n", "\n\n|```|py|\n\n", "\n``|`|\n\n", "\n\n|~|~~|\n", "\n\n|\\|a", "\n\n|$|a", "\n\n\\]|\n\n",
    # what is indented, and what is a step of its own
    "\n\n|  |a", "\n\n  |b", "\n\n|\t|a", "\n\n| a", "\n\n|So", ".|\n\n|- |a", "\n\n|\n|a", "\n\n|\n  |a", "\r\n\r\n|a",
    ".\n\n", "\n\n", "\n\n| Wait|,", "\n\n|yes|,", " a", " check|,", "END", "</think>",
)]  # fmt: skip


@dataclass(frozen=True)
class Engines:
    """Two models whose answers depend on (role, text so far, number of the request) alone."""

    scripts: dict[ModelRole, list[str]]
    context_sizes: dict[ModelRole, int]

    def write(self, role: ModelRole, text: str, num_tokens: int, number: int, max_tokens: int) -> Answer:
        """One request, as an engine that blocks answers it."""
        room = self.context_sizes[role] - num_tokens
        if room < 1:
            raise ContextFull
        tokens = list(itertools.islice(self.stream(role, text, number), min(max_tokens, room)))
        ended = len(tokens) < min(max_tokens, room)
        return Answer(tokens, ended=ended, full=not ended and room < max_tokens)

    def stream(self, role: ModelRole, text: str, number: int) -> Any:
        """Token by token, to the model's end."""
        script = self.scripts[role]
        start = zlib.crc32(f"{role}{number}{text}".encode())
        for index in itertools.count():
            word = script[(start + index) % len(script)]
            if word == END:
                return
            yield Token(1000 * number + index, word)


def drive(policy: Policy, context: SampleContext, engines: Engines, overrun: random.Random) -> Protocol:
    """Play a sample as a worker does: requests that a watcher ends, late; states that are stored between them."""
    protocol = Protocol()
    peeked: list[Token] = []
    transition = policy.start(context)
    while True:
        state = json.loads(json.dumps(transition.state))
        request = decided(transition)[-1]
        if isinstance(request, Finish):
            protocol.reason = request.reason
            return protocol
        assert isinstance(request, Generate)
        assert len(protocol.asked) <= 20 * context.max_tokens + 20, "the two make no progress"
        start_token = len(protocol.ids)
        counter = delegation_state(state)
        numbers = (counter["reflections"], counter["n3"], counter["threshold"])
        protocol.asked.append(
            Asked(request.role, request.max_tokens, request.trigger, request.cue, start_token, *numbers)
        )
        try:
            answer = engines.write(request.role, protocol.text, start_token, len(protocol.asked), request.max_tokens)
        except ContextFull:
            answer = Answer([], full=True)  # a worker says so with an empty piece
        tokens, finish = read_along(answer, policy.watcher(context, state), overrun)
        event = Written(role=request.role, piece=piece(tokens), finish=finish, start_token=start_token)
        transition = policy.advance(context, state, event)
        if request.trigger == "peek":
            peeked = tokens
        carry_out(protocol, transition, tokens, Author(request.role), peeked)


def piece(tokens: list[Token]) -> Piece:
    return Piece(token_ids=tuple(token.id for token in tokens), texts=tuple(token.text for token in tokens))


def read_along(answer: Answer, watcher: Watcher | None, overrun: random.Random) -> tuple[list[Token], SegmentFinish]:
    """What an engine gives whose request the watcher ends: a few more tokens, its end perhaps among them."""
    finish = SegmentFinish.EOS if answer.ended else SegmentFinish.LENGTH
    if watcher is None:
        return answer.tokens, finish
    for read, token in enumerate(answer.tokens, 1):
        if watcher.feed(token.text):
            last = read + overrun.choice([0, 0, 1, 3, 30])
            return answer.tokens[:last], SegmentFinish.WATCH if last <= len(answer.tokens) else finish
    return answer.tokens, finish


def carry_out(
    protocol: Protocol, transition: Transition, tokens: list[Token], author: Author, peeked: list[Token]
) -> None:
    keep, *inserts, last = decided(transition)
    assert isinstance(keep, Keep)
    assert isinstance(last, Generate | Finish)
    protocol.keep(tokens[: keep.num_tokens], author)
    for insert in inserts:
        assert isinstance(insert, Insert)
        put_back = insert.trigger == "peek_kept"
        words = peeked if put_back else tokenise(insert.text)
        assert insert.text == "".join(word.text for word in words)
        protocol.insert(words, insert.trigger)


RULES: dict[str, st.SearchStrategy[Any]] = {
    "n1": st.integers(1, 6),
    "n2": st.integers(6, 12),
    "n3": st.integers(1, 6),
    "n3_step": st.integers(0, 3),
    "n3_max": st.integers(6, 9),
    "threshold": st.integers(1, 3),
    "threshold_step": st.integers(0, 2),
    "threshold_max": st.integers(3, 5),
    "inserted_sentence": st.sampled_from(["Check it:", "So.\n\n"]),
    "opening_tokens": st.sampled_from([0] * 7 + [4]),
    "every_break": st.sampled_from([False] * 7 + [True]),
}


def engines_of(phrases: list[list[str]]) -> st.SearchStrategy[Engines]:
    script = st.lists(st.sampled_from(phrases), min_size=2, max_size=16).map(lambda each: [*itertools.chain(*each)])
    return st.builds(
        lambda small, large, sizes: Engines({ModelRole.SMALL: small, ModelRole.LARGE: large}, sizes),
        script,
        script,
        st.fixed_dictionaries(dict.fromkeys(ModelRole, st.sampled_from([10**6] * 7 + [40]))),
    )


ENGINES = engines_of(PHRASES)
OVERRUN = st.integers(0, 2**16).map(random.Random)
CONTEXTS = st.builds(
    SampleContext,
    job_seed=st.just(0),
    problem_id=st.just("p"),
    sample_index=st.just(0),
    max_tokens=st.sampled_from([120] * 5 + [60, 12, 1]),
    think_end=st.sampled_from(["</think>", "</think>", ""]),
    num_prompt_tokens=st.integers(0, 12),
)


def check_same(
    spec: CodeSpec | PaperSpec | ImprovedRules,
    loop: Callable[[Sample], FinishReason],
    context: SampleContext,
    engines: Engines,
    overrun: random.Random,
) -> None:
    sample = Sample(
        spec=spec,
        max_tokens=context.max_tokens,
        think_end=context.think_end,
        num_prompt_tokens=context.num_prompt_tokens,
        engine=engines.write,
    )
    expected = sample.run(loop)
    seen = drive(spec.build(), context, engines, overrun)
    assert seen.asked == expected.asked
    assert seen == expected
    assert len(seen.ids) <= context.max_tokens


CODE_CASES: dict[str, Any] = {
    "spec": st.builds(
        CodeSpec,
        **RULES | {"n2": st.integers(1, 12)},
        choose_large=st.booleans(),
        draft_tokens=st.integers(4, 30),
        break_within=st.sampled_from([1, 5]),
    ),
    "context": CONTEXTS,
    "engines": ENGINES,
    "overrun": OVERRUN,
}


@THOROUGH
@given(**CODE_CASES)
def test_the_preset_code_does_as_the_released_loop(
    spec: CodeSpec, context: SampleContext, engines: Engines, overrun: random.Random
) -> None:
    check_same(spec, code_loop, context, engines, overrun)


PAPER_CASES: dict[str, Any] = {
    "spec": st.builds(PaperSpec, **RULES, window_tokens=st.integers(1, 8)),
    "context": CONTEXTS,
    "engines": ENGINES,
    "overrun": OVERRUN,
}


@THOROUGH
@given(**PAPER_CASES)
def test_the_preset_paper_does_as_its_plain_loop(
    spec: PaperSpec, context: SampleContext, engines: Engines, overrun: random.Random
) -> None:
    check_same(spec, paper_loop, context, engines, overrun)


IMPROVED_RULES: dict[str, st.SearchStrategy[Any]] = RULES | {
    "window_tokens": st.integers(1, 8),
    "handback": st.sampled_from(["sentence", "tokens"]),
    "handback_from": st.sampled_from([0, 0.5, 1]),
    "repetition": st.sampled_from(["off"] * 6 + ["finish", "hand_over"]),
    "loop_min_tokens": st.just(16),
    "loop_repeats": st.integers(2, 3),
    "loop_max_block_tokens": st.sampled_from([3, 512]),
    "takeover_from": st.sampled_from(["earliest", "earliest", "nearest"]),
}
IMPROVED_CASES: dict[str, Any] = {
    "spec": st.builds(SpeculativeThinkingSpec, **IMPROVED_RULES),
    "context": CONTEXTS,
    "engines": ENGINES,
    "overrun": OVERRUN,
}


@THOROUGH
@given(**IMPROVED_CASES)
def test_the_preset_improved_does_as_its_plain_loop(
    spec: SpeculativeThinkingSpec, context: SampleContext, engines: Engines, overrun: random.Random
) -> None:
    check_same(spec, improved_loop, context, engines, overrun)


INSTRUCT_CASES: dict[str, Any] = {
    "spec": st.builds(
        ImprovedInstructSpec,
        **IMPROVED_RULES | {"opening_tokens": st.sampled_from([0, 4, 8]), "every_break": st.just(True)},
        every_break_of=st.sampled_from(["layout"] * 5 + ["text"]),
    ),
    "context": CONTEXTS,
    "engines": engines_of(LAYOUT),
    "overrun": OVERRUN,
}


@THOROUGH
@given(**INSTRUCT_CASES)
def test_the_preset_improved_instruct_does_as_its_plain_loop(
    spec: ImprovedInstructSpec, context: SampleContext, engines: Engines, overrun: random.Random
) -> None:
    check_same(spec, improved_loop, context, engines, overrun)
