"""Samples played through with random texts: what must hold whatever the models write and the engine does."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policies.protocol import Policy, PolicyState, SampleContext
from pipeline.policies.reading.cues import CueLists
from pipeline.policies.requests import Finish, Generate, Insert, Written
from pipeline.policies.speculative_thinking.improved import SpeculativeThinkingSpec
from pipeline.samples import Author, FinishReason, ModelRole, Piece, SegmentFinish
from tests.decisions import Keep, decided

END = None
"""A model's EOS in its script."""
TOKENS = st.sampled_from(
    [".\n\n", "\n\n", "\n", "\n", ")\n\n", "wait", " Wa", "it", ",", ".", " think", " again", " check", "ers", " yes",
     " final", " answer", " a", " b", "", "é", " ", "</think>", "</", "think", ">", END]
)  # fmt: skip
QUIET = st.sampled_from([" a", " b", ".\n\n", " Wait", ",", " check", ".", ""])
SCRIPTS = st.lists(st.one_of(TOKENS, QUIET, QUIET), min_size=1, max_size=120)
SPECS = st.builds(
    SpeculativeThinkingSpec,
    window_tokens=st.integers(1, 8),
    n1=st.integers(1, 6),
    n2=st.integers(6, 12),
    n3=st.integers(1, 6),
    n3_max=st.integers(6, 9),
    threshold=st.integers(1, 3),
    threshold_step=st.integers(0, 1),
    inserted_sentence=st.sampled_from(["Check:", "So.\n\n"]),
    handback=st.sampled_from(["sentence", "tokens"]),
    handback_from=st.sampled_from([0, 0.5, 1]),
    repetition=st.sampled_from(["off", "finish", "hand_over"]),
    loop_min_tokens=st.just(16),
    loop_repeats=st.just(2),
)
CONTEXTS = st.builds(
    SampleContext,
    job_seed=st.just(0),
    problem_id=st.just(0),
    sample_index=st.just(0),
    max_tokens=st.integers(1, 80),
    think_end=st.sampled_from(["</think>", ""]),
    num_prompt_tokens=st.just(0),
)


@dataclass
class Engine:
    """A model that reads its tokens from a script, round and round."""

    script: list[str | None]
    at: int = 0
    finish: SegmentFinish = SegmentFinish.LENGTH

    def write(self, policy: Policy, context: SampleContext, state: PolicyState, max_tokens: int) -> Piece:
        watcher = policy.watcher(context, state)
        texts: list[str] = []
        self.finish = SegmentFinish.LENGTH
        while len(texts) < max_tokens and self.finish is SegmentFinish.LENGTH:
            token = self.script[self.at % len(self.script)]
            self.at += 1
            if token is END:
                self.finish = SegmentFinish.EOS
                break
            texts.append(token)
            if watcher is not None and watcher.feed(token):
                self.finish = SegmentFinish.WATCH
        return Piece(token_ids=tuple(range(len(texts))), texts=tuple(texts))


@dataclass
class Record:
    """A finished sample."""

    authors: list[Author] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    num_cycles: int = 0
    decisions: list[object] = field(default_factory=list)
    pieces: list[tuple[PolicyState, Written]] = field(default_factory=list)
    muted_at: set[int] = field(default_factory=set)

    @property
    def reason(self) -> FinishReason:
        last = self.decisions[-1]
        assert isinstance(last, Finish)
        return last.reason


def play(policy: Policy, context: SampleContext, small: list[str | None], large: list[str | None]) -> Record:
    """Play one sample to its end, checking the contract at every cycle."""
    engines = {ModelRole.SMALL: Engine(small), ModelRole.LARGE: Engine(large)}
    record = Record()
    transition = policy.start(context)
    request = decided(transition)[0]
    while isinstance(request, Generate):
        record.num_cycles += 1
        assert record.num_cycles <= 2 * context.max_tokens + 2, "no progress"
        assert 1 <= request.max_tokens <= context.max_tokens - len(record.texts)
        state = json.loads(json.dumps(transition.state))
        assert state == transition.state
        engine = engines[request.role]
        piece = engine.write(policy, context, state, request.max_tokens)
        event = Written(role=request.role, piece=piece, finish=engine.finish, start_token=len(record.texts))
        record.pieces.append((state, event))
        transition = policy.advance(context, state, event)
        keep, *inserts, request = decided(transition)
        assert isinstance(keep, Keep)
        assert 0 <= keep.num_tokens <= len(piece)
        if event.role is ModelRole.LARGE and keep.num_tokens == 0:
            record.muted_at.add(len(record.texts))
        record.texts += piece.texts[: keep.num_tokens]
        record.authors += [Author(event.role)] * keep.num_tokens
        for insert in inserts:
            assert isinstance(insert, Insert)
            record.texts += list(insert.text)  # as many tokens as characters: close to the worst case
            record.authors += [Author.INSERTED] * len(insert.text)
        record.decisions += decided(transition)
    assert len(record.texts) <= context.max_tokens
    return record


