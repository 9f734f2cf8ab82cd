"""Pools as people write them: on the command line, in specthink.toml, and vLLM's own arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.devices import Machine, Pool, parse_pool, plan_workers
from pipeline.devices.file import read_pools
from pipeline.devices.kept import as_json, recall
from pipeline.engine_arguments import OWNED, parse_arguments
from pipeline.errors import ConfigurationError
from pipeline.local import waves
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings, load_settings

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE


@pytest.mark.parametrize(
    ("text", "pool"),
    [
        ("org/a", Pool(role=SMALL, model="org/a")),
        ("org/a@0,1", Pool(role=SMALL, model="org/a", devices=(0, 1))),
        ("org/a@2-5:tp=2", Pool(role=SMALL, model="org/a", devices=(2, 3, 4, 5), tp=2)),
        ("org/a@0:share=0.4", Pool(role=SMALL, model="org/a", devices=(0,), share=0.4)),
        ("org/a:tp=2:workers=2", Pool(role=SMALL, model="org/a", tp=2, workers=2)),
        ("org/a@:workers=2", Pool(role=SMALL, model="org/a", workers=2)),
        ("org/a@cpu:workers=2:threads=4", Pool(role=SMALL, model="org/a", on_cpu=True, workers=2, threads=4)),
        ("a@b@1", Pool(role=SMALL, model="a@b", devices=(1,))),
    ],
)
def test_short_form_is_read(text: str, pool: Pool) -> None:
    assert parse_pool(SMALL, text) == pool


@pytest.mark.parametrize(
    "text",
    [
        "a@x",
        "@0",
        "a@0:tp",
        "a@0:tp=0",
        "a@0:share=2",
        "a@0:size=1",
        "a@5-2",
        "a@1,1",
        "a@0-999999999",
        "a@0,",
        "a@0:tp=1:tp=2",
        "a:tp",
        "a:tp=x",
        "a:main",
        ":tp=2",
        "",
    ],
)
def test_short_form_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_pool(SMALL, text)


def test_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model@0"
    folder.mkdir()
    assert parse_pool(LARGE, str(folder)) == Pool(role=LARGE, model=str(folder))


FILE = """
[environment]
HF_HUB_OFFLINE = "1"

[[pool]]
role = "small"
model = "org/small-1b"
devices = "0-1"
max_in_flight = 64

[[pool]]
role = "large"
model = "here"
devices = [2, 3]
tp = 2

[pool.engine_args]
enforce_eager = true
max_num_batched_tokens = 4096
hf_overrides = { rope_theta = 10000 }

