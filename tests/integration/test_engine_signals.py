"""Signals, on the scripted engine and on vLLM in both arrangements, against log-probabilities that torch computes.

The model is the demo's small one: it breaks its text into steps, and is at times uncertain. The scripted engine's
script asks torch, so that the same assertions hold for it.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.chat.model import ChatModel
from pipeline.samples import ModelRole, SegmentFinish
from pipeline.settings import EngineSettings, VllmSettings
from pipeline.signals import NUM_TOP, SPARSE_SIGNALS, Readings, Signal
from workers.engine.base import Engine, GenerateRequest, GenerateResult, Sampling
from workers.engine.loading import load_engine
from workers.engine.scripted import Drawn, ScriptedEngine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = Path(__file__).parents[2] / "examples" / "models" / "demo-small"
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)
AS_JOBS = Sampling()
ALL = frozenset(Signal)
MAX_MODEL_LEN = 512
QUESTIONS = ["Add 3, 5, 2, 9, 1.", "Add 7, 7, 4, 8, 6, 2.", "Add 1, 9, 9, 5.", "Add 4, 4, 8, 3, 6, 7, 2."]


class Oracle:
    """The model in plain torch."""

    def __init__(self) -> None:
        from transformers import Qwen2ForCausalLM

        self._model = Qwen2ForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
        self._lock = threading.Lock()

    def logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[dict[int, float]]:
        """Of each token after the prompt, and of the one after them all: every id with its log-probability, the most
        likely first."""
        rows, _ = self.go_on([*prompt_ids, *token_ids], None)
        return rows[len(prompt_ids) - 1 :]

    def go_on(self, token_ids: Sequence[int], cache: Any) -> tuple[list[dict[int, float]], Any]:
        """The same of what follows each of these ids; cache: of those before them, as this gave it."""
        import torch

        with torch.inference_mode(), self._lock:
            output = self._model(torch.tensor([token_ids]), past_key_values=cache, use_cache=True)
            values, ids = torch.log_softmax(output.logits[0].float(), dim=-1).sort(descending=True, stable=True)
        rows = [dict(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
        return rows, output.past_key_values


def write(oracle: Oracle, chat: ChatModel, request: GenerateRequest) -> Iterator[Drawn]:
    """The script: what the model itself would draw, greedily or by the request's seed."""
    import random

    draw = random.Random(request.seed)
    token_ids, cache = list(request.prompt_ids), None
    while True:
        [*_, row], cache = oracle.go_on(token_ids, cache)
        token_id = next(iter(row))
        if request.sampling.temperature:
            weights = [math.exp(logprob / request.sampling.temperature) for logprob in row.values()]
            [token_id] = draw.choices(list(row), weights)
        is_end = token_id in chat.eos_ids
        yield Drawn(None if is_end else token_id, row[token_id], row)
        if is_end:
            return
        token_ids = [token_id]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load(MODEL)


@pytest.fixture(scope="module", params=["scripted", "inline", "separate"])
def engine(request: pytest.FixtureRequest, oracle: Oracle, chat: ChatModel) -> Iterator[Engine]:
    if request.param == "scripted":
        script = partial(write, oracle, chat)
        engine: Engine = ScriptedEngine(script, chat.decode_stream, max_model_len=MAX_MODEL_LEN)
    else:
        vllm = VllmSettings(process=request.param, cpu_kv_cache_gib=0.1)
        settings = EngineSettings(max_in_flight=32, max_model_len=MAX_MODEL_LEN, vllm=vllm)
        engine = load_engine(chat, revision=None, role=ModelRole.SMALL, settings=settings)
    yield engine
    engine.close()


@pytest.fixture
def prompts(chat: ChatModel) -> list[list[int]]:
    return [chat.prompt_ids(question) for question in QUESTIONS]


numbers = itertools.count()


def make_request(prompt_ids: Sequence[int], **given: Any) -> GenerateRequest:
    options: dict[str, Any] = {"max_tokens": 150, "sampling": AS_JOBS, "seed": 3} | given
    return GenerateRequest(request_id=f"request {next(numbers)}", prompt_ids=prompt_ids, **options)


def run(engine: Engine, *requests: GenerateRequest) -> list[GenerateResult]:
    """All at once; the results in the order of the requests."""
    outcomes: dict[str, GenerateResult | Exception] = {}
    over = threading.Semaphore(0)

    def note(name: str, outcome: GenerateResult | Exception) -> None:
        outcomes[name] = outcome
        over.release()

    for request in requests:
        engine.submit(request, partial(note, request.request_id))
    for _ in requests:
        assert over.acquire(timeout=120), "the engine did not answer"
    return [_result(outcomes[request.request_id]) for request in requests]


