"""What supervisord runs where a plan puts workers on GPUs. No engine is started, and no GPU is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.devices import Machine, Pool, parse_pool, plan_workers
from pipeline.embedded import EmbeddedState, start, stop
from pipeline.local import _programs
from pipeline.samples import ModelRole
from pipeline.settings import Settings

pytestmark = pytest.mark.integration

MODELS = Path(__file__).parents[2] / "examples" / "models"
GPUS = Machine.model_validate({"cores": 8, "memory_gib": 64, "gpus": [{"count": 4, "memory_gib": 24}]})


@pytest.fixture
def state(tmp_path: Path) -> Iterator[EmbeddedState]:
    yield start(tmp_path / "state", die_with_parent=True)
    stop(tmp_path / "state")


def test_each_worker_is_written_with_its_own_gpus_and_keeps_its_name(state: EmbeddedState) -> None:
    """Every start reads what is written, restarts too; equal command lines are told apart by their GPUs."""
    settings = Settings(state_dir=state.state_dir)
    pools = [
        parse_pool(ModelRole.SMALL, f"{MODELS / 'demo-small'}@0,1"),
        parse_pool(ModelRole.LARGE, f"{MODELS / 'demo-large'}@2,3"),
    ]
    plan = plan_workers(pools, GPUS, settings.engine)
    programs = _programs(settings, state, plan, {})
    state.add_programs(programs)
    written = {path.stem: json.loads(path.read_text()) for path in (state.state_dir / "programs").glob("*.json")}
    gpus = {name: content["env"].get("CUDA_VISIBLE_DEVICES") for name, content in written.items()}
    assert {name: index for name, index in gpus.items() if index} == {
        "small": "0",
        "small-2": "1",
        "large": "2",
        "large-2": "3",
    }
    assert written["small"]["argv"] == written["small-2"]["argv"]
    assert written["large"]["env"]["SPECTHINK_ENGINE__VLLM__GPU_MEMORY_UTILIZATION"] == "0.900"
    turned = plan_workers([parse_pool(ModelRole.SMALL, f"{MODELS / 'demo-small'}@1,0")], GPUS, settings.engine)
    again = _programs(settings, state, turned, {})
    assert [(p.name, p.env["CUDA_VISIBLE_DEVICES"]) for p in again[:2]] == [("small-2", "1"), ("small", "0")]


def test_key_of_a_server_goes_to_its_workers_alone(state: EmbeddedState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_ENGINE__SERVER__API_KEY", "the key")
    settings = Settings(state_dir=state.state_dir)
    pools = [
        parse_pool(ModelRole.SMALL, f"{MODELS / 'demo-small'}@0"),
        Pool(role=ModelRole.LARGE, model="org/large-70b", server="http://host:8000/v1"),
    ]
    programs = _programs(settings, state, plan_workers(pools, GPUS, settings.engine), {"flower": ("127.0.0.1", 1234)})
    assert {program.name for program in programs if "the key" in program.env.values()} == {"large"}
    [large] = [program for program in programs if program.name == "large"]
    assert large.env["SPECTHINK_ENGINE__KIND"] == "server"
    assert large.env["SPECTHINK_ENGINE__SERVER__URL"] == "http://host:8000/v1"
    assert "CUDA_VISIBLE_DEVICES" not in large.env
