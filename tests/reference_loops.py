"""Speculative Thinking once more, as one would write it with two engines that block: a loop for each preset.

Nothing of the pipeline's policies is used but their specs: no states, no watchers, no incremental reading. Each loop
asks an engine, looks at the whole text it has, and cuts what it does not keep. The tests compare its protocol with the
policy's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.policies.reading.cues import CueLists
from pipeline.policies.speculative_thinking.improved import ImprovedRules
from pipeline.policies.speculative_thinking.paper import PaperSpec
from pipeline.policies.speculative_thinking.released_code import CodeSpec
from pipeline.samples import Author, FinishReason, ModelRole
from tests.reference_layout import step_end

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE


@dataclass(frozen=True)
class Token:
    id: int
    text: str


@dataclass(frozen=True)
class Answer:
    """What an engine wrote. ended: it said so itself; full: its context left less room than was asked for."""

    tokens: list[Token]
    ended: bool = False
    full: bool = False


class ContextFull(Exception):
    """The engine has no room for a single token."""


@dataclass(frozen=True)
class Asked:
    """One request as the protocol shows it, with R3's counter and numbers at that time."""

    role: ModelRole
    max_tokens: int
    trigger: str
    cue: str
    start_token: int
    reflections: int
    n3: int
    threshold: int


@dataclass
class Protocol:
    """A finished sample."""

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    authors: list[Author] = field(default_factory=list)
    inserted: list[str] = field(default_factory=list)
    """Triggers of the sentences put in."""
    asked: list[Asked] = field(default_factory=list)
    reason: FinishReason | None = None

    def keep(self, tokens: Sequence[Token], author: Author) -> None:
        self.ids += [token.id for token in tokens]
        self.texts += [token.text for token in tokens]
        self.authors += [author] * len(tokens)

    def insert(self, tokens: Sequence[Token], trigger: str) -> None:
        self.keep(tokens, Author.INSERTED)
        self.inserted.append(trigger)

    @property
    def text(self) -> str:
        return "".join(self.texts)


Write = Callable[[ModelRole, str, int, int, int], Answer]
"""An engine: (role, text so far, its tokens, number of the request, most tokens) -> what it writes."""


def tokenise(text: str) -> list[Token]:
    """How an inserted sentence becomes tokens."""
    return [Token(-1 - len(word), word) for word in re.findall(r"\S+\s*|\s+", text)]


def most_tokens(text: str) -> int:
    return len(text.encode()) + 1


@dataclass
class Sample:
    """What the three loops share: the protocol, the engine and R3's numbers."""

    spec: CodeSpec | PaperSpec | ImprovedRules
    max_tokens: int
    think_end: str
    num_prompt_tokens: int
    engine: Write
    protocol: Protocol = field(default_factory=Protocol)
    reflections: int = 0

    def __post_init__(self) -> None:
        self.n3, self.threshold = self.spec.n3, self.spec.threshold

    @property
    def num_tokens(self) -> int:
        return len(self.protocol.ids)

    @property
    def left(self) -> int:
        return self.max_tokens - self.num_tokens

    def write(self, role: ModelRole, max_tokens: int, trigger: str, cue: str = "") -> Answer:
        numbers = (self.reflections, self.n3, self.threshold)
        self.protocol.asked.append(Asked(role, max_tokens, trigger, cue, self.num_tokens, *numbers))
        return self.engine(role, self.protocol.text, self.num_tokens, len(self.protocol.asked), max_tokens)

    def grow(self) -> None:
        self.reflections = 0
        self.n3 = min(self.n3 + self.spec.n3_step, self.spec.n3_max)
        self.threshold = min(self.threshold + self.spec.threshold_step, self.spec.threshold_max)

    def run(self, loop: Callable[[Sample], FinishReason]) -> Protocol:
        try:
            self.protocol.reason = loop(self)
        except ContextFull:
            self.protocol.reason = FinishReason.CONTEXT
        return self.protocol


