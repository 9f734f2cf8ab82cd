"""bench-gpu but for its engines: the models that it makes, where they go, what is left out, and what a GPU tells."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu.__main__ import choose_machine, chosen_parts, measure_all
from bench.gpu.clock import Clock, OutOfTime
from bench.gpu.device import Readings, watched
from bench.gpu.measuring import Found, Measuring
from bench.gpu.sizes import REAL, TAKEOVERS_PER_1000, TOY, make_pair, parts_of
from bench.measurement import Report
from bench.shapes import SHAPES, make_model
from pipeline.chat.model import ChatModel
from pipeline.chat.translation import settle_think_phase
from pipeline.devices import Gpu, Machine
from pipeline.errors import ConfigurationError
from pipeline.policies.random_delegation import RandomDelegationSpec
from pipeline.policies.registry import parse_policy
from pipeline.samples import ModelRole

WORDS = 10_000


def machine(gib: float) -> Machine:
    return Machine(cores=16, memory_gib=128, gpus=(Gpu(index=0, memory_gib=gib, free_gib=gib),))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models of every size that is used, of fewer words: their tokenizers take a second each to load."""
    folder = tmp_path_factory.mktemp("shapes")
    for shape in SHAPES.values():
        make_model(replace(shape, vocab_size=min(shape.vocab_size, WORDS)), folder)
    return folder


@pytest.mark.parametrize(("name", "billions"), [("1.5b", 1.54), ("7b", 7.6), ("32b", 32.8)])
def test_shapes_have_the_weights_of_the_published_models(name: str, billions: float) -> None:
    assert SHAPES[name].num_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_made_models_think_share_a_vocabulary_and_cannot_end_a_text(models: Path) -> None:
    small, large = (ChatModel.load(models / name) for name in ("1.5b", "32b"))
    assert small.vocabulary_sha256 == large.vocabulary_sha256
    assert settle_think_phase(small, large).opened
    assert small.eos_ids == (WORDS,)
    assert max(small.prompt_ids("Start with 86.\nFirst add 1.")) < WORDS


def test_made_words_are_distinct_and_end_sentences_and_steps(models: Path) -> None:
    chat = ChatModel.load(models / "1.5b")
    words = chat.piece(range(1000, 9000)).texts
    assert len(set(words)) == 8000
    assert all(word.startswith(" ") for word in words)
    assert sum(word.endswith("\n\n") for word in words) == 200
    assert sum(word.rstrip().endswith(".") for word in words) == 1000


def test_takeovers_are_as_many_and_as_long_as_in_traces(models: Path) -> None:
    work = make_pair(("1.5b", "7b"), REAL, models, machine(80)).work
    spec = parse_policy(work.policy, work.policy_values)
    assert isinstance(spec, RandomDelegationSpec)
    small_per_takeover = 40 / spec.rate
    assert 1000 / (small_per_takeover + 27) == pytest.approx(TAKEOVERS_PER_1000, rel=0.01)
    assert (spec.tokens, spec.tokens * spec.handback_from) == (125, 20)


def test_both_engines_share_the_gpu(models: Path) -> None:
    pair = make_pair(("1.5b", "7b"), REAL, models, machine(80))
    shares = [pair.engines[role].vllm.gpu_memory_utilization for role in (ModelRole.SMALL, ModelRole.LARGE)]
    assert sum(shares) <= 0.9
    assert pair.engines[ModelRole.LARGE].vllm.process == "separate"
    assert [pair.engines[role].max_in_flight for role in (ModelRole.SMALL, ModelRole.LARGE)] == [256, 64]
    assert make_pair(("1.5b", "32b"), REAL, models, machine(139)).gpu == 0


def test_pair_that_does_not_fit_is_left_out_with_the_reason(models: Path) -> None:
    measuring = _measuring(seconds=1000)
    assert not measure_all(measuring, [parts_of(REAL)[-2]], machine(24), models)
    assert "1.5b + 32b: pipeline: failed: large" in measuring.report.notes[0]
    assert "does not fit" in measuring.report.notes[0]


def test_parts_for_which_no_time_is_left_are_noted_and_the_rest_is_printed(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measuring = _measuring(seconds=20)
    measuring.report.add("found before", 3.0, "s")
    assert measure_all(measuring, parts_of(REAL), machine(80), models)
    measuring.report.print()
    out = capsys.readouterr().out
    assert out.count("not measured") == 2 * len(parts_of(REAL))  # in the JSON, and beside the table
    assert "found before" in out


def test_part_that_the_end_of_the_time_breaks_in_another_way_is_not_called_faulty(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = _measuring(seconds=1000)

    def measure(part: object, pair: object) -> None:
        measuring.clock = Clock(0)
        raise ValueError("a library, interrupted")

    monkeypatch.setattr(measuring, "measure", measure)
    assert measure_all(measuring, parts_of(REAL)[:1], machine(80), models)
    assert measuring.report.notes == ["1.5b + 7b: bare small: not measured to its end: the time was up"]


def _measuring(seconds: float) -> Measuring:
    report = Report(bench="gpu", setting={})
    return Measuring(report=report, clock=Clock(seconds), size=REAL, found=Found(), is_real=True)


def test_first_pair_is_measured_whole_before_the_second_one() -> None:
    titles = [part.title for part in parts_of(REAL)]
    assert titles[:5] == [
        "1.5b + 7b: bare small", "1.5b + 7b: bare large", "1.5b + 7b: pipeline", "1.5b + 7b: loops",
        "1.5b + 32b: bare large",
    ]  # fmt: skip
    assert [part.name for part in chosen_parts(TOY, "loops,pipeline")] == ["pipeline", "loops"]


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no part 'loop'; there are: bare small"):
        chosen_parts(TOY, "loop")


def test_what_waits_is_ended_once_the_time_is_up() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime), Clock(0.05).running():
        signal.pause()
    with pytest.raises(OutOfTime), Clock(-1).running():
        pytest.fail("it began with no time left")
    assert signal.getsignal(signal.SIGALRM) is before


def test_jobs_are_as_large_as_the_engine_is_fast() -> None:
    assert [REAL.samples_per_problem(rate) for rate in (500.0, 8000.0, 50_000.0)] == [1, 2, 5]


def test_idle_share_is_what_nvidia_smi_says_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '90, 40, 300.5'\necho '70, 20, [N/A]'\necho '[N/A], 1, 2'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    begin = time.monotonic()
    with watched(0) as readings:
        while len(readings.rows) < 2:
            time.sleep(0.01)
    busy = readings.between(begin, time.monotonic())
    assert busy is not None
    assert busy.idle == pytest.approx(0.2)
    assert busy.memory == pytest.approx(0.3)
    assert readings.between(0.0, begin - 1) is None


def test_without_a_gpu_nothing_is_read() -> None:
    with watched(None) as readings:
        pass
    assert readings == Readings()


def test_engine_of_a_cpu_on_a_machine_with_a_gpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA H100, 81559, 81008, Disabled'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigurationError, match="GPU_PYTHON="):
        choose_machine(toy=False)
    assert choose_machine(toy=True).gpus == ()
