"""Two models that write by rote, for policies of steps: plain loops ask them token by token, a driver by requests.

A loop is the policy as one would write it with two engines that block: it looks at the whole text it has and knows no
states, watchers or requests. What it writes is a ``Text``; a policy, driven as a worker drives it, must write the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st

from pipeline.policies.protocol import Policy, SampleContext, Watcher
from pipeline.policies.requests import Finish, Generate, Written
from pipeline.policies.thinking_steps import ThinkingStepsSpec
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, Piece, SegmentFinish
from pipeline.signals import Signal

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
END = "END"
"""A model's end of text."""
THINK_END = "</think>"

Decided = tuple[int, str, float, float, str]
"""Of each reading: tokens before it, the trigger that it pulled, value, threshold, outcome."""


@dataclass(frozen=True)
class Model:
    """Two models whose next token, and what is read of it, depend on the text so far alone.

    context_sizes: most output tokens in the context of each. cut: requests of this role that are watched are cut here
    and there, as by another part's watcher.
    """

    seed: int
    words: Mapping[ModelRole, Sequence[str]]
    context_sizes: Mapping[ModelRole, int] = field(default_factory=lambda: {SMALL: 10_000, LARGE: 10_000})
    cut: ModelRole | None = None

    def next(self, role: ModelRole, text: str) -> str:
        words = self.words[role]
        return words[self._draw(role, text) % len(words)]

    def token_id(self, role: ModelRole, text: str, token: str) -> int:
        return self._draw("id", role, text, token)

    def entropy(self, text: str) -> float:
        return self._draw("doubt", text) % 300 / 100

    def logprob(self, text: str, token: str) -> float:
        """Half of the tokens are nearly certain."""
        drawn = self._draw("logprob", text, token)
        return -(drawn % 10) / 100 if drawn % 2 else -(drawn % 3000) / 1000

    def is_cut(self, role: ModelRole, position: int) -> bool:
        return role is self.cut and self._draw("cut", position) % 30 == 0

    def _draw(self, *of: object) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.seed}{of}".encode(), digest_size=6).digest())


def models(words: Sequence[str], *, cut: ModelRole) -> st.SearchStrategy[Model]:
    """Pairs of these words, some of which each of the two writes oftener; contexts may be short."""
    return st.integers(0, 2**48).map(lambda seed: _model(Random(seed), words, cut))


def _model(draws: Random, words: Sequence[str], cut: ModelRole) -> Model:
    """Texts go on for some steps: the ends of text and thought are rarer than other words."""
    others = [word for word in words if word not in (END, THINK_END)]
    more = {role: draws.choices(others, k=draws.choice([0, 20, 60])) for role in WRITING_ROLES}
    return Model(
        seed=draws.getrandbits(32),
        words={role: [END, *[THINK_END] * 2, *others * 3, *more[role]] for role in WRITING_ROLES},
        context_sizes={role: draws.choice([10_000] * 15 + [5, 17, 40]) for role in WRITING_ROLES},
        cut=draws.choice([None, cut]),
    )