def _result(outcome: GenerateResult | Exception) -> GenerateResult:
    assert isinstance(outcome, GenerateResult), outcome
    return outcome


def expected(
    signal: Signal, rows: list[dict[int, float]], result: GenerateResult, tag: int | None
) -> list[float | None]:
    """What a signal should be, computed plainly."""
    values: list[float | None] = []
    text = ""
    for token_id, token_text, row in zip(result.piece.token_ids, result.piece.texts, rows, strict=False):
        top = dict(itertools.islice(row.items(), NUM_TOP))
        starts_step = not text or (text.endswith("\n\n") and bool(token_text.strip("\n")))
        mass = sum(math.exp(logprob) for logprob in top.values())
        [first, second, *_] = top.values()
        value: float | None = {
            Signal.LOGPROB: row[token_id],
            Signal.MARGIN: math.exp(first) - math.exp(second),
            Signal.FIRST_ENTROPY: -sum(
                math.exp(logprob) / mass * math.log(math.exp(logprob) / mass) for logprob in top.values()
            ),
            Signal.FIRST_MARGIN: first - top[tag] if tag in top else None,
        }[signal]
        values.append(value if starts_step or signal not in SPARSE_SIGNALS else None)
        text += token_text
    return values


def assert_right(oracle: Oracle, chat: ChatModel, request: GenerateRequest, result: GenerateResult) -> None:
    rows = oracle.logprobs(request.prompt_ids, result.piece.token_ids)
    assert set(result.signals) == request.signals
    for signal, values in result.signals.items():
        wanted = expected(signal, rows, result, request.think_end_id)
        assert [value is None for value in values] == [value is None for value in wanted], signal
        assert [value for value in values if value is not None] == pytest.approx(
            [value for value in wanted if value is not None], abs=1e-3
        ), signal


@pytest.mark.parametrize("sampling", [GREEDY, AS_JOBS])
def test_signals_are_those_of_the_models_own_distribution(
    engine: Engine, oracle: Oracle, chat: ChatModel, prompts: list[list[int]], sampling: Sampling
) -> None:
    """Before temperature, top_p and top_k, whatever the request samples with."""
    tag = chat.tokenizer.token_to_id(chat.think_end)
    requests = [make_request(prompt, signals=ALL, think_end_id=tag, sampling=sampling) for prompt in prompts]
    results = run(engine, *requests)
    for request, result in zip(requests, results, strict=True):
        assert_right(oracle, chat, request, result)
    entropies = [value for result in results for value in result.signals[Signal.FIRST_ENTROPY] if value is not None]
    assert len(entropies) > 2 * len(prompts), "several steps each"
    assert any(value is not None for result in results for value in result.signals[Signal.FIRST_MARGIN])


def test_log_probabilities_alone_are_right_beside_one_that_asks_for_more(
    engine: Engine, oracle: Oracle, chat: ChatModel, prompts: list[list[int]]
) -> None:
    asked = [frozenset({Signal.LOGPROB}), ALL, frozenset({Signal.FIRST_ENTROPY}), frozenset({Signal.MARGIN})]
    requests = [make_request(prompt, signals=signals) for prompt, signals in zip(prompts, asked, strict=True)]
    for request, result in zip(requests, run(engine, *requests), strict=True):
        assert_right(oracle, chat, request, result)


def test_greedy_text_is_the_same_with_and_without_signals(engine: Engine, prompts: list[list[int]]) -> None:
    plain = run(engine, *(make_request(prompt, sampling=GREEDY, seed=None) for prompt in prompts))
    read = run(engine, *(make_request(prompt, sampling=GREEDY, seed=None, signals=ALL) for prompt in prompts))
    assert [result.piece for result in read] == [result.piece for result in plain]
    assert all(not result.signals and not result.labels and result.top == () for result in plain)


def test_neighbour_without_signals_is_unchanged(engine: Engine, prompts: list[list[int]]) -> None:
    [alone] = run(engine, make_request(prompts[0]))
    beside, *others = run(
        engine,
        make_request(prompts[0]),
        *(make_request(prompt, signals=ALL) for prompt in prompts),
        make_request(prompts[1], labels={"a": (5,)}, reads_top=True),
    )
    assert beside.piece == alone.piece
    assert not beside.signals
    assert all(result.signals for result in others[:-1])


