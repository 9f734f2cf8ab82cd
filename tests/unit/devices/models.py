"""Model folders of real sizes without their weights: config.json, and a safetensors file that is a header alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QWEN_1_5B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072,
}  # fmt: skip
QWEN_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
}  # fmt: skip
QWEN_32B = {
    "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
    "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 131072,
}  # fmt: skip
PARAMETERS = {1536: 1_777_088_000, 3584: 7_615_616_512, 5120: 32_763_876_352}
"""Of the published checkpoints, by width."""


def write_model(folder: Path, config: dict[str, Any], *, dtype: str = "BF16", parameters: int | None = None) -> str:
    """A folder as a checkpoint has it, but for tokenizer and tensors; returns its path."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    count = parameters or PARAMETERS[config["hidden_size"]]
    header = json.dumps({"weights": {"dtype": dtype, "shape": [count], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(folder)
