"""Models made for a measurement: the shape and tokenizer of a demo model, with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bench.stack import MODELS
from pipeline.chat.model import ChatModel

_EMBEDDINGS = "model.embed_tokens.weight"
_INITIALIZER_RANGE = 0.05


def make_endless(folder: Path) -> Path:
    """A small model whose texts all reach their limit: every measured run then writes the same number of tokens.

    Its embeddings are tied and those of the end tokens are zero, so that their logits are 0 amid hundreds of random
    ones: never among the likeliest top_k. Any engine that samples with a top_k is held to it alike. So it is with
    tokens that are a part of a character only, which real texts hardly have and which take longer to decode.
    """
    folder.mkdir(parents=True)
    for file in MODELS["small"].iterdir():
        shutil.copy(file, folder)
    random = np.random.default_rng(0)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim > 1:
            weights[name] = random.normal(0, _INITIALIZER_RANGE, weight.shape).astype(weight.dtype)
    chat = ChatModel.load(folder)
    texts = [chat.tokenizer.decode([token], skip_special_tokens=False) for token in range(len(weights[_EMBEDDINGS]))]
    weights[_EMBEDDINGS][[*chat.eos_ids, *(token for token, text in enumerate(texts) if "\ufffd" in text)]] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