@pytest.mark.parametrize("max_tokens", [5, 400])
def test_signals_have_exactly_one_entry_per_token(engine: Engine, prompts: list[list[int]], max_tokens: int) -> None:
    results = run(engine, *(make_request(prompt, signals=ALL, max_tokens=max_tokens) for prompt in prompts))
    assert {result.finish for result in results} == {SegmentFinish.LENGTH if max_tokens == 5 else SegmentFinish.EOS}
    for result in results:
        assert {len(values) for values in result.signals.values()} == {len(result.piece)}


class EndAt:
    """Ends a request at the first reading above a number, after the first break; keeps what it was shown."""

    def __init__(self, threshold: float) -> None:
        self.shown: list[tuple[str, Readings | None]] = []
        self._threshold = threshold

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        assert readings is not None
        self.shown.append((text, readings))
        entropy = readings[Signal.FIRST_ENTROPY]
        return len(self.shown) > 1 and entropy is not None and entropy >= self._threshold


def test_watcher_is_shown_what_the_result_says_and_may_end_the_request_by_it(
    engine: Engine, prompts: list[list[int]]
) -> None:
    watchers = [EndAt(0.2) for _ in prompts]
    requests = [
        make_request(prompt, signals=ALL, watcher=watcher) for prompt, watcher in zip(prompts, watchers, strict=True)
    ]
    results = run(engine, *requests)
    assert SegmentFinish.WATCH in {result.finish for result in results}
    for watcher, result in zip(watchers, results, strict=True):
        assert {len(values) for values in result.signals.values()} == {len(result.piece)}
        for index, (text, readings) in enumerate(watcher.shown):
            assert text == result.piece.texts[index]
            assert readings == {signal: values[index] for signal, values in result.signals.items()}


def test_labels_and_most_likely_tokens_are_those_of_the_first_token(
    engine: Engine, oracle: Oracle, prompts: list[list[int]]
) -> None:
    [row, *_] = oracle.logprobs(prompts[0], [])
    [first, second, *rest] = row
    labels = {"both": (first, second), "one": (second,), "partly": (first, rest[-1]), "out of sight": tuple(rest[-2:])}
    options: dict[str, Any] = {"labels": labels, "sampling": GREEDY, "seed": None}
    one, more = run(
        engine,
        make_request(prompts[0], reads_top=True, max_tokens=1, **options),
        make_request(prompts[0], max_tokens=9, **options),
    )
    assert one.top == pytest.approx(list(row.values())[:NUM_TOP], abs=1e-3)
    assert one.labels.pop("out of sight") is None  # type: ignore[attr-defined]
    assert one.labels == pytest.approx(
        {"both": math.log(math.exp(row[first]) + math.exp(row[second])), "one": row[second], "partly": row[first]},
        abs=1e-3,
    )
    assert more.labels == one.labels | {"out of sight": None}  # type: ignore[operator]
    assert more.top == ()


def test_labels_are_read_where_the_first_token_is_the_end(
    engine: Engine, oracle: Oracle, chat: ChatModel, prompts: list[list[int]]
) -> None:
    [whole] = run(engine, make_request(prompts[0], sampling=GREEDY, seed=None, max_tokens=400))
    assert whole.finish is SegmentFinish.EOS
    complete = [*prompts[0], *whole.piece.token_ids]
    [row] = oracle.logprobs(complete, [])
    [result] = run(
        engine,
        make_request(complete, sampling=GREEDY, seed=None, labels={"end": chat.eos_ids}, reads_top=True, signals=ALL),
    )
    assert (result.finish, len(result.piece)) == (SegmentFinish.EOS, 0)
    assert result.labels["end"] == pytest.approx(row[next(iter(row))], abs=1e-3)
    assert result.top == pytest.approx(list(row.values())[:NUM_TOP], abs=1e-3)
    assert result.signals == dict.fromkeys(Signal, ())


def test_break_that_began_in_the_prompt_is_read(engine: Engine, prompts: list[list[int]]) -> None:
    """A request that goes on in the middle of a run of newlines reads the step after it."""
    signals = frozenset({Signal.FIRST_ENTROPY})
    [whole] = run(engine, make_request(prompts[0], sampling=GREEDY, seed=None, signals=signals))
    cut = next(index for index, text in enumerate(whole.piece.texts) if text.startswith("\n"))
    before, rest = whole.piece.token_ids[:cut], slice(cut, None)
    [resumed] = run(
        engine, make_request([*prompts[0], *before], sampling=GREEDY, seed=None, signals=signals, max_tokens=150 - cut)
    )
    assert resumed.piece.token_ids == whole.piece.token_ids[rest]
    assert resumed.signals[Signal.FIRST_ENTROPY][1:] == pytest.approx(
        whole.signals[Signal.FIRST_ENTROPY][rest][1:], abs=1e-3
    )
