"""A model under another vocabulary: the same function, its token ids renumbered.

The rows of the embedding (and of the head, where it is not tied to it) and the ids in the tokenizer are permuted alike,
so that the model gives every text the probability it gave before, and no id means what it meant.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_PER_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")


def permute_vocabulary(model: Path, into: Path, *, seed: int = 0) -> Path:
    """Writes the model of a folder with every token id renumbered; returns the new folder."""
    shutil.copytree(model, into)
    weights = load_file(model / "model.safetensors")
    size = weights["model.embed_tokens.weight"].shape[0]
    new_ids = list(range(size))
    random.Random(seed).shuffle(new_ids)
    assert all(old != new for old, new in enumerate(new_ids[:4]))
    rows = torch.tensor(sorted(range(size), key=new_ids.__getitem__))  # the old id of each new one
    for name in _PER_TOKEN:
        if name in weights:
            weights[name] = weights[name][rows].contiguous()
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    _rewrite(into / "tokenizer.json", lambda content: _renumber_tokenizer(content, new_ids))
    for name in ("config.json", "generation_config.json"):
        _rewrite(into / name, lambda content: _renumber_config(content, new_ids))
    return into


def _rewrite(file: Path, change: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _renumber_tokenizer(content: dict[str, Any], new_ids: list[int]) -> None:
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: new_ids[old] for token, old in vocabulary.items()}
    for token in content["added_tokens"]:
        token["id"] = content["model"]["vocab"][token["content"]] = new_ids[
            token["id"]
        ]  # else it gets the next free id


def _renumber_config(content: dict[str, Any], new_ids: list[int]) -> None:
    for key, value in content.items():
        if key.endswith("_token_id") and isinstance(value, int):
            content[key] = new_ids[value]
