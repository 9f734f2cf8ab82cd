"""Train one model of the pair from scratch on generated traces."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from .problems import Split, draw_problem
from .tokenizer import render_prompt
from .traces import LARGE_STYLE, SMALL_STYLE, TraceStyle, write_trace

IGNORED = -100  # label of a token without loss, as torch's cross entropy expects it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Shape and training of one model."""

    name: str
    style: TraceStyle
    num_layers: int
    width: int
    num_heads: int  # width / num_heads must be a head size of vLLM's CPU attention, such as 32
    num_steps: int
    tokens_per_step: int = 6144
    peak_learning_rate: float = 4e-3
    seed: int = 1


SMALL = Recipe(
    name="demo-small",
    style=SMALL_STYLE,
    num_layers=2,
    width=64,
    num_heads=2,
    num_steps=2200,
)
LARGE = Recipe(
    name="demo-large",
    style=LARGE_STYLE,
    num_layers=3,
    width=96,
    num_heads=3,
    num_steps=2000,
)


class Batch(NamedTuple):
    """Token ids and labels, (num_sequences, length), padded on the right."""

    inputs: Tensor
    labels: Tensor


def build_model(recipe: Recipe, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 model of the recipe's shape with fresh weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def train_model(recipe: Recipe, tokenizer: Qwen2Tokenizer, folder: Path) -> float:
    """Train, save into `folder` and return the seconds taken."""
    torch.manual_seed(recipe.seed)
    started = time.monotonic()
    model = build_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    batches = _draw_batches(recipe, tokenizer)
    for step in range(recipe.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_learning_rate * _schedule(step, recipe.num_steps)
        loss = _loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(
                f"{recipe.name} step {step} loss {loss.item():.4f} {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % 500 == 499:  # a run that is cut off leaves something to look at
            save_model(model, tokenizer, folder)
    save_model(model, tokenizer, folder)
    return time.monotonic() - started


def save_model(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Write a complete Hugging Face folder."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        top_k=50,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _schedule(step: int, num_steps: int) -> float:
    """Factor on the learning rate: linear warm-up over 100 steps, then a cosine to 2 %."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def _loss(model: Qwen2ForCausalLM, batch: Batch) -> Tensor:
    # No attention mask: padding is on the right, where a causal model never looks.
    hidden = model.model(input_ids=batch.inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = batch.labels[:, 1:]
    learned = labels != IGNORED  # the prompt is a large part: its logits are not needed
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[learned])


def _draw_batches(recipe: Recipe, tokenizer: Qwen2Tokenizer) -> Iterator[Batch]:
    """Endless batches of about `tokens_per_step` tokens; sequences of similar length share one."""
    rng = random.Random(recipe.seed)
    while True:
        pool = sorted(
            (_draw_sequence(recipe.style, tokenizer, rng) for _ in range(1024)),
            key=lambda s: len(s[0]),
        )
        batches = []
        while pool:
            count = max(1, recipe.tokens_per_step // len(pool[-1][0]))
            batches.append(_pad(pool[-count:], tokenizer.pad_token_id))
            del pool[-count:]
        rng.shuffle(batches)
        yield from batches


def _draw_sequence(style: TraceStyle, tokenizer: Qwen2Tokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids and labels of one training problem with its trace; the prompt carries no loss."""
    problem = draw_problem(rng, Split.TRAIN)
    trace = write_trace(problem, style, rng)
    prompt = tokenizer.encode(render_prompt(tokenizer, problem.text), add_special_tokens=False)
    encoded = tokenizer(trace.text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        IGNORED if any(start < stop and first < end for first, stop in trace.without_loss) else token
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    eos = [tokenizer.eos_token_id]
    return prompt + encoded["input_ids"] + eos, [IGNORED] * len(prompt) + labels + eos


def _pad(sequences: list[tuple[list[int], list[int]]], pad_token_id: int) -> Batch:
    length = max(len(ids) for ids, _ in sequences)
    return Batch(
        inputs=torch.tensor([ids + [pad_token_id] * (length - len(ids)) for ids, _ in sequences]),
        labels=torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in sequences]),
    )
