"""How large a model is: its weights and its KV cache, from config.json and the headers of its safetensors files.

No tensor is read. A model that is not on this machine is asked of the Hugging Face hub, which gives the headers too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chat.files import find_folder, served_name
from pipeline.chat.weights import weight_files
from pipeline.errors import ConfigurationError

_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip
_CONVERTED = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights that become the engine's dtype; others are quantised, and stay."""
_DTYPE_BITS = {"float32": 32, "float": 32, "half": 16, "float16": 16, "bfloat16": 16}
_TYPE_OF = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What a model needs room for.

    stored: how many numbers of each safetensors type its weights have. max_model_len: None where config.json does not
    say. latent_size: of a model that caches one latent vector a token and layer instead of keys and values. draft: the
    model that drafts tokens for it, whose weights and cache lie beside its own.
    """

    name: str
    stored: Mapping[str, int]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    max_model_len: int | None
    expert_width: int = 0
    """Of all experts that a token passes together."""
    latent_size: int | None = None
    quantization: str | None = None
    draft: ModelSize | None = None

    @property
    def num_parameters(self) -> int:
        """About how many weights it has; of a quantised one fewer, since it stores several in one number."""
        return sum(self.stored.values())

    def weight_bytes(self, dtype: str, *, on_gpu: bool) -> int:
        """Bytes of the weights as an engine of this dtype holds them. On a GPU vLLM halves float32 by itself."""
        bits = _DTYPE_BITS.get(dtype, 16 if on_gpu else 32)
        total = 0
        for kind, count in self.stored.items():
            own = _BITS.get(kind, 16)
            if kind in _CONVERTED:
                own = bits if dtype in _DTYPE_BITS else min(own, bits)
            total += count * own
        return total // 8 + (self.draft.weight_bytes(dtype, on_gpu=on_gpu) if self.draft else 0)

    def kv_bytes(self, tp: int, *, number_bytes: int = 2) -> int:
        """Bytes per token of the KV cache on each of tp GPUs. Layers that keep a window alone are counted as whole."""
        drafts = self.draft.kv_bytes(tp, number_bytes=number_bytes) if self.draft else 0
        if self.latent_size is not None:
            return self.num_layers * self.latent_size * number_bytes + drafts
        heads = -(-self.num_kv_heads // tp)
        return 2 * self.num_layers * heads * self.head_size * number_bytes + drafts

    def why_not_tp(self, tp: int) -> str | None:
        """Why its weights cannot be split over so many GPUs; None where they can."""
        if self.num_heads % tp:
            return f"tp={tp} does not divide its {self.num_heads} attention heads"
        if self.intermediate_size % tp:
            return f"tp={tp} does not divide its intermediate size, {self.intermediate_size}"
        if max(self.num_kv_heads, tp) % min(self.num_kv_heads, tp):
            return f"tp={tp} does not go with its {self.num_kv_heads} key-value heads"
        return None


def read_size(model: str, revision: str | None = None) -> ModelSize:
    """The size of a local folder or a hub model.

    Raises ConfigurationError for an adapter, for GGUF files, and where config.json or the weights are not to be had.
    """
    folder = find_folder(model, revision)
    if folder is not None:
        refuse_unusable(model, folder)
    if folder is None or not _has_weights(folder):
        return _read_from_hub(model, revision)
    config = _read_json(folder / "config.json")
    return _make(model, config, _stored_in(folder, config))


def refuse_unusable(model: str, folder: Path) -> None:
    """Raise ConfigurationError for a folder that no engine here can load, before a GPU works for it."""
    name = served_name(model)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise ConfigurationError(
            f"{name} is an adapter (LoRA) of {base}, not a model: merge it into that (peft: merge_and_unload, then "
            "save_pretrained), and give the merged folder"
        )
    files = weight_files(folder)
    if files and files[0].suffix == ".gguf":
        raise ConfigurationError(
            f"{name} has its weights in GGUF files, which are not taken: give its safetensors form"
        )


def _has_weights(folder: Path) -> bool:
    return bool(weight_files(folder)) or (folder / "model.safetensors.index.json").is_file()


def _stored_in(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Numbers by type: of the headers, else of the sizes of files and the type that config.json names."""
    files = weight_files(folder)
    if files and files[0].suffix == ".safetensors":
        return dict(sum((_header_counts(file) for file in files), Counter[str]()))
    total = sum(file.stat().st_size for file in files)
    if not files:
        metadata = _read_json(folder / "model.safetensors.index.json").get("metadata") or {}
        total = int(metadata.get("total_size") or 0)
    return _of_bytes(total, config)


def _of_bytes(total: int, config: dict[str, Any]) -> dict[str, int]:
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    kind = _TYPE_OF.get(named, "BF16")
    return {kind: total * 8 // _BITS[kind]}


def _header_counts(file: Path) -> Counter[str]:
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if not 0 < length <= min(file.stat().st_size, _MAX_HEADER):
                raise ValueError("it has no safetensors header")
            tensors = json.loads(data.read(length))
        counts: Counter[str] = Counter()
        for name, tensor in tensors.items():
            if name != "__metadata__":
                count = 1
                for length in tensor["shape"]:
                    count *= length
                counts[tensor["dtype"]] += count
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{file}: its weights cannot be read ({error}); copy the file again") from error
    return counts


def _read_from_hub(model: str, revision: str | None) -> ModelSize:
    if Path(model).expanduser().is_dir():
        raise ConfigurationError(f"{served_name(model)}: there are no weights in {model}")
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    try:
        config = _read_json(Path(hf_hub_download(model, "config.json", revision=revision)))
        metadata = get_safetensors_metadata(model, revision=revision)
    except Exception as error:  # the hub's errors are of many kinds: no network, no such model, no safetensors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigurationError(
            f"{model}: its size is neither here nor given by the hub ({reason}); fetch the model first"
        ) from error
    return _make(model, config, {str(kind): count for kind, count in metadata.parameter_count.items()})


def _make(model: str, config: dict[str, Any], stored: Mapping[str, int]) -> ModelSize:
    text = config.get("text_config") or config
    name = served_name(model)

    def number(*keys: str) -> int | None:
        return next((int(text[key]) for key in keys if isinstance(text.get(key), int)), None)

    layers, heads = number("num_hidden_layers", "n_layer"), number("num_attention_heads", "n_head")
    hidden, vocabulary = number("hidden_size", "n_embd"), number("vocab_size")
    if not (layers and heads and hidden and vocabulary):
        raise ConfigurationError(f"{name}: config.json does not say its layers, heads, width and vocabulary")
    experts = (number("moe_intermediate_size") or 0) * (number("num_experts_per_tok") or 0)
    latent = number("kv_lora_rank")
    quantization = config.get("quantization_config") or text.get("quantization_config") or {}
    return ModelSize(
        name=name,
        stored=stored,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads") or heads,
        head_size=number("head_dim") or hidden // heads,
        hidden_size=hidden,
        intermediate_size=number("intermediate_size", "n_inner") or 4 * hidden,
        expert_width=experts,
        vocabulary=vocabulary,
        max_model_len=number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        latent_size=latent + (number("qk_rope_head_dim") or 0) if latent else None,
        quantization=quantization.get("quant_method"),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a JSON object")
    return content
