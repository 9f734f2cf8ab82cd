"""A plain reference for Speculative Thinking with two models: batched, in lock step, torch and transformers only.

It follows the `improved` rule in its essentials and is meant for choosing the demo pair's recipe and as a second
opinion on the pipeline's figures. It leaves out what the pair never reaches: the rule on too much reflection (R3)
and the loop guard.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from .tokenizer import render_prompt
from .traces import BREAK, THINK_END

WINDOW = 20  # tokens after a break that are searched for a cue
SHORT_TAKEOVER = 20  # n1
LONG_TAKEOVER = 125  # n2, after a verify cue
MAX_TOKENS = 400  # of one sample; five times the usual length
VERIFY_CUES = ("verify", "think again", "recap", "check")
OTHER_CUES = (
    "wait",
    "alternatively",
    "hold on",
    "another",
    "yeah",
    "yes",
    "final answer",
    "confident",
)
_CUE = re.compile(rf"\b({'|'.join(VERIFY_CUES + OTHER_CUES)})\b", re.IGNORECASE)

Stop = Callable[[list[str]], bool]


@dataclass(slots=True)
class Writing:
    """A sample in the making: whose tokens it consists of so far."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    by_large: list[bool] = field(default_factory=list)
    num_takeovers: int = 0
    takeover_limit: int = SHORT_TAKEOVER  # of the takeover that is due
    is_finished: bool = False

    def keep(self, tokens: list[int], *, by_large: bool) -> None:
        self.tokens += tokens
        self.by_large += [by_large] * len(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one way of answering the problems came to."""

    accuracy: float
    mean_tokens: float  # kept output tokens of a sample
    large_share: float  # of these, over all samples
    mean_takeovers: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.3f}  mean tokens {self.mean_tokens:.1f}  "
            f"large share {self.large_share:.3f}  takeovers {self.mean_takeovers:.2f}"
        )


class Writer:
    """A model that continues many token sequences at once."""

    def __init__(self, folder: Path, *, seed: int = 0, batch_size: int = 200) -> None:
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        self._model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._generator = torch.Generator().manual_seed(seed)
        self._batch_size = batch_size
        self.pieces = [self.tokenizer.decode([token]) for token in range(len(self.tokenizer))]

    def continue_all(self, sequences: list[list[int]], stop: Stop) -> list[list[int]]:
        """New tokens for each sequence, up to its end, MAX_TOKENS or the token at which `stop` says so.

        stop: asked after each token; gets the texts of the sequence's last given token and of the new ones.
        """
        continued: list[list[int]] = []
        for first in range(0, len(sequences), self._batch_size):
            continued += self._continue_batch(sequences[first : first + self._batch_size], stop)
        return continued

    @torch.inference_mode()
    def _continue_batch(self, sequences: list[list[int]], stop: Stop) -> list[list[int]]:
        length = max(map(len, sequences))
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (length - len(s)) + s for s in sequences])
        mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in sequences])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = None
        new: list[list[int]] = [[] for _ in sequences]
        pieces = [[self.pieces[s[-1]]] for s in sequences]
        running = set(range(len(sequences)))
        while running:
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            drawn = self._sample(output.logits[:, -1])
            for row in sorted(running):
                token = int(drawn[row])
                new[row].append(token)
                pieces[row].append(self.pieces[token])
                if token == eos or len(new[row]) >= MAX_TOKENS or stop(pieces[row]):
                    running.discard(row)
            ids = drawn[:, None]
            mask = torch.cat([mask, torch.ones(len(sequences), 1, dtype=mask.dtype)], dim=1)
            positions = positions[:, -1:] + 1
        return new

    def _sample(self, logits: Tensor) -> Tensor:
        """Temperature 0.6, top_k 50, top_p 0.95, as the pipeline's default."""
        values, tokens = (logits.float() / 0.6).topk(50)
        probabilities = values.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= 0.95] = 0.0
        choice = torch.multinomial(probabilities, 1, generator=self._generator)
        return tokens.gather(-1, choice)[:, 0]


def start_writings(writer: Writer, problems: list[str], num_samples: int) -> list[Writing]:
    """`num_samples` empty writings for each problem, in order."""
    prompts = [writer.tokenizer.encode(render_prompt(writer.tokenizer, p), add_special_tokens=False) for p in problems]
    return [Writing(prompt=prompt) for prompt in prompts for _ in range(num_samples)]