def whole(tokens: list[Token]) -> list[Token]:
    """Without the last tokens that make no whole character."""
    while tokens and (tokens[-1].text == "" or tokens[-1].text.endswith("\ufffd")):
        tokens = tokens[:-1]
    return tokens


def loose_class(text: str, cues: CueLists) -> int:
    """Affirmation 1, reflection -1, statement 0: occurrences of bare substrings."""
    text = text.lower()
    positive = sum(text.count(cue) for cue in cues.positive)
    negative = sum(text.count(cue) for cue in cues.negative + cues.verify)
    if positive > negative:
        return 1
    return -1 if negative else 0


def loose_cue(text: str, cues: Sequence[str]) -> str:
    """The one of some cues that begins first, in a list without cues that begin alike."""
    text = text.lower()
    at = [text.find(cue) for cue in cues if cue in text]
    return next((cue for cue in cues if at and text.find(cue) == min(at)), "")


def loose_trigger(text: str, cues: CueLists) -> tuple[str, str]:
    match loose_class(text, cues):
        case 1:
            return "affirmation", loose_cue(text, cues.positive)
        case -1:
            return "reflection", loose_cue(text, cues.negative + cues.verify)
        case _:
            return "every_break", ""


def join(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


# code


def code_loop(sample: Sample) -> FinishReason:
    spec, protocol = sample.spec, sample.protocol
    assert isinstance(spec, CodeSpec)
    why, total, last_end = "start", 0, -math.inf
    is_opening = spec.opening_tokens > 0
    while total <= sample.max_tokens:
        if sample.left < 1:
            return FinishReason.LENGTH
        at_break = False
        if not is_opening:
            draft = sample.write(SMALL, min(spec.draft_tokens, sample.left), why)
            kept = draft.tokens
            cut = next((n for n in range(len(kept) + 1) if "\n\n" in join(kept[:n])), None)
            if cut is not None:
                kept = kept[:cut]
            elif not draft.ended:
                kept = whole(kept) or kept
            protocol.keep(kept, Author.SMALL)
            if cut is None and draft.ended:
                return FinishReason.EOS
            if cut is None and draft.full:
                return FinishReason.CONTEXT
            at_break = "\n\n" in join(kept[-spec.break_within :])
        if is_opening or (at_break and sample.reflections >= sample.threshold):
            if is_opening:
                answer = sample.write(LARGE, min(spec.opening_tokens, sample.left), "opening")
            else:
                n3, room = sample.n3, sample.left - most_tokens(spec.inserted_sentence)
                if room < 1:
                    return FinishReason.LENGTH
                protocol.insert(tokenise(spec.inserted_sentence), "too_much_reflection")
                sample.grow()
                answer = sample.write(LARGE, min(n3, room), "too_much_reflection")
            protocol.keep(whole(answer.tokens) or answer.tokens, Author.LARGE)
            if answer.full:
                return FinishReason.CONTEXT
            if answer.ended:
                last_end = sample.num_tokens
            is_opening, why = False, "resume"
        elif at_break:
            if sample.left < 1:
                return FinishReason.LENGTH
            peek = sample.write(SMALL, min(spec.n1, sample.left), "peek")
            if peek.full:
                return FinishReason.CONTEXT
            small_class, why = loose_class(join(peek.tokens), spec.cues), "sample_again"
            if small_class != 0 or spec.every_break:
                why = "resume"
                answer = sample.write(LARGE, min(spec.n1, sample.left), *loose_trigger(join(peek.tokens), spec.cues))
                kept = whole(answer.tokens) or answer.tokens
                large_class = loose_class(join(kept), spec.cues)
                if answer.full:
                    protocol.keep(kept, Author.LARGE)
                    return FinishReason.CONTEXT
                if spec.choose_large or (small_class < 0 and large_class >= 0) or (small_class > 0 and large_class < 0):
                    protocol.keep(kept, Author.LARGE)
                    kept_class, ended = large_class, answer.ended
                else:
                    kept, kept_class, ended = peek.tokens, small_class, peek.ended
                    if join(kept):
                        protocol.insert(kept, "peek_kept")
                if ended:
                    last_end = sample.num_tokens
                if kept_class < 0:
                    sample.reflections += 1
                verify = loose_cue(join(kept), spec.cues.verify)
                if verify:
                    if sample.left < 1:
                        return FinishReason.LENGTH
                    answer = sample.write(LARGE, min(spec.n2, sample.left), "verify", verify)
                    protocol.keep(whole(answer.tokens) or answer.tokens, Author.LARGE)
                    if answer.full:
                        return FinishReason.CONTEXT
                    if answer.ended:
                        last_end = sample.num_tokens
        total = sample.num_prompt_tokens + sample.num_tokens
        if sample.num_tokens - last_end < spec.n1:
            return FinishReason.EOS
    return FinishReason.LENGTH


# paper


def is_break(before: str, token: str) -> bool:
    """Whether this token has a newline and the text then ends with two; blanks around them do not matter."""
    text = before + token
    return "\n" in token and text[len(text.rstrip()) :].count("\n") >= 2


def breaks_in(before: str, texts: Sequence[str]) -> list[int]:
    """Tokens up to and including each one that ends with a break."""
    return [n for n, text in enumerate(texts, 1) if "\n" in text and is_break(before + "".join(texts[: n - 1]), text)]


def paper_loop(sample: Sample) -> FinishReason:
    spec, protocol = sample.spec, sample.protocol
    assert isinstance(spec, PaperSpec)
    starts_with_sentence, why = False, "start"
    if spec.opening_tokens:
        answer = sample.write(LARGE, min(spec.opening_tokens, sample.left), "opening")
        reason, starts_with_sentence = paper_takes(sample, answer, whole(answer.tokens) or answer.tokens, False)
        if reason is not None:
            return reason
        why = "resume"
    while True:
        draft = sample.write(SMALL, sample.left, why)
        texts = [token.text for token in draft.tokens]
        breaks = breaks_in(protocol.text, texts)
        sentence, place = "", None
        if spec.every_break:
            place = breaks[0] if breaks else None
        else:
            for start in [0] * starts_with_sentence + breaks:
                end = start + spec.window_tokens
                if (end <= len(texts) or draft.ended) and loose_class("".join(texts[start:end]), spec.cues) != 0:
                    sentence, place = "".join(texts[start:end]), start
                    break
        protocol.keep(draft.tokens[:place], Author.SMALL)
        if place is None and draft.ended:
            return FinishReason.EOS
        if sample.left < 1:
            return FinishReason.LENGTH
        if place is None:
            assert draft.full
            return FinishReason.CONTEXT
        small_class = loose_class(sentence, spec.cues)
        sample.reflections += small_class < 0
        verify = loose_cue(sentence, spec.cues.verify)
        trigger, cue = ("verify", verify) if verify else loose_trigger(sentence, spec.cues)
        room = sample.left - most_tokens(spec.inserted_sentence)
        if sample.reflections >= sample.threshold and room >= 1:
            before, n3 = protocol.text, sample.n3
            protocol.insert(tokenise(spec.inserted_sentence), "too_much_reflection")
            sample.grow()
            answer = sample.write(LARGE, min(n3, room), "too_much_reflection", cue)
            own_sentence = is_break(before, spec.inserted_sentence)
        else:
            answer = sample.write(LARGE, min(spec.n2, sample.left), trigger, cue)
            own_sentence = small_class >= 0
            if trigger != "verify":
                window = answer.tokens[: min(spec.n1, spec.window_tokens)]
                writes_on = loose_cue(join(window), spec.cues.verify)
                limit = spec.n2 if writes_on else spec.n1
                if len(answer.tokens) >= limit:
                    answer = Answer(answer.tokens[:limit])  # whatever came after it
        kept = whole(answer.tokens) or answer.tokens
        reason, starts_with_sentence = paper_takes(sample, answer, kept, own_sentence)
        if reason is not None:
            return reason
        why = "resume"


def paper_takes(
    sample: Sample, answer: Answer, kept: list[Token], own_sentence: bool
) -> tuple[FinishReason | None, bool]:
    """Keep what large wrote and count in it: why the sample ends, and whether the small one begins a sentence."""
    texts = [token.text for token in kept]
    breaks = breaks_in(sample.protocol.text, texts)
    covered_to = 0
    for start in [0] * own_sentence + breaks:
        sentence = "".join(texts[start : start + sample.spec.window_tokens])  # type: ignore[union-attr]
        sentence_class = loose_class(sentence, sample.spec.cues)
        if start >= covered_to and sentence_class != 0:
            sample.reflections += sentence_class < 0
            covered_to = start + sample.spec.window_tokens  # type: ignore[union-attr]
    sample.protocol.keep(kept, Author.LARGE)
    if answer.ended:
        return FinishReason.EOS, False
    if sample.left < 1:
        return FinishReason.LENGTH, False
    return (FinishReason.CONTEXT if answer.full else None), bool(breaks) and breaks[-1] == len(texts)


# improved


class Reading:
    """All text so far: where breaks are, and where the think phase ends. An inserted sentence is one unit."""

    def __init__(self, think_end: str) -> None:
        self.think_end = think_end
        self.texts: list[str] = []
        self.text = ""
        self.ends = [0]
        self.breaks: list[int] = []
        self.visible: int | None = None
        """Characters that may hold a cue once the think phase has ended."""
        self.closed_at = math.inf
        """Units up to the end of the think phase."""

    def copy(self) -> Reading:
        other = Reading(self.think_end)
        other.texts, other.ends, other.breaks = [*self.texts], [*self.ends], [*self.breaks]
        other.text, other.visible, other.closed_at = self.text, self.visible, self.closed_at
        return other

    def add(self, text: str) -> None:
        before, self.text = self.text, self.text + text
        self.texts.append(text)
        self.ends.append(len(self.text))
        if self.visible is not None:
            return
        if self.think_end and self.think_end in self.text:
            self.visible = self.text.index(self.think_end) + 1
            self.closed_at = len(self.texts)
        elif is_break(before, text):
            self.breaks.append(len(self.texts))

    @property
    def thinking(self) -> bool:
        return self.visible is None

    @property
    def at_break(self) -> bool:
        return bool(self.breaks) and self.breaks[-1] == len(self.texts)

    def matches(self, cues: Sequence[str], *, certain: bool) -> list[tuple[int, str]]:
        """(end, cue) of each cue in the sentence that the last unit belongs to, as far as they are certain."""
        start = max((place for place in self.breaks if place < len(self.texts)), default=0)
        sentence = self.text[self.ends[start] : self.visible]
        sentence = re.sub(r"\s+", " ", sentence.casefold())
        found = re.finditer(r"(?<!\w)(?:" + "|".join(map(re.escape, cues)) + r")(?!\w)", sentence)
        return [
            (match.end(), match[0])
            for match in found
            if (certain or match.end() < len(sentence))
            and not (match[0] == "final answer" and only_states(sentence[: match.start()]))
        ]


def only_states(before: str) -> bool:
    """Whether "final answer" begins a sentence after this text, with "so" before it perhaps."""
    clause = re.split(r"[.!?] |。", before)[-1]
    return re.fullmatch(r"\W*(?:so\W+)*", clause) is not None


@dataclass
class ImprovedText:
    """The reading, and up to which break the windows are closed."""

    reading: Reading
    used: int = -1

    def open_at(self, window_tokens: int) -> list[int]:
        """The breaks whose window the last unit lies in."""
        count = len(self.reading.texts)
        return [start for start in self.reading.breaks if self.used < start < count <= start + window_tokens]

    def cue(self, spec: ImprovedRules, *, ended: bool = False) -> tuple[str, int] | None:
        """The cue that the last unit (or the end after it) makes certain, and the break it belongs to."""
        cues = spec.cues
        count, windows = len(self.reading.texts), self.open_at(spec.window_tokens)
        if ended:
            windows = [start for start in windows if count < start + spec.window_tokens]
            if self.reading.at_break or not self.reading.thinking:
                return None
        if not windows or count > self.reading.closed_at:
            return None
        closes = count == windows[0] + spec.window_tokens
        found = self.reading.matches([*cues.verify, *cues.negative, *cues.positive], certain=closes or ended)
        place = windows[0] if spec.takeover_from == "earliest" else windows[-1]
        return (min(found)[1], place) if found else None


def improved_loop(sample: Sample) -> FinishReason:
    spec, protocol = sample.spec, sample.protocol
    assert isinstance(spec, ImprovedRules)
    text = ImprovedText(Reading(sample.think_end))
    why = "start"
    if spec.opening_tokens:
        reason = improved_takeover(sample, text, "opening", "", spec.opening_tokens, spec.opening_tokens)
        if reason is not None:
            return reason
        why = "resume"
    while True:
        draft = sample.write(SMALL, sample.left, why)
        before = len(text.reading.texts)
        ahead = ImprovedText(text.reading.copy(), text.used)
        found: tuple[int, str, str] | None = None  # (tokens kept, trigger, cue)
        for read, token in enumerate(draft.tokens, 1):
            ahead.reading.add(token.text)
            cue = ahead.cue(spec)
            if cue is not None:
                found = (max(0, cue[1] - before), improved_trigger(spec, cue[0]), cue[0])
            elif spec.every_break and (place := every_break(ahead.reading, spec, before)) is not None:
                found = (place - before, "every_break", "")
            elif spec.repetition != "off" and (block := loop_in(draft.tokens[:read], spec)):
                if spec.repetition == "finish" or not ahead.reading.thinking:
                    protocol.keep(draft.tokens[:read], Author.SMALL)
                    return FinishReason.REPETITION
                found = (first_block_end(draft.tokens[:read], block), "repetition", "")
            if found is not None:
                break
        if found is None and draft.ended:
            cue = ahead.cue(spec, ended=True)
            if cue is not None:
                found = (max(0, cue[1] - before), improved_trigger(spec, cue[0]), cue[0])
        kept = draft.tokens if found is None else draft.tokens[: found[0]]
        protocol.keep(kept, Author.SMALL)
        for token in kept:
            text.reading.add(token.text)
        if found is None and draft.ended:
            return FinishReason.EOS
        if sample.left < 1:
            return FinishReason.LENGTH
        if found is None:
            assert draft.full
            return FinishReason.CONTEXT
        _, trigger, words = found
        room = sample.left - most_tokens(spec.inserted_sentence)
        at_open_break = text.reading.at_break and text.used < len(text.reading.texts)
        if sample.reflections >= sample.threshold and trigger != "repetition" and at_open_break and room >= 1:
            n3 = sample.n3
            sample.grow()
            protocol.insert(tokenise(spec.inserted_sentence), "too_much_reflection")
            text.used = len(text.reading.texts)
            text.reading.add(spec.inserted_sentence)
            reason = improved_takeover(sample, text, "too_much_reflection", words, min(n3, room), n3)
        else:
            limit = spec.n1 if trigger in ("reflection", "affirmation", "every_break") else spec.n2
            reason = improved_takeover(sample, text, trigger, words, spec.n2, limit)
        if reason is not None:
            return reason
        why = "resume"


def every_break(reading: Reading, spec: ImprovedRules, start: int) -> int | None:
    """The break after which the last unit shows that large is to write; start: units before this request."""
    if not reading.thinking:
        return None
    if spec.every_break_of == "layout":
        return step_end(reading.texts, reading.breaks, start)
    return len(reading.texts) if reading.at_break else None


def improved_trigger(spec: ImprovedRules, cue: str) -> str:
    if cue in spec.cues.verify:
        return "verify"
    return "reflection" if cue in spec.cues.negative else "affirmation"


def improved_takeover(
    sample: Sample, text: ImprovedText, trigger: str, cue: str, max_tokens: int, limit: int
) -> FinishReason | None:
    """Let large write and keep of it what is its own; why the sample ends, None where small goes on."""
    spec = sample.spec
    assert isinstance(spec, ImprovedRules)
    answer = sample.write(LARGE, min(max_tokens, sample.left), trigger, cue)
    texts = [token.text for token in answer.tokens]
    ahead = text.reading.copy()
    may_extend, end = trigger in ("reflection", "affirmation", "every_break"), None
    for read in range(1, len(texts) + 1):
        ahead.add(texts[read - 1])
        if may_extend and read <= spec.window_tokens:
            closes = read == spec.window_tokens
            if ahead.matches(spec.cues.verify, certain=closes):
                limit, may_extend = spec.n2, False
        if spec.handback == "sentence":
            end = read if ahead.at_break else sentence_end(texts[:read])
            if end is not None and end < max(1, math.ceil(limit * spec.handback_from)):
                end = None
        if not ahead.thinking or (end is None and read >= limit):
            end = read
        if end is not None:
            break
    kept = whole(answer.tokens[:end])
    for token in kept:
        text.reading.add(token.text)
        found = text.cue(spec)
        if found is not None:
            sample.reflections += found[0] not in spec.cues.positive
            text.used = len(text.reading.texts) - 1
    found = text.cue(spec, ended=True)
    if found is not None:
        sample.reflections += found[0] not in spec.cues.positive
        text.used = len(text.reading.texts)
    if not kept and trigger != "too_much_reflection":
        text.used = len(text.reading.texts)
    sample.protocol.keep(kept, Author.LARGE)
    if sample.left < 1:
        return FinishReason.LENGTH
    if end is None and answer.ended and not sample.think_end:
        return FinishReason.EOS
    if end is None and answer.full:
        return FinishReason.CONTEXT
    return None


def sentence_end(texts: Sequence[str]) -> int | None:
    """Tokens up to the sentence's end that the last of these tokens makes certain."""
    last = texts[-1]
    if not last:
        return None
    before = [n for n in range(1, len(texts)) if texts[n - 1]]
    if last[0].isspace() and before and re.search(r"[.!?…][\"'”’)\]}*$]*\Z", "".join(texts[: before[-1]])):
        return before[-1]
    if last.isspace():
        return None
    text = "".join(texts)
    ends = re.search(r"[.!?…][\"'”’)\]}*$]*\s+\Z", text) or re.search(r"[。！？][」』”’）]*\s*\Z", text)
    return len(texts) if ends else None


def loop_in(tokens: Sequence[Token], spec: ImprovedRules) -> int:
    """Tokens in the block that repeats at the end; 0: none. Looked for every quarter of the least length."""
    texts = [token.text for token in tokens]
    if len(texts) % max(1, spec.loop_min_tokens // 4) or len(texts) < spec.loop_min_tokens:
        return 0
    for block in range(1, spec.loop_max_block_tokens + 1):
        length = max(spec.loop_repeats * block, spec.loop_min_tokens)
        tail = texts[-length:]
        if length <= len(texts) and tail[block:] == tail[:-block]:
            return block
    return 0


def first_block_end(tokens: Sequence[Token], block: int) -> int:
    """Tokens up to the end of the first block, and of a character."""
    texts = [token.text for token in tokens]
    start = next(n for n in range(len(texts)) if texts[n + block :] == texts[n:-block])
    end = start + block
    while end < len(texts) and not texts[end - 1]:
        end += 1
    return end
