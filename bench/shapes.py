"""Models of a published shape with random weights: config.json and a tokenizer, made here, and no weights on disk.

vLLM fills the weights itself (``load_format`` dummy). What it then writes means nothing, but costs what the real model
costs: the shape, the vocabulary and the lengths are real. The tokenizer gives nearly every id a word of its own, some
of which end a sentence or a step, so that policies, steps and the watcher have real work.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINE_ARGUMENTS = {"load_format": "dummy"}
"""What a worker of such a model is told beside its folder."""
MAX_MODEL_LEN = 4096

_QWEN_VOCABULARY = 151_936
_EVERY_SENTENCE, _EVERY_BREAK = 8, 40
"""Each so manieth word ends a sentence, or a paragraph: about as often as in a mathematical text."""
_END = "<|end|>"
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}<think>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides how long a step of a Qwen2 model takes. Source: config.json of Qwen2.5's models of this size."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool = False
    vocab_size: int = _QWEN_VOCABULARY
    dtype: str = "bfloat16"

    @property
    def num_parameters(self) -> int:
        """Weights of all tensors."""
        hidden, inner = self.hidden_size, self.intermediate_size
        keys = hidden // self.num_attention_heads * self.num_key_value_heads
        attention = 2 * hidden * hidden + hidden + 2 * (hidden * keys + keys)
        layer = attention + 3 * hidden * inner + 2 * hidden
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + hidden

    def config(self) -> dict[str, Any]:
        """config.json."""
        sizes = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "tie_word_embeddings", "vocab_size", "dtype",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in sizes},
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "max_position_embeddings": MAX_MODEL_LEN,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "use_sliding_window": False,
            "eos_token_id": self.vocab_size,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="1.5b", hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
            num_key_value_heads=2, tie_word_embeddings=True,
        ),
        Shape(
            name="7b", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4,
        ),
        Shape(
            name="32b", hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
            num_key_value_heads=8,
        ),
        Shape(
            name="toy-small", hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=True, vocab_size=1024, dtype="float32",
        ),
        Shape(
            name="toy-large", hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=3,
            num_key_value_heads=3, vocab_size=1024, dtype="float32",
        ),
    )
}  # fmt: skip
"""By name; the toys are for machines without a GPU."""


def make_model(shape: Shape, folder: Path) -> Path:
    """Write the model's folder, named after the shape.

    Its end token is one past what the model's head can give, so that each text reaches its limit: every measured run
    then writes the same number of tokens.
    """
    place = folder / shape.name
    place.mkdir(parents=True)
    total_size = shape.num_parameters * (4 if shape.dtype == "float32" else 2)
    files = {
        "config.json": shape.config(),
        "generation_config.json": {"eos_token_id": shape.vocab_size},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": _END,
            "model_max_length": MAX_MODEL_LEN,
        },
        "model.safetensors.index.json": {"metadata": {"total_size": total_size}, "weight_map": {}},
        "tokenizer.json": _tokenizer(shape.vocab_size),
    }
    for name, content in files.items():
        (place / name).write_text(json.dumps(content), encoding="utf-8")
    (place / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    return place


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """tokenizer.json: all bytes, then words. Prompts are written in bytes: it has no merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = _words()
    vocabulary = {text: number for number, text in enumerate(letters)}
    while len(vocabulary) < vocab_size:
        vocabulary[next(words)] = len(vocabulary)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    end = {"id": vocab_size, "content": _END, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [{**end, **flags}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _words() -> Iterator[str]:
    """Words as a byte-level vocabulary spells them, each with the space before it: " ba", " ca", … " xab.", ….

    Without an end; no two are equal.
    """
    number = len(string.ascii_lowercase)
    while True:
        word, left = "", number
        while left:
            left, letter = divmod(left, len(string.ascii_lowercase))
            word += string.ascii_lowercase[letter]
        ending = ".ĊĊ" if number % _EVERY_BREAK == 0 else "." if number % _EVERY_SENTENCE == 0 else ""
        yield f"Ġ{word}{ending}"
        number += 1