def write_alone(writer: Writer, writings: list[Writing], *, is_large: bool) -> None:
    """Let one model write every answer to its end."""
    answers = writer.continue_all([w.prompt for w in writings], stop=lambda pieces: False)
    for writing, tokens in zip(writings, answers, strict=True):
        writing.keep(tokens, by_large=is_large)


def write_as_pair(small: Writer, large: Writer, writings: list[Writing], *, to_step_end: bool = True) -> None:
    """Let the small model write and the large one take over where a cue shows doubt (rules R1 and R2)."""
    rounds = 0
    while open_writings := [w for w in writings if not w.is_finished]:
        rounds += 1
        _write_small(small, open_writings)
        handed = [w for w in open_writings if not w.is_finished]
        if handed:
            _write_large(large, handed, to_step_end=to_step_end)
        for writing in handed:
            writing.is_finished = len(writing.tokens) >= MAX_TOKENS or rounds >= 60


def _write_small(small: Writer, writings: list[Writing]) -> None:
    """Continue each writing until it ends, or cut it back to the break whose window holds a cue."""
    contexts = [w.prompt + w.tokens for w in writings]
    segments = small.continue_all(contexts, stop=lambda pieces: find_takeover(pieces) is not None)
    for writing, context, segment in zip(writings, contexts, segments, strict=True):
        start = find_takeover([small.pieces[token] for token in context[-1:] + segment])
        if start is None:
            writing.keep(segment, by_large=False)
            writing.is_finished = True
        else:
            writing.keep(segment[: start - 1], by_large=False)
            writing.num_takeovers += 1
            writing.takeover_limit = cue_limit([small.pieces[token] for token in segment[start - 1 :]])


def _write_large(large: Writer, writings: list[Writing], *, to_step_end: bool) -> None:
    """Let the large model write its piece of each writing."""
    contexts = [w.prompt + w.tokens for w in writings]
    segments: list[list[int]] = [[] for _ in writings]
    for limit in (SHORT_TAKEOVER, LONG_TAKEOVER):
        rows = [row for row, writing in enumerate(writings) if writing.takeover_limit == limit]
        stop = partial(_ends_takeover, limit=limit, to_step_end=to_step_end)
        for row, segment in zip(rows, large.continue_all([contexts[row] for row in rows], stop), strict=True):
            segments[row] = segment
    for writing, segment in zip(writings, segments, strict=True):
        writing.keep(segment, by_large=True)
        writing.is_finished = segment[-1] == large.tokenizer.eos_token_id


def find_takeover(pieces: list[str]) -> int | None:
    """Index after the earliest break whose window holds a cue, or None.

    pieces: one text per token; the first is the token before the small model's segment.
    """
    if THINK_END in pieces:
        pieces = pieces[: pieces.index(THINK_END)]
    for index, piece in enumerate(pieces):
        if piece.endswith(BREAK) and _CUE.search("".join(pieces[index + 1 : index + 1 + WINDOW])):
            return index + 1
    return None


def cue_limit(pieces: list[str]) -> int:
    """Tokens of a takeover whose first window is `pieces`, by its first cue."""
    cue = _CUE.search("".join(pieces[:WINDOW]))
    return LONG_TAKEOVER if cue is not None and cue[1].lower() in VERIFY_CUES else SHORT_TAKEOVER


def _ends_takeover(pieces: list[str], *, limit: int, to_step_end: bool) -> bool:
    """Whether the large model hands back; `pieces` starts with the token before its own."""
    own = pieces[1:]
    limit = max(limit, cue_limit(own))
    at_step_end = to_step_end and limit == SHORT_TAKEOVER and own[-1].endswith(BREAK)
    return at_step_end or len(own) >= limit or own[-1] == THINK_END


def score(writings: list[Writing], answers: list[str], tokenizer: Qwen2Tokenizer) -> Figures:
    """Figures over all writings; `answers` has one entry for each of them."""
    texts = [tokenizer.decode(w.tokens) for w in writings]
    num_right = sum(_boxed(str(text)) == answer for text, answer in zip(texts, answers, strict=True))
    num_tokens = sum(len(w.tokens) for w in writings)
    return Figures(
        accuracy=num_right / len(writings),
        mean_tokens=num_tokens / len(writings),
        large_share=sum(sum(w.by_large) for w in writings) / num_tokens,
        mean_takeovers=sum(w.num_takeovers for w in writings) / len(writings),
    )


def _boxed(text: str) -> str | None:
    found = re.findall(r"\\boxed\{([^{}]*)\}", text.partition(THINK_END)[2])
    return found[-1] if found else None