@given(spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS)
def test_every_sample_ends_within_its_budget(
    spec: SpeculativeThinkingSpec, context: SampleContext, small: list[str | None], large: list[str | None]
) -> None:
    record = play(spec.build(), context, small, large)
    assert record.reason is not FinishReason.CONTEXT
    if record.reason is FinishReason.LENGTH:
        assert len(record.texts) == context.max_tokens


@given(spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS)
def test_a_large_model_that_is_silent_stops_nothing(
    spec: SpeculativeThinkingSpec, context: SampleContext, small: list[str | None], large: list[str | None]
) -> None:
    for silent in ([END], [""], ["", "", END]):
        play(spec.build(), context, small, [*silent])


@given(spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS, extra=st.lists(TOKENS, max_size=6))
def test_what_is_written_after_the_watchers_word_changes_nothing(
    spec: SpeculativeThinkingSpec,
    context: SampleContext,
    small: list[str | None],
    large: list[str | None],
    extra: list[str | None],
) -> None:
    policy = spec.build()
    overrun = tuple(text for text in extra if text is not END)
    for state, event in play(policy, context, small, large).pieces:
        if event.finish is not SegmentFinish.WATCH:
            continue
        piece = Piece(token_ids=(*event.piece.token_ids, *range(len(overrun))), texts=(*event.piece.texts, *overrun))
        for finish in SegmentFinish:
            later = Written(role=event.role, piece=piece, finish=finish, start_token=event.start_token)
            assert policy.advance(context, state, later) == policy.advance(context, state, event)


@given(spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS)
def test_the_watcher_and_the_decision_see_the_same_place(
    spec: SpeculativeThinkingSpec, context: SampleContext, small: list[str | None], large: list[str | None]
) -> None:
    """A request that the watcher ended is answered by a takeover, a hand-back or a loop's end."""
    policy = spec.build()
    for state, event in play(policy, context, small, large).pieces:
        next_decision = policy.advance(context, state, event).then
        if event.finish is SegmentFinish.WATCH and isinstance(next_decision, Generate):
            assert next_decision.role is not event.role


def cues_left_standing(record: Record, spec: SpeculativeThinkingSpec, think_end: str) -> list[int]:
    """Tokens of small's that hold a cue inside the window of a break, found by looking at the whole text at once."""
    lists = CueLists()
    cues = "|".join(r"\s+".join(cue.split()) for cue in (*lists.verify, *lists.negative, *lists.positive))
    text = "".join(record.texts)
    thinking_to = text.find(think_end) if think_end and think_end in text else len(text)
    starts, length = [], 0
    for token in record.texts:
        starts.append(length)
        length += len(token)
    boundaries = [*starts, length]
    breaks = [
        index + 1
        for index, token in enumerate(record.texts)
        if token and text[: boundaries[index + 1]].endswith("\n\n") and boundaries[index + 1] <= thinking_to
    ]
    standing = []
    for begin in breaks:
        later = [other for other in breaks if begin < other]
        sentence_end = boundaries[later[0]] if later else len(text)
        window = range(begin, min(begin + spec.window_tokens, len(record.texts)))
        for match in re.finditer(rf"(?<!\w)(?:{cues})(?!\w)", text[:sentence_end].casefold()):
            if match.end() == len(text) and record.reason is not FinishReason.EOS:
                continue  # not certain yet when the text was cut
            tokens = [
                index for index in window if starts[index] < match.end() and boundaries[index + 1] > match.start()
            ]
            inside = match.start() >= boundaries[begin] and match.end() <= min(boundaries[window.stop], thinking_to)
            by_small = tokens and all(record.authors[index] is Author.SMALL for index in range(begin, tokens[-1] + 1))
            if inside and by_small and begin not in record.muted_at:
                standing.append(tokens[-1])
    return standing


@given(spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS)
def test_no_cue_of_small_is_left_standing(
    spec: SpeculativeThinkingSpec, context: SampleContext, small: list[str | None], large: list[str | None]
) -> None:
    spec = spec.model_copy(update={"repetition": "off"})
    record = play(spec.build(), context, small, large)
    assert cues_left_standing(record, spec, context.think_end) == []


@given(spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS)
def test_a_takeover_begins_after_a_break_or_where_the_last_one_ended(
    spec: SpeculativeThinkingSpec, context: SampleContext, small: list[str | None], large: list[str | None]
) -> None:
    record = play(spec.build(), context, small, large)
    for index, author in enumerate(record.authors):
        begins = author is Author.LARGE and index > 0 and record.authors[index - 1] is Author.SMALL
        before = "".join(record.texts[:index])
        if begins and spec.repetition != "hand_over":
            assert before.endswith("\n\n")


