"""The paced engine counts what its law says; that it takes so long is what the benchmark looks at."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.paced_engine import Paced, PacedEngine
from pipeline.errors import PipelineError
from pipeline.planning.pools import EngineRates
from pipeline.samples import SegmentFinish
from workers.engine.base import GenerateRequest, GenerateResult, Sampling
from workers.engine.scripted import Vocabulary

LAW = EngineRates(step_s=1e-4, token_s=1e-5, prompt_token_s=1e-6)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PacedEngine]:
    vocabulary = Vocabulary()

    def script(request: GenerateRequest) -> list[int]:
        return vocabulary.encode(" on" * (40 - len(request.prompt_ids)))

    made = PacedEngine(
        script, vocabulary.decode_stream, rates=LAW, model="paced", max_model_len=100, max_in_flight=2, key_tokens=2,
        notes=tmp_path / "notes.json",
    )  # fmt: skip
    yield made
    made.close()


def write(engine: PacedEngine, *prompts: list[int], max_tokens: int = 50) -> list[GenerateResult]:
    found: dict[int, GenerateResult] = {}
    over = threading.Semaphore(0)

    def note(index: int, outcome: GenerateResult | Exception) -> None:
        assert not isinstance(outcome, PipelineError | Exception), outcome
        found[index] = outcome
        over.release()

    for index, prompt_ids in enumerate(prompts):
        request = GenerateRequest(
            request_id=f"r{index}", prompt_ids=prompt_ids, max_tokens=max_tokens, sampling=Sampling()
        )
        engine.submit(request, lambda outcome, index=index: note(index, outcome))  # type: ignore[misc]
    for _ in prompts:
        assert over.acquire(timeout=10)
    return [found[index] for index in range(len(prompts))]


def noted(engine: PacedEngine, tmp_path: Path) -> Paced:
    engine.close()
    return Paced.read(tmp_path / "notes.json")


def test_a_request_alone_takes_its_steps_and_its_prompt(engine: PacedEngine, tmp_path: Path) -> None:
    [result] = write(engine, [1] * 30)
    assert (result.num_generated_tokens, result.finish) == (11, SegmentFinish.EOS)  # ten tokens and EOS
    paced = noted(engine, tmp_path)
    assert (paced.steps, paced.running, paced.tokens, paced.computed_tokens) == (11, 11, 11, 30)
    assert paced.busy_s == pytest.approx(11 * 1.1e-4 + 30e-6)


def test_a_resumed_text_is_computed_from_its_last_whole_block_on(engine: PacedEngine) -> None:
    [first] = write(engine, [1, 2] * 10, max_tokens=13)
    assert first.num_cached_tokens == 0
    [again] = write(engine, [1, 2] * 19)
    assert again.num_cached_tokens == 32  # of the 33 that it has had
    [other] = write(engine, [2, 1] * 19)
    assert other.num_cached_tokens == 0


def test_all_tokens_are_given_out_whatever_shares_a_step(engine: PacedEngine, tmp_path: Path) -> None:
    results = write(engine, *([number, 5] * (number + 1) for number in range(6)))
    assert [len(result.piece.token_ids) for result in results] == [40 - 2 * (number + 1) for number in range(6)]
    paced = noted(engine, tmp_path)
    total = sum(result.num_generated_tokens for result in results)
    assert (paced.tokens, paced.running) == (total, total)
    assert paced.steps <= total <= 2 * paced.steps  # of two slots


def test_counters_are_told_apart_by_what_they_were_before(tmp_path: Path) -> None:
    assert Paced.read(tmp_path / "none") == Paced()
    (tmp_path / "some").write_text(json.dumps({"steps": 5, "busy_s": 2.0, "running": 9}))
    assert Paced.read(tmp_path / "some").since(Paced(steps=2, busy_s=0.5)) == Paced(steps=3, busy_s=1.5, running=9)
