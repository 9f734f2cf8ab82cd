"""Arguments of vLLM's own, as a person gives them: typed by vLLM, given to its engine, part of what the engine is."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError, EngineError
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings, VllmSettings
from pipeline.signals import Signal
from workers.engine.base import Engine, GenerateRequest, GenerateResult, Sampling
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


def load(**vllm: Any) -> InlineEngine:
    settings = EngineSettings(
        max_in_flight=8, vllm=VllmSettings.model_validate({"process": "inline", "cpu_kv_cache_gib": 0.25} | vllm)
    )
    engine = load_engine(ChatModel.load(MODELS / "demo-large"), revision=None, role=ModelRole.LARGE, settings=settings)
    assert isinstance(engine, InlineEngine)
    return engine


@pytest.fixture(scope="module")
def plain() -> Iterator[InlineEngine]:
    """An engine without an accelerator, with two arguments of vLLM's own."""
    engine = load(arguments={"block_size": "64", "enforce_eager": "true"})
    yield engine
    engine.close()


def test_engine_runs_with_its_arguments_and_is_described_by_them(plain: InlineEngine) -> None:
    assert plain.info.settings["block_size"] == 64
    assert plain.info.settings["argument block_size"] == "64"
    assert plain.info.settings["argument enforce_eager"] == "true"
    assert "accelerate" not in plain.info.settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"enable_chunked_prefill": "true"}, "on a CPU"), ({"quantization": "nonsense"}, "nonsense")],
)
def test_engine_is_refused_what_it_cannot_do(arguments: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(arguments=arguments)


# Accelerators


def requests_of(engine: Engine, *, temperature: float = 0.0) -> list[GenerateResult | Exception]:
    """What it writes for a few problems, in their order."""
    outcomes: queue.SimpleQueue[GenerateResult | Exception] = queue.SimpleQueue()
    chat = ChatModel.load(MODELS / "demo-large")
    for number in range(8):
        request = GenerateRequest(
            request_id=str(number),
            prompt_ids=chat.prompt_ids(f"What is {13 * number} + {7 * number + 3}?", ()),
            max_tokens=120 + number,
            sampling=Sampling(temperature=temperature),
            signals=frozenset(Signal) if number % 2 else frozenset(),
        )
        engine.submit(request, outcomes.put)
    found = [outcomes.get(timeout=120) for _ in range(8)]
    return sorted(found, key=lambda one: one.request_id if isinstance(one, GenerateResult) else "")


def test_engine_with_drafts_writes_the_same_greedy_tokens_and_counts_what_it_accepted(plain: InlineEngine) -> None:
    expected = requests_of(plain)
    engine = load(accelerate=f"draft:{MODELS / 'demo-small'}", draft_tokens=4)
    try:
        found = requests_of(engine)
        for one, other in zip(found, expected, strict=True):
            assert isinstance(one, GenerateResult)
            assert isinstance(other, GenerateResult)
            assert (one.piece, one.finish) == (other.piece, other.finish)
            assert one.num_generated_tokens == other.num_generated_tokens
            for signal, values in other.signals.items():
                assert one.signals[signal] == pytest.approx(values, abs=1e-3), signal
        stats = engine.stats()
        assert 0 < stats.num_accepted_tokens <= stats.num_draft_tokens <= 4 * stats.num_drafts
        assert stats.num_generated_tokens == sum(one.num_generated_tokens for one in found)  # type: ignore[union-attr]
        settings = engine.info.settings
        assert (settings["accelerate"], settings["draft_tokens"]) == ("draft:demo-small", 4)
        assert engine.why_not(Sampling(temperature=0.0)) is None
        assert "--temperature 0" in (engine.why_not(Sampling(temperature=0.6)) or "")
        assert "no min_p" in (engine.why_not(Sampling(temperature=0.0, min_p=0.1)) or "")
        assert {type(one) for one in requests_of(engine, temperature=0.6)} == {EngineError}, "none reaches vLLM"
        assert [type(one) for one in requests_of(engine)] == [GenerateResult] * 8
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("accelerate", "said"), [("suffix", "needs the package arctic-inference"), ("draft:{}", "ids")]
)
def test_accelerator_that_cannot_be_is_refused_before_weights_are_read(
    accelerate: str, said: str, tmp_path: Path
) -> None:
    other = json.loads((MODELS / "demo-small" / "config.json").read_text()) | {"vocab_size": 500}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ConfigurationError, match=said):
        load(accelerate=accelerate.format(tmp_path))