[pool.environment]
VLLM_ATTENTION_BACKEND = "FLASH_ATTN"
"""


def test_file_is_read_with_its_arguments_and_environment(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "specthink.toml"
    file.write_text(FILE)
    small, large = read_pools(file)
    everywhere = {"HF_HUB_OFFLINE": "1"}
    assert small == Pool(role=SMALL, model="org/small-1b", devices=(0, 1), max_in_flight=64, environment=everywhere)
    assert large == Pool(
        role=LARGE,
        model=str(tmp_path / "here"),
        devices=(2, 3),
        tp=2,
        arguments={
            "enforce_eager": "true",
            "max_num_batched_tokens": "4096",
            "hf_overrides": '{"rope_theta": 10000}',
        },
        environment=everywhere | {"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"},
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('role = "small"', 'role = "middle"', "pool.1.role"),
        ("tp = 2", "gpus = 2", "pool.2.gpus"),
        ("tp = 2", 'tp = "2"', "pool.2.tp"),
        ('HF_HUB_OFFLINE = "1"', 'CUDA_VISIBLE_DEVICES = "1"', "CUDA_VISIBLE_DEVICES is not to be set here"),
        ('VLLM_ATTENTION_BACKEND = "FLASH_ATTN"', 'SPECTHINK_REDIS_URL = "x"', "is not to be set here"),
        ("enforce_eager = true", "seed = 1", "engine argument seed is not to be given: each job says how it samples"),
        ("[[pool]]", "[[pool]", "cannot be read"),
        ("tp = 2", "gpus = 2", "pool.2.gpus: there is no such key; there are role, model, name"),
        ("[environment]", "[envirnment]", "envirnment: there is no such key; there are pool, environment"),
        ('HF_HUB_OFFLINE = "1"', 'specthink_redis_url = "x"', "is not to be set here"),
        ("tp = 2", 'revision = ""', "pool.2.revision: String should have at least 1 character"),
        ("enforce_eager = true", "since = 2026-01-01", "write a date or a time in quotes"),
    ],
)
def test_file_with_a_fault_is_refused_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "specthink.toml"
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as raised:
        read_pools(file)
    assert str(raised.value).startswith(str(file))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "specthink.toml"
    file.write_text(FILE, encoding="utf-8-sig")
    assert len(read_pools(file)) == 2


def test_arguments_are_read_as_vllm_writes_them() -> None:
    assert parse_arguments(["quantization=fp8", "--enforce-eager=true", 'hf_overrides={"a": "b=c"}']) == {
        "quantization": "fp8",
        "enforce_eager": "true",
        "hf_overrides": '{"a": "b=c"}',
    }


@pytest.mark.parametrize("given", [["seed"], ["a=1", "a=2"], ["A=1"], ["=1"], *([f"{name}=1"] for name in OWNED)])
def test_arguments_that_are_ours_or_none_are_refused(given: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="engine argument"):
        parse_arguments(given)


def test_settings_refuse_an_argument_that_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_ENGINE__VLLM__ARGUMENTS", '{"enable_lora": "true"}')
    with pytest.raises(ConfigurationError, match="merge it into its base model"):
        load_settings()


def test_arguments_of_a_pool_reach_its_workers_alone(models: Path) -> None:
    pools = [
        Pool(role=SMALL, model=str(models / "1.5b"), arguments={"quantization": "fp8"}),
        Pool(role=LARGE, model=str(models / "7b")),
    ]
    gpus = Machine.model_validate({"cores": 8, "memory_gib": 64, "gpus": [{"count": 2, "memory_gib": 80}]})
    small, large = plan_workers(pools, gpus, EngineSettings(max_model_len=8192)).workers
    assert small.environment["SPECTHINK_ENGINE__VLLM__ARGUMENTS"] == '{"quantization": "fp8"}'
    assert "SPECTHINK_ENGINE__VLLM__ARGUMENTS" not in large.environment


# A second `up`


def test_workers_that_run_stay_where_they_are(models: Path) -> None:
    """Their GPUs are no longer free; a new pool takes what is left."""
    engine = EngineSettings(max_model_len=8192)
    asked = [parse_pool(SMALL, f"{models}/1.5b@:workers=1"), parse_pool(LARGE, f"{models}/7b@:workers=1")]
    free = {"cores": 8, "memory_gib": 64, "gpus": [{"count": 3, "memory_gib": 80}]}
    before = plan_workers(asked, Machine.model_validate(free), engine)
    content = as_json(before, asked)
    more = [*asked, parse_pool(SMALL, f"{models}/7b@:workers=1")]
    busy = {**free, "gpus": [{"count": 2, "memory_gib": 80, "free_gib": 8}, {"memory_gib": 80}]}
    kept = recall(content, more, engine, lambda worker: True)
    after = plan_workers(more, Machine.model_validate(busy), engine, kept)
    assert after.workers[:2] == before.workers
    assert after.workers[2].devices == (2,)
    assert recall(content, more, engine, lambda worker: False) == {}


def test_workers_that_share_a_gpu_start_one_after_the_other() -> None:
    on = {"small": "0", "small-2": "1", "large": "0,1", "large-2": "2", "large-3": "1"}
    environments: dict[str, dict[str, str]] = {name: {"CUDA_VISIBLE_DEVICES": gpus} for name, gpus in on.items()}
    assert waves(environments | {"grade": {}}) == [["small", "small-2", "large-2", "grade"], ["large"], ["large-3"]]
    assert waves({"small": {}, "large": {}, "grade": {}}) == [["small", "large", "grade"]]