@dataclass
class Text:
    """What is written, by whom and why.

    requests: of each turn its place, role, trigger and cue, and whether large took over; a request that only goes on
    where the one before was cut is none of its own. discarded: of each piece that lost tokens its place, its author and
    how many: those that the watcher read, not those that came later.
    """

    tokens: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    authors: list[ModelRole] = field(default_factory=list)
    requests: list[tuple[int, ModelRole, str, str, bool]] = field(default_factory=list)
    discarded: list[tuple[int, ModelRole, int]] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    reason: FinishReason | None = None

    def __str__(self) -> str:
        return "".join(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def at_break(self) -> bool:
        return ends_with_break(self.tokens)

    @property
    def is_thinking(self) -> bool:
        return THINK_END not in str(self)

    def add(self, model: Model, token: str, author: ModelRole) -> None:
        self.ids.append(model.token_id(author, str(self), token))
        self.tokens.append(token)
        self.authors.append(author)

    def cut_to(self, length: int, author: ModelRole) -> None:
        """Take back what comes after so many tokens."""
        if length < len(self):
            self.discarded.append((length, author, len(self) - length))
        for kept in (self.tokens, self.ids, self.authors):
            del kept[length:]

    def ask(self, role: ModelRole, trigger: str, *, cue: str = "", takes_over: bool = False) -> None:
        self.requests.append((len(self), role, trigger, cue, takes_over))


def ends_with_break(tokens: Sequence[str]) -> bool:
    """Whether the last token completes or lengthens a break."""
    text = "".join(tokens)
    return bool(tokens) and "\n" in tokens[-1] and text[len(text.rstrip()) :].count("\n") >= 2


def lengthens_break(tokens: Sequence[str], token: str) -> bool:
    """Whether a token after these adds nothing to their break but newlines."""
    return ends_with_break(tokens) and not token.strip() and "\n" in token


class Ended(Exception):
    """A sample's end."""

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Loop:
    """What the plain loops share."""

    def __init__(self, model: Model, *, max_tokens: int) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.text = Text()

    def run(self) -> Text:
        try:
            self.write()
        except Ended as ended:
            self.text.reason = ended.reason
        return self.text

    def write(self) -> None:
        """The whole text; raises Ended at its end."""
        raise NotImplementedError

    def token(self, role: ModelRole) -> str:
        """The next token of the model that leads, added to the text; its end is the sample's."""
        token = self.peek(role)
        self.text.add(self.model, token, role)
        return token

    def peek(self, role: ModelRole) -> str:
        self.check_budget()
        if len(self.text) >= self.model.context_sizes[role]:
            raise Ended(FinishReason.CONTEXT)
        token = self.model.next(role, str(self.text))
        if token == END:
            raise Ended(FinishReason.EOS)
        return token

    def check_budget(self) -> None:
        if len(self.text) >= self.max_tokens:
            raise Ended(FinishReason.LENGTH)

    def visit(self, role: ModelRole, most: int, place: Callable[[list[str]], int | None]) -> int:
        """The model that helps writes on, most tokens at most; its end hands back. Returns how many tokens stay.

        place: of what it has written so far, how many tokens of that stay; None while it goes on.
        """
        begin, full, num_kept = len(self.text), False, None
        asked = min(most, self.max_tokens - begin)
        while num_kept is None and not full and len(self.text) < begin + asked:
            full = len(self.text) >= self.model.context_sizes[role]
            token = END if full else self.model.next(role, str(self.text))
            if token == END:
                break
            self.text.add(self.model, token, role)
            num_kept = place(self.text.tokens[begin:])
        keep = len(self.text) if num_kept is None else begin + num_kept
        while keep > begin and (self.text.tokens[keep - 1] == "" or self.text.tokens[keep - 1].endswith("\ufffd")):
            keep -= 1
        self.text.cut_to(keep, role)
        self.check_budget()
        if full:
            raise Ended(FinishReason.CONTEXT)
        return keep - begin

    def answer(self, role: ModelRole, *, after: ModelRole) -> None:
        """One model writes the rest."""
        self.check_budget()
        if role is LARGE:
            self.text.ask(LARGE, "answer")
        elif after is LARGE:
            self.text.ask(SMALL, "resume")
        while True:
            self.token(role)


class StepsLoop(Loop):
    """Loops of policies in which large writes steps of the think phase."""

    def __init__(self, spec: ThinkingStepsSpec, model: Model, *, max_tokens: int) -> None:
        super().__init__(model, max_tokens=max_tokens)
        self.numbers = spec

    def open(self) -> bool:
        """Large's first steps, if any; whether a step of small begins behind them."""
        if not self.numbers.first_steps:
            self.text.ask(SMALL, "start")
            return True
        self.text.ask(LARGE, "opening")
        return self.steps_of_large(self.numbers.first_steps)

    def take_over(
        self, keep: int, decided: tuple[str, float, float, str], *, cue: str = "", num_steps: int = 1
    ) -> bool:
        """Take back what small wrote after so many tokens and let large write; whether a step of small begins then."""
        self.text.cut_to(keep, SMALL)
        self.check_budget()
        self.text.decided.append((keep, *decided))
        self.text.ask(LARGE, decided[0], cue=cue, takes_over=True)
        return self.steps_of_large(num_steps)

    def steps_of_large(self, num_steps: int) -> bool:
        before, step_tokens = list(self.text.tokens), self.numbers.step_tokens

        def place(written: list[str]) -> int | None:
            if not self.text.is_thinking:
                return len(written)
            ends = [0]
            for count, token in enumerate(written, 1):
                so_far = before + written[:count]
                is_break = ends_with_break(so_far) and not lengthens_break(so_far[:-1], token)
                if is_break or count == ends[-1] + step_tokens:
                    ends.append(count)
            return len(written) if len(ends) > num_steps else None

        num_kept = self.visit(LARGE, num_steps * step_tokens, place)
        if not self.text.is_thinking:
            self.answer(self.numbers.answer_role, after=LARGE)
        self.text.ask(SMALL, "resume")
        return num_kept > 0 and self.text.at_break


# A policy, driven as a worker does.


def drive(
    policy: Policy, model: Model, *, max_tokens: int, overrun: Random, job_seed: int = 0, sample_index: int = 0
) -> Text:
    """Play a sample: requests that the watcher ends a little late, and states that are stored between them."""
    text = Text()
    context = SampleContext(
        job_seed=job_seed,
        problem_id="p",
        sample_index=sample_index,
        max_tokens=max_tokens,
        think_end=THINK_END,
        num_prompt_tokens=0,
    )
    transition, writer = policy.start(context), None
    num_requests = 0
    while isinstance(transition.then, Generate):
        num_requests += 1
        assert num_requests <= 10 * max_tokens + 10, "the two make no progress"
        request, state = transition.then, json.loads(json.dumps(transition.state))
        if writer is not request.role or request.takes_over or request.trigger == "answer":
            text.ask(request.role, request.trigger, cue=request.cue, takes_over=request.takes_over)
        event, num_read = write(model, request, policy.watcher(context, state), text, overrun)
        assert len(event.piece) <= request.max_tokens
        before = len(text)
        transition, writer = policy.advance(context, state, event), request.role
        keep = transition.keep
        assert keep is not None
        for token, token_id in zip(event.piece.texts[:keep], event.piece.token_ids[:keep], strict=True):
            text.tokens.append(token)
            text.ids.append(token_id)
            text.authors.append(request.role)
        if keep < num_read:
            text.discarded.append((before + keep, request.role, num_read - keep))
        if (reading := transition.reading) is not None:
            assert isinstance(transition.then, Generate)
            decided = (transition.then.trigger, reading.value, reading.threshold, reading.outcome)
            text.decided.append((len(text), *decided))
    assert isinstance(transition.then, Finish)
    text.reason = transition.then.reason
    return text


def write(model: Model, request: Generate, watcher: Watcher | None, text: Text, overrun: Random) -> tuple[Written, int]:
    """What an engine gives for a request, and how many of its tokens the watcher read before it said so."""
    room = min(request.max_tokens, model.context_sizes[request.role] - len(text))
    texts, finish = stream(model, request.role, str(text), room)
    ids = [model.token_id(request.role, str(text) + "".join(texts[:n]), token) for n, token in enumerate(texts)]
    readings = read_signals(model, request.signals, str(text), texts)
    num_read = len(texts)
    for count, token in enumerate(texts, 1):
        at_token = {signal: values[count - 1] for signal, values in readings.items()} if request.signals else None
        if watcher is not None and watcher.feed(token, at_token):
            num_read, finish = count, SegmentFinish.WATCH
            count = min(len(texts), count + overrun.choice([0, 0, 1, 5]))
        elif watcher is not None and model.is_cut(request.role, len(text) + count):
            num_read, finish = count, SegmentFinish.WATCH
        else:
            continue
        texts, ids = texts[:count], ids[:count]
        readings = {signal: values[:count] for signal, values in readings.items()}
        break
    piece = Piece(token_ids=tuple(ids), texts=tuple(texts))
    event = Written(role=request.role, piece=piece, finish=finish, start_token=len(text), signals=readings)
    return event, num_read


def stream(model: Model, role: ModelRole, text: str, max_tokens: int) -> tuple[list[str], SegmentFinish]:
    tokens: list[str] = []
    while len(tokens) < max_tokens:
        token = model.next(role, text)
        if token == END:
            return tokens, SegmentFinish.EOS
        tokens.append(token)
        text += token
    return tokens, SegmentFinish.LENGTH


def read_signals(
    model: Model, signals: frozenset[Signal], text: str, tokens: Sequence[str]
) -> dict[Signal, tuple[float | None, ...]]:
    """What an engine reads; a sparse signal at a request's first token, and at the first after a break."""
    values: dict[Signal, list[float | None]] = {signal: [] for signal in signals}
    before = [text] if text else []
    for count, token in enumerate(tokens):
        starts = not count or (ends_with_break(before) and not lengthens_break(before, token))
        so_far = "".join(before)
        for signal, found in values.items():
            if signal is Signal.LOGPROB:
                found.append(model.logprob(so_far, token))
            else:
                found.append(model.entropy(so_far) if starts else None)
        before.append(token)
    return {signal: tuple(found) for signal, found in values.items()}
