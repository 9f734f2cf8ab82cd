"""Sizes of models, read from config.json and headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.devices.sizes import read_size, refuse_unusable
from pipeline.errors import ConfigurationError
from tests.unit.devices.models import QWEN_1_5B, QWEN_7B, QWEN_32B, write_model

DEMO = Path(__file__).parents[3] / "examples" / "models" / "demo-large"
KIB = 1024


def test_weights_are_those_of_the_file() -> None:
    size = read_size(str(DEMO))
    stored = (DEMO / "model.safetensors").stat().st_size
    assert stored - 20_000 < size.weight_bytes("auto", on_gpu=False) < stored
    assert size.weight_bytes("auto", on_gpu=True) * 2 == size.weight_bytes("float32", on_gpu=True)


@pytest.mark.parametrize(("name", "kib"), [("1.5b", 28), ("7b", 56), ("32b", 256)])
def test_cache_of_one_token_is_two_numbers_per_layer_and_head(models: Path, name: str, kib: int) -> None:
    size = read_size(str(models / name))
    assert size.kv_bytes(1) == kib * KIB
    assert size.kv_bytes(2) == kib * KIB // 2
    assert size.kv_bytes(1, number_bytes=1) == kib * KIB // 2


def test_heads_are_repeated_where_there_are_fewer_than_gpus(models: Path) -> None:
    size = read_size(str(models / "1.5b"))  # two key-value heads
    assert size.kv_bytes(4) == size.kv_bytes(2)


def test_half_of_float32_is_taken_on_a_gpu(tmp_path: Path) -> None:
    size = read_size(write_model(tmp_path / "m", QWEN_1_5B, dtype="F32"))
    assert size.weight_bytes("auto", on_gpu=True) == 2 * size.num_parameters
    assert size.weight_bytes("auto", on_gpu=False) == 4 * size.num_parameters


def test_quantised_weights_stay_as_they_are_stored(tmp_path: Path) -> None:
    config = QWEN_7B | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    size = read_size(write_model(tmp_path / "m", config, dtype="I32", parameters=1_000_000))
    assert size.quantization == "gptq"
    assert size.weight_bytes("auto", on_gpu=True) == size.weight_bytes("float32", on_gpu=False) == 4_000_000


def test_a_latent_cache_is_one_vector_per_layer(tmp_path: Path) -> None:
    config = QWEN_7B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    size = read_size(write_model(tmp_path / "m", config))
    assert size.kv_bytes(1) == size.kv_bytes(8) == 28 * 576 * 2


def test_model_of_an_index_alone_has_the_size_it_names(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_model(folder, {**QWEN_32B, "torch_dtype": "bfloat16"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1000}}))
    assert read_size(str(folder)).weight_bytes("auto", on_gpu=True) == 1000


def test_sizes_of_a_model_with_pictures_are_those_of_its_text_part(tmp_path: Path) -> None:
    config = {"text_config": QWEN_7B, "vision_config": {"hidden_size": 1}}
    folder = write_model(tmp_path / "m", QWEN_7B)
    (Path(folder) / "config.json").write_text(json.dumps(config))
    assert read_size(folder).num_layers == 28


def test_adapter_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(ConfigurationError, match=r"is an adapter \(LoRA\) of org/base, not a model: merge it"):
        refuse_unusable(str(tmp_path), tmp_path)


def test_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigurationError, match="GGUF"):
        read_size(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 20, (5).to_bytes(8, "little") + b"[1,2]"])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    folder = write_model(tmp_path / "m", QWEN_7B)
    (Path(folder) / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors: its weights cannot be read"):
        read_size(folder)


def test_config_without_its_numbers_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", QWEN_7B)
    (Path(folder) / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"config\.json does not say its layers"):
        read_size(folder)
