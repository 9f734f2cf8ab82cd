"""Arguments of vLLM's own, as a person gives them: typed by vLLM, given to its engine, part of what the engine is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings, VllmSettings
from workers.engine.loading import load_engine
from workers.engine.vllm.arguments import set_environment
from workers.engine.vllm.given import typed_arguments
from workers.engine.vllm.inline import InlineEngine

MODELS = Path(__file__).parents[2] / "examples" / "models"
pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    set_environment(str(MODELS / "demo-small"), EngineSettings())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("enforce_eager", "true", True),
        ("enforce_eager", "no", False),
        ("max_num_batched_tokens", "4096", 4096),
        ("quantization", "fp8", "fp8"),
        ("cpu_offload_gb", "2", 2.0),
        ("hf_overrides", '{"a": 1}', {"a": 1}),
        ("speculative_config", '{"method": "ngram", "num_speculative_tokens": 3}',
         {"method": "ngram", "num_speculative_tokens": 3}),
        ("cudagraph_capture_sizes", "1,2,4", [1, 2, 4]),
        ("trust_remote_code", "true", True),
    ],
)  # fmt: skip
def test_value_has_the_type_of_its_field(name: str, text: str, value: Any) -> None:
    assert typed_arguments({name: text}) == {name: value}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("quantisation", "fp8", "is no field of vLLM's EngineArgs; near it: quantization"),
        ("enforce_eager", "perhaps", "is true or false, not 'perhaps'"),
        ("max_num_batched_tokens", "many", "refused by vLLM: argument --max-num-batched-tokens"),
        ("kv_cache_dtype", "fp9", "invalid choice: 'fp9'"),
    ],
)
def test_what_vllm_does_not_take_is_refused_before_a_model_is_loaded(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match="engine argument") as raised:
        typed_arguments({name: text})
    assert said in str(raised.value)


def load(**arguments: str) -> InlineEngine:
    settings = EngineSettings(
        max_in_flight=8, vllm=VllmSettings(process="inline", cpu_kv_cache_gib=0.25, arguments=arguments)
    )
    engine = load_engine(ChatModel.load(MODELS / "demo-small"), revision=None, role=ModelRole.SMALL, settings=settings)
    assert isinstance(engine, InlineEngine)
    return engine


def test_engine_runs_with_its_arguments_and_is_described_by_them() -> None:
    engine = load(block_size="64", enforce_eager="true")
    try:
        assert engine.info.settings["block_size"] == 64
        assert engine.info.settings["argument block_size"] == "64"
        assert engine.info.settings["argument enforce_eager"] == "true"
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"enable_chunked_prefill": "true"}, "on a CPU"), ({"quantization": "nonsense"}, "nonsense")],
)
def test_engine_is_refused_what_it_cannot_do(arguments: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(**arguments)