@given(spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS)
def test_large_never_writes_after_the_think_phase(
    spec: SpeculativeThinkingSpec, context: SampleContext, small: list[str | None], large: list[str | None]
) -> None:
    record = play(spec.build(), context, small, large)
    for index, author in enumerate(record.authors):
        if context.think_end and context.think_end in "".join(record.texts[:index]):
            assert author is Author.SMALL


@given(
    spec=SPECS, context=CONTEXTS, small=SCRIPTS, large=SCRIPTS, cuts=st.lists(st.integers(0, 5), min_size=1, max_size=5)
)
def test_requests_that_are_cut_short_give_the_same_takeovers(
    spec: SpeculativeThinkingSpec,
    context: SampleContext,
    small: list[str | None],
    large: list[str | None],
    cuts: list[int],
) -> None:
    """What small writes up to its first interruption may be stored in any number of pieces."""
    spec = spec.model_copy(update={"repetition": "off"})
    policy = spec.build()
    state, event = play(policy, context, small, large).pieces[0]
    whole = policy.advance(context, state, event)
    stored, texts = 0, event.piece.texts
    for cut in cuts:
        if stored + cut >= len(texts):
            break
        head = Piece(token_ids=tuple(range(cut)), texts=texts[stored : stored + cut])
        after = policy.advance(
            context, state, Written(role=event.role, piece=head, finish=SegmentFinish.WATCH, start_token=stored)
        )
        if decided(after)[0] != Keep(num_tokens=cut):
            return
        state, stored = after.state, stored + cut
    rest = Piece(token_ids=tuple(range(len(texts) - stored)), texts=texts[stored:])
    last = policy.advance(context, state, Written(role=event.role, piece=rest, finish=event.finish, start_token=stored))
    keep, whole_keep = decided(last)[0], decided(whole)[0]
    assert isinstance(keep, Keep)
    assert isinstance(whole_keep, Keep)
    assert stored + keep.num_tokens == max(whole_keep.num_tokens, stored)
    if isinstance(decided(whole)[-1], Finish):
        assert decided(last)[-1] == decided(whole)[-1]
    else:
        assert getattr(decided(last)[-1], "cue", None) == getattr(decided(whole)[-1], "cue", None)


def first_takeover(texts: list[str], window_tokens: int) -> tuple[int, int] | None:
    """(tokens read, tokens kept) at the first cue, by looking at every prefix anew; without a think tag."""
    lists = CueLists()
    cues = "|".join(r"\s+".join(cue.split()) for cue in (*lists.verify, *lists.negative, *lists.positive))
    offsets = [len("".join(texts[:count])) for count in range(len(texts) + 1)]
    whole = "".join(texts).casefold()
    ends = [count + 1 for count, token in enumerate(texts) if token and whole[: offsets[count + 1]].endswith("\n\n")]
    for read in range(1, len(texts) + 1):
        text = whole[: offsets[read]]
        matches = list(re.finditer(rf"(?<!\w)(?:{cues})(?!\w)", text))
        for begin in (end for end in ends if end < read):
            closes = begin + window_tokens
            for match in matches:
                inside = offsets[begin] <= match.start() and match.end() <= offsets[min(closes, read)]
                over_a_break = any(match.start() < offsets[end] < match.end() for end in ends)
                if inside and not over_a_break and (match.end() < len(text) or read == closes):
                    return read, begin
    return None


@given(window_tokens=st.integers(1, 8), script=SCRIPTS)
def test_the_first_takeover_is_where_a_search_of_the_whole_text_finds_it(
    window_tokens: int, script: list[str | None]
) -> None:
    texts = [token for token in script if token is not END]
    policy = SpeculativeThinkingSpec(window_tokens=window_tokens, repetition="off").build()
    context = SampleContext(
        job_seed=0, problem_id="0", sample_index=0, max_tokens=1000, think_end="", num_prompt_tokens=0
    )
    state = policy.start(context).state
    watcher = policy.watcher(context, state)
    assert watcher is not None
    read = next((count for count, text in enumerate(texts, 1) if watcher.feed(text)), None)
    piece = Piece(token_ids=tuple(range(len(texts))), texts=tuple(texts))
    event = Written(role=ModelRole.SMALL, piece=piece, finish=SegmentFinish.WATCH, start_token=0)
    keep, request = decided(policy.advance(context, state, event))
    expected = first_takeover(texts, window_tokens)
    if expected is None:
        assert (read, keep) == (None, Keep(num_tokens=len(texts)))
    else:
        assert (read, keep) == (expected[0], Keep(num_tokens=expected[1]))
        assert isinstance(request, Generate)
        assert request.role is ModelRole.LARGE
