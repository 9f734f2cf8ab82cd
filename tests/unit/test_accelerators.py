"""Accelerators as people write them, on the command line, in specthink.toml and in settings, and what they cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.accelerators import parse_accelerator
from pipeline.devices import Machine, Pool, plan_workers
from pipeline.devices.file import read_pools
from pipeline.devices.sizes import read_size
from pipeline.engine_arguments import parse_arguments
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import EngineKind, EngineSettings, VllmSettings, load_settings
from tests.unit.devices.models import QWEN_1_5B, QWEN_7B, write_model
from workers.engine.loading import load_engine

GPUS = Machine.model_validate({"cores": 8, "memory_gib": 64, "gpus": [{"count": 1, "memory_gib": 80}]})
ENGINE = EngineSettings(max_model_len=8192)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders named 1.5b and 7b, as published with vocabularies of two lengths, and 7b-alike with that of 1.5b."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "1.5b", QWEN_1_5B)
    write_model(folder / "7b", QWEN_7B)
    write_model(folder / "7b-alike", QWEN_7B | {"vocab_size": QWEN_1_5B["vocab_size"]})
    return folder


@pytest.mark.parametrize(
    ("text", "draft_tokens", "config"),
    [
        ("ngram", None,
         {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 5}),
        ("suffix", None, {"method": "suffix", "num_speculative_tokens": 16}),
        ("eagle3:org/head", None, {"method": "eagle3", "model": "org/head", "num_speculative_tokens": 3}),
        ("draft:org/small", 7, {"method": "draft_model", "model": "org/small", "num_speculative_tokens": 7,
                                "draft_tensor_parallel_size": 2}),
    ],
)  # fmt: skip
def test_accelerator_is_what_vllm_calls_it(text: str, draft_tokens: int | None, config: dict[str, Any]) -> None:
    assert parse_accelerator(text, draft_tokens).speculative_config(tensor_parallel_size=2) == config
    assert parse_accelerator(text).label == text


def test_folder_of_a_draft_model_is_stored_by_its_name(models: Path) -> None:
    assert parse_accelerator(f"draft:{models}/1.5b").label == "draft:1.5b"


@pytest.mark.parametrize("text", ["", "medusa", "ngram:org/a", "draft", "draft:", "eagle3"])
def test_accelerator_that_is_none_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write ngram, suffix, eagle3:MODEL or draft:MODEL"):
        parse_accelerator(text)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE": "medusa"}, "write ngram"),
        ({"DRAFT_TOKENS": "4"}, "draft_tokens goes with accelerate"),
        ({"ACCELERATE": "ngram", "DRAFT_TOKENS": "0"}, "DRAFT_TOKENS"),
    ],
)
def test_settings_refuse_what_does_not_go(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SPECTHINK_ENGINE__VLLM__{name}", value)
    with pytest.raises(ConfigurationError, match=said):
        load_settings()


def test_vllms_own_argument_is_refused_with_the_way_to_say_it() -> None:
    with pytest.raises(ConfigurationError, match="--accelerate, or SPECTHINK_ENGINE__VLLM__ACCELERATE"):
        parse_arguments(['speculative_config={"method": "ngram"}'])


def test_engine_of_a_server_has_no_accelerator() -> None:
    settings = EngineSettings(kind=EngineKind.SERVER, vllm=VllmSettings(accelerate="ngram"))
    with pytest.raises(ConfigurationError, match="whoever runs the server tells it"):
        load_engine(None, revision=None, role=ModelRole.LARGE, settings=settings)  # type: ignore[arg-type]  # not read


FILE = """
[[pool]]
role = "small"
model = "1.5b"

[[pool]]
role = "large"
model = "7b-alike"
accelerate = "draft:1.5b"
draft_tokens = 6
"""


def test_file_gives_a_pool_its_accelerator_and_it_reaches_its_workers_alone(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = models / "specthink.toml"
    file.write_text(FILE)
    small, large = plan_workers(read_pools(file), GPUS, ENGINE).workers
    assert large.environment["SPECTHINK_ENGINE__VLLM__ACCELERATE"] == f"draft:{models}/1.5b", "programs run elsewhere"
    assert large.environment["SPECTHINK_ENGINE__VLLM__DRAFT_TOKENS"] == "6"
    assert not [name for name in small.environment if "ACCELERATE" in name or "DRAFT" in name]
    made = load_settings_of(large.environment, monkeypatch)
    assert made.engine.vllm.accelerator == large.engine.vllm.accelerator


def load_settings_of(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_draft_model_needs_room_beside_its_large_model(models: Path) -> None:
    large, draft = read_size(f"{models}/7b-alike"), read_size(f"{models}/1.5b")
    both = dataclasses.replace(large, draft=draft)
    for size in (lambda one: one.weight_bytes("auto", on_gpu=True), lambda one: one.kv_bytes(2)):
        assert size(both) == size(large) + size(draft)
    pool = Pool(role=ModelRole.LARGE, model=f"{models}/7b-alike")
    [plain] = plan_workers([pool], GPUS, ENGINE).workers
    [drafting] = plan_workers([dataclasses.replace(pool, accelerate=f"draft:{models}/1.5b")], GPUS, ENGINE).workers
    assert drafting.weights == both.weight_bytes("auto", on_gpu=True)
    assert (drafting.cache_tokens or 0) < (plain.cache_tokens or 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "7b", "accelerate": "draft:1.5b"}, "1.5b has 151936 ids, and 7b has 152064"),
        ({"model": "7b", "accelerate": "medusa"}, "write ngram"),
        ({"model": "7b", "draft_tokens": 3}, "draft tokens go with an accelerator"),
        ({"model": "7b", "accelerate": "ngram", "server": "http://host:8000/v1"}, "accelerators and engine arguments"),
    ],
)
def test_plan_refuses_an_accelerator_that_cannot_be(models: Path, given: dict[str, Any], said: str) -> None:
    own = given | {"model": f"{models}/{given['model']}"}
    if "accelerate" in own:
        own["accelerate"] = own["accelerate"].replace("draft:", f"draft:{models}/")
    with pytest.raises(ConfigurationError, match=said):
        plan_workers([Pool(role=ModelRole.LARGE, **own)], GPUS, ENGINE)
