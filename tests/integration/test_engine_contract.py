"""What the worker loop relies on: the same assertions on the scripted engine, vLLM in both arrangements, a server."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError, EngineDied, EngineError, PromptTooLong
from pipeline.samples import ModelRole, SegmentFinish
from pipeline.settings import EngineKind, EngineSettings, ServerSettings, VllmSettings
from pipeline.signals import Readings
from tests.vllm_server import vllm_server
from workers.engine.base import Engine, GenerateRequest, GenerateResult, Sampling
from workers.engine.cache_first import CacheFirst
from workers.engine.loading import load_engine
from workers.engine.scripted import ScriptedEngine
from workers.engine.vllm.inline import InlineEngine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)
WARM = Sampling(temperature=1.0, top_p=1.0, top_k=0)
MAX_MODEL_LEN = 1024
MAX_IN_FLIGHT = 64
BLOCK_SIZE = 32
PROMPT = list(range(10, 60))
API_KEY = "a key of the tests"


def make_model(folder: Path, *, head_size: int = 32) -> Path:
    """A Qwen2 model of random weights that vLLM can load, with its tokenizer and chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["Wait, one and two are three.\n\nSo the answer is seven."] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=2 * head_size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.2,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def babble(request: GenerateRequest) -> Iterable[int]:
    """What a random model does: greedy depends on the text alone, else on the seed too, and may end at any token."""
    token_ids = list(request.prompt_ids)
    greedy = request.sampling.temperature == 0
    while True:
        draw = random.Random(f"{token_ids[-8:]} {None if greedy else request.seed}")
        if not greedy and draw.random() < 0.01:
            return
        token_ids.append(draw.randrange(1, 256))
        yield token_ids[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """The address of a vLLM server with the model, as if it were somebody else's."""
    limits = ("--max-num-seqs", str(MAX_IN_FLIGHT), "--api-key", API_KEY, "--served-model-name", "tiny", "other-name")
    with vllm_server(model, model.parent / "server.log", *limits) as url:
        yield url


@pytest.fixture(scope="module", params=["scripted", "inline", "separate", "server", "cache first"])
def engine(request: pytest.FixtureRequest, model: Path) -> Iterator[Engine]:
    if request.param == "scripted":
        engine: Engine = ScriptedEngine(
            babble,
            ChatModel.load(model).decode_stream,
            max_model_len=MAX_MODEL_LEN,
            max_in_flight=MAX_IN_FLIGHT,
            block_size=BLOCK_SIZE,
            step_s=0.001,
        )
    elif request.param == "server":
        engine = load_by_server(model, request.getfixturevalue("server"))
    elif request.param == "cache first":
        engine = CacheFirst(load(model, process="inline", cpu_kv_cache_gib=0.004))
    else:
        engine = load(model, process=request.param)
    yield engine
    engine.close()


def settings(*, max_model_len: int | None = None, **vllm: Any) -> EngineSettings:
    return EngineSettings(
        max_in_flight=MAX_IN_FLIGHT,
        max_model_len=max_model_len,
        vllm=VllmSettings.model_validate({"cpu_kv_cache_gib": 0.25} | vllm),
    )


def load(model: Path, **vllm: Any) -> Engine:
    return load_engine(ChatModel.load(model), revision=None, role=ModelRole.SMALL, settings=settings(**vllm))


def load_by_server(model: Path, url: str, *, name: str = "tiny") -> Engine:
    given = EngineSettings(
        kind=EngineKind.SERVER,
        max_in_flight=MAX_IN_FLIGHT,
        server=ServerSettings(url=url, model=name, api_key=SecretStr(API_KEY)),
    )
    return load_engine(ChatModel.load(model), revision=None, role=ModelRole.LARGE, settings=given)


class Answer:
    """A ``done`` that can be waited for."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self.outcomes: list[GenerateResult | Exception] = []

    def __call__(self, outcome: GenerateResult | Exception) -> None:
        self.outcomes.append(outcome)
        self._came.set()

    def outcome(self) -> GenerateResult | Exception:
        assert self._came.wait(60), "the engine did not answer"
        [outcome] = self.outcomes
        return outcome

    def result(self) -> GenerateResult:
        outcome = self.outcome()
        assert isinstance(outcome, GenerateResult), outcome
        return outcome


class WatchFor:
    """Reads along; after so many tokens it ends the request, or only says that they came."""

    def __init__(self, num_tokens: int, *, ends: bool = True) -> None:
        self.seen: list[str] = []
        self.reached = threading.Event()
        self._num_tokens = num_tokens
        self._ends = ends

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.seen.append(text)
        if len(self.seen) < self._num_tokens:
            return False
        self.reached.set()
        return self._ends


numbers = iter(range(10**6))


def make_request(prompt_ids: list[int] | None = None, **options: object) -> GenerateRequest:
    options = {"max_tokens": 40, "sampling": GREEDY} | options
    return GenerateRequest(
        request_id=f"request {next(numbers)}",
        prompt_ids=PROMPT if prompt_ids is None else prompt_ids,
        **options,  # type: ignore[arg-type]
    )


def submit(engine: Engine, *args: object, **options: object) -> Answer:
    answer = Answer()
    engine.submit(make_request(*args, **options), answer)  # type: ignore[arg-type]
    return answer


def random_prompt(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, 256) for _ in range(draw.randrange(5, 90))]


def test_greedy_ids_are_the_same_alone_and_among_others(engine: Engine) -> None:
    alone = submit(engine, max_tokens=60).result()
    others = [submit(engine, random_prompt(i), max_tokens=60) for i in range(16)]
    among = submit(engine, max_tokens=60)
    others += [submit(engine, random_prompt(i), max_tokens=60) for i in range(16, 32)]
    assert among.result().piece == alone.piece
    assert len({other.result().piece for other in others}) > 1


def test_prompts_that_come_at_once_to_a_slow_device_are_computed_a_few_at_a_time(model: Path) -> None:
    engine = load(model, process="inline")
    assert isinstance(engine, InlineEngine)
    prompts = [[20 + number, *PROMPT] for number in range(24)]
    try:
        fast = [submit(engine, prompt).result().piece for prompt in prompts]
        engine._prompt_tokens_per_s, engine._step_tokens = 60.0, 120  # in a step's two seconds two prompts of 51 tokens
        engine._client.reset_prefix_cache()
        scheduler = engine._client.engine_core.scheduler
        started: list[int] = []
        schedule = scheduler.schedule

        def count_started(*args: Any, **options: Any) -> Any:
            output = schedule(*args, **options)
            started.append(len(output.scheduled_new_reqs))
            return output

        scheduler.schedule = count_started
        engine._changed.acquire()  # so that all come to one step
        try:
            answers = [Answer() for _ in prompts]
            for prompt, answer in zip(prompts, answers, strict=True):
                engine.submit(make_request(prompt), answer)
            long = submit(engine, [7] * 600)  # longer than a step's bound: it is not left waiting for ever
            assert engine.stats().prefill_s == pytest.approx(600 / 60.0)
        finally:
            engine._changed.release()
        assert [answer.result().piece for answer in answers] == fast
        assert long.result().num_prompt_tokens == 600
        assert sum(started) == len(prompts) + 1
        assert max(started) == 2
    finally:
        engine.close()


def test_a_float32_checkpoint_is_run_as_it_is(engine: Engine) -> None:
    """In bfloat16 two tokens are at times equally likely, and the lower id wins."""
    assert engine.info.settings.get("dtype", "float32") == "float32"


def test_texts_are_the_text_of_the_ids_token_by_token(engine: Engine, model: Path) -> None:
    piece = submit(engine, max_tokens=50, sampling=WARM, seed=3).result().piece
    assert len(piece.texts) == len(piece.token_ids) > 0
    stream = ChatModel.load(model).decode_stream(PROMPT)
    assert piece.texts == tuple(map(stream.step, piece.token_ids))


def test_texts_are_the_same_with_a_watcher(engine: Engine) -> None:
    watcher = WatchFor(10**6)
    watched = submit(engine, max_tokens=50, sampling=WARM, seed=3, watcher=watcher).result()
    assert watched.piece == submit(engine, max_tokens=50, sampling=WARM, seed=3).result().piece
    assert tuple(watcher.seen) == watched.piece.texts


def test_resumed_prompt_hits_the_prefix_cache_and_goes_on_alike(engine: Engine) -> None:
    prompt_ids = random_prompt(1000) * 3
    whole = submit(engine, prompt_ids, max_tokens=120).result()
    first = submit(engine, prompt_ids, max_tokens=80).result()
    resumed = submit(engine, [*prompt_ids, *first.piece.token_ids], max_tokens=40).result()
    assert first.piece.token_ids + resumed.piece.token_ids == whole.piece.token_ids
    assert resumed.num_prompt_tokens == len(prompt_ids) + 80
    assert resumed.num_cached_tokens > 0
    assert resumed.num_prompt_tokens - resumed.num_cached_tokens <= BLOCK_SIZE + 1


def test_request_goes_on_behind_what_an_earlier_one_wrote(engine: Engine) -> None:
    """Its result is of the whole, and its watcher has read all of it."""
    whole = submit(engine, max_tokens=40).result()
    written = whole.piece.token_ids[:15]
    resumed = submit(engine, max_tokens=40, written=written).result()
    assert resumed.piece == whole.piece
    assert resumed.finish is whole.finish
    assert resumed.num_generated_tokens == whole.num_generated_tokens - 15
    assert resumed.num_prompt_tokens == whole.num_prompt_tokens
    watcher = WatchFor(25)
    watched = submit(engine, max_tokens=900, written=written, watcher=watcher).result()
    assert watched.finish is SegmentFinish.WATCH
    assert tuple(watcher.seen) == whole.piece.texts[:25]
    assert watched.num_generated_tokens == len(watched.piece) - 15


def test_what_a_running_request_has_written_can_be_read(engine: Engine) -> None:
    answer = Answer()
    request = make_request(max_tokens=900, written=(7, 8))
    engine.submit(request, answer)
    while len(before := engine.written(request.request_id) or ()) < 5:
        time.sleep(0.005)
    engine.abort(request.request_id)
    token_ids = answer.result().piece.token_ids
    assert token_ids[:2] == (7, 8)
    assert token_ids[: len(before)] == tuple(before)
    assert engine.written(request.request_id) is None


def test_watcher_ends_the_request_soon(engine: Engine) -> None:
    watcher = WatchFor(12)
    result = submit(engine, max_tokens=900, watcher=watcher).result()
    assert result.finish is SegmentFinish.WATCH
    assert 12 <= len(result.piece) < 450, "half of what was asked: a core writes on until the word reaches it"
    assert len(watcher.seen) == 12, "not asked again after its word"
    assert result.num_generated_tokens == len(result.piece)


def test_watcher_that_fails_costs_its_own_request_only(engine: Engine) -> None:
    class Broken:
        def feed(self, text: str, readings: Readings | None = None) -> bool:
            raise RuntimeError("no")

    other = submit(engine, max_tokens=100)
    broken = submit(engine, max_tokens=100, watcher=Broken())
    assert isinstance(broken.outcome(), EngineError)
    assert len(other.result().piece) == 100


def test_abort_gives_what_was_written(engine: Engine) -> None:
    watcher = WatchFor(5, ends=False)
    request = make_request(max_tokens=900, watcher=watcher)
    answer = Answer()
    engine.submit(request, answer)
    assert watcher.reached.wait(60)
    engine.abort(request.request_id)
    result = answer.result()
    assert result.finish is SegmentFinish.WATCH
    assert 5 <= len(result.piece) < 900
    engine.abort(request.request_id)  # gone: no effect
    whole = submit(engine, max_tokens=900).result()
    assert whole.piece.token_ids[: len(result.piece)] == result.piece.token_ids


def test_aborted_name_can_be_used_again_at_once(engine: Engine) -> None:
    request = make_request(max_tokens=200)
    aborted, second = Answer(), Answer()
    engine.submit(request, aborted)
    engine.abort(request.request_id)
    engine.submit(request, second)
    assert aborted.result().finish is SegmentFinish.WATCH
    assert second.result().piece == submit(engine, max_tokens=200).result().piece


def test_eos_ends_without_its_id_and_is_counted(engine: Engine, model: Path) -> None:
    answers = [submit(engine, max_tokens=900, sampling=WARM, seed=seed) for seed in range(16)]
    results = [result for result in (answer.result() for answer in answers) if result.finish is SegmentFinish.EOS]
    assert results
    for result in results:
        assert not set(ChatModel.load(model).eos_ids) & set(result.piece.token_ids)
        assert result.num_generated_tokens == len(result.piece) + 1


def test_max_tokens_ends_with_length(engine: Engine) -> None:
    result = submit(engine, max_tokens=7).result()
    assert (result.finish, len(result.piece), result.num_generated_tokens) == (SegmentFinish.LENGTH, 7, 7)
    assert 0 <= result.queue_seconds <= result.first_token_seconds <= result.total_seconds


def test_full_context_ends_with_length(engine: Engine) -> None:
    result = submit(engine, PROMPT * 20, max_tokens=500).result()
    assert (result.finish, len(result.piece)) == (SegmentFinish.LENGTH, MAX_MODEL_LEN - len(PROMPT) * 20)


def test_seeds_reproduce_at_temperature_1(engine: Engine) -> None:
    def pieces() -> list[object]:
        answers = [submit(engine, max_tokens=30, sampling=WARM, seed=seed % 8) for seed in range(24)]
        return [answer.result().piece for answer in answers]

    first = pieces()
    assert first == pieces()
    assert first[:8] == first[8:16] == first[16:]
    assert len(set(first)) == 8


def test_seeded_long_prompts_are_taken_many_at_once(engine: Engine) -> None:
    """More prompt tokens than a step takes: vLLM's CPU engine dies of a seeded prompt computed in two parts."""
    answers = [
        submit(engine, random_prompt(2000 + i) * 8, max_tokens=5, sampling=WARM, seed=i) for i in range(MAX_IN_FLIGHT)
    ]
    assert all(answer.result().num_generated_tokens > 0 for answer in answers)


def test_too_long_prompt_is_refused(engine: Engine) -> None:
    outcome = submit(engine, [5] * MAX_MODEL_LEN).outcome()
    assert isinstance(outcome, PromptTooLong)
    assert (outcome.num_tokens, outcome.max_tokens) == (MAX_MODEL_LEN, MAX_MODEL_LEN)
    assert len(submit(engine, [5] * (MAX_MODEL_LEN - 1)).result().piece) == 1


def test_refused_request_leaves_the_others_alone(engine: Engine) -> None:
    other = submit(engine, max_tokens=50)
    assert isinstance(submit(engine, []).outcome(), EngineError)
    if engine.info.kind != "scripted":
        assert isinstance(submit(engine, [10**6]).outcome(), EngineError)
    assert len(other.result().piece) == 50


def test_lower_priority_number_goes_first(engine: Engine) -> None:
    order: list[int] = []
    lock = threading.Lock()
    over = threading.Semaphore(0)

    def note(priority: int, outcome: object) -> None:
        with lock:
            order.append(priority)
        over.release()

    priorities = [1] * 3 * MAX_IN_FLIGHT + [0]
    for priority in priorities:
        engine.submit(make_request(max_tokens=20, priority=priority), partial(note, priority))
    for _ in priorities:
        assert over.acquire(timeout=60)
    assert order.index(0) <= 2 * MAX_IN_FLIGHT


def test_done_may_submit_the_next_request(engine: Engine) -> None:
    second = Answer()
    engine.submit(make_request(max_tokens=3), lambda _: engine.submit(make_request(max_tokens=4), second))
    assert len(second.result().piece) == 4


def test_many_threads_submit_at_once_and_the_totals_are_the_sum(engine: Engine) -> None:
    before = engine.stats()
    answers: list[Answer] = []
    start = threading.Barrier(16)

    def work(number: int) -> None:
        start.wait()
        for i in range(12):
            watcher = WatchFor(9) if i % 3 == 0 else None
            prompt_ids = random_prompt(number)
            answers.append(submit(engine, prompt_ids, max_tokens=30, sampling=WARM, seed=i, watcher=watcher))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [answer.result() for answer in answers]
    after = engine.stats()
    assert len(results) == 192
    for name in ("num_generated_tokens", "num_prompt_tokens", "num_cached_tokens"):
        assert getattr(after, name) - getattr(before, name) == sum(getattr(result, name) for result in results), name
    assert (after.num_running, after.num_waiting, after.last_token_age_s) == (0, 0, 0.0)


def test_stats_show_what_runs_and_what_waits(engine: Engine) -> None:
    watcher = WatchFor(3, ends=False)
    requests = [make_request(max_tokens=900, watcher=watcher) for _ in range(MAX_IN_FLIGHT + 10)]
    answers = [Answer() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        engine.submit(request, answer)
    assert watcher.reached.wait(60)
    stats = engine.stats()
    for request in requests:
        engine.abort(request.request_id)
    assert stats.num_running + stats.num_waiting == len(requests)
    assert stats.num_waiting >= 10
    assert stats.cache_tokens is None or stats.cache_tokens >= MAX_MODEL_LEN
    assert (stats.cache_tokens is None) == (engine.info.kind != "vllm")
    assert 0 <= stats.last_token_age_s < 30
    assert all(answer.result().finish is SegmentFinish.WATCH for answer in answers)


def test_same_name_twice_at_once_is_a_mistake(engine: Engine) -> None:
    request = make_request(max_tokens=900)
    engine.submit(request, Answer())
    with pytest.raises(ValueError, match="in use"):
        engine.submit(request, Answer())
    engine.abort(request.request_id)


def test_close_fails_what_runs_and_what_comes(engine: Engine) -> None:  # the last one for each engine
    watcher = WatchFor(2, ends=False)
    running = submit(engine, max_tokens=900, watcher=watcher)
    assert watcher.reached.wait(60)
    children = psutil.Process().children(recursive=True) if engine.info.settings.get("process") == "separate" else []
    engine.close()
    assert isinstance(running.outcome(), EngineDied)
    assert isinstance(submit(engine).outcome(), EngineDied)
    engine.close()
    assert not [child for child in children if "EngineCore" in _name(child)]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.NoSuchProcess:
        return ""


# The engine's own process


LOAD_AND_TELL = """
import json, sys, threading, psutil
from pipeline.chat.model import ChatModel
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings
from workers.engine.base import GenerateRequest, Sampling
from workers.engine.loading import load_engine

def main():
    settings = EngineSettings.model_validate_json(sys.argv[2])
    engine = load_engine(ChatModel.load(sys.argv[1]), revision=None, role=ModelRole.SMALL, settings=settings)
    def tell(outcome):
        print(json.dumps(type(outcome).__name__), flush=True)
    for number in range(3):
        request = GenerateRequest(request_id=str(number), prompt_ids=[5] * 9, max_tokens=1000, sampling=Sampling())
        engine.submit(request, lambda outcome: None)
    print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
    for line in sys.stdin:
        if line == "dead?\\n":
            print(json.dumps(engine.stats().is_dead), flush=True)
            continue
        engine.submit(GenerateRequest(request_id=line, prompt_ids=[5] * 9, max_tokens=1000, sampling=Sampling()), tell)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def sockets() -> Iterator[Path]:
    """The folder of an engine's sockets is made here: by a short name, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="rpc-") as folder:
        yield Path(folder)


@pytest.fixture
def worker(model: Path, tmp_path: Path, sockets: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with an engine in a process of its own; tells the pids, then one line per line that it is given."""
    script = tmp_path / "worker.py"
    script.write_text(LOAD_AND_TELL)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_RPC_BASE_PATH": str(sockets)}
    command = [sys.executable, str(script), str(model), settings(process="separate").model_dump_json()]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        process.kill()


def read_json(process: subprocess.Popen[str]):
    """The next line of JSON; libraries write to stdout too."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            return json.loads(line)
        except ValueError:
            continue
    raise AssertionError("the worker ended")


@pytest.mark.slow
def test_killed_worker_leaves_no_process_and_no_socket(worker: subprocess.Popen[str], sockets: Path) -> None:
    children = [psutil.Process(pid) for pid in read_json(worker)]
    assert any("EngineCore" in _name(child) for child in children)
    assert any(file.is_socket() for file in sockets.glob("specthink-rpc-*/*"))
    worker.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
    assert not list(sockets.iterdir())


@pytest.mark.slow
def test_killed_engine_process_is_found_and_told(worker: subprocess.Popen[str]) -> None:
    [core] = [child for pid in read_json(worker) if "EngineCore" in _name(child := psutil.Process(pid))]

    def ask(line: str) -> object:
        assert worker.stdin is not None
        worker.stdin.write(f"{line}\n")
        worker.stdin.flush()
        return read_json(worker)

    assert ask("dead?") is False
    core.kill()
    deadline = time.monotonic() + 30
    while not ask("dead?"):  # nobody submits: it is found all the same
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask("after") == "EngineDied"


# Models that cannot be loaded


def test_model_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing-model"):
        load(tmp_path / "missing-model")


LOAD_AND_FAIL = """
import json, sys
from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings
from workers.engine.loading import load_engine

def main():
    for line in sys.stdin:
        model, settings = json.loads(line)
        settings = EngineSettings.model_validate(settings)
        try:
            load_engine(ChatModel.load(model), revision=None, role=ModelRole.SMALL, settings=settings)
            print("LOADED", flush=True)
        except ConfigurationError as error:
            print("ERROR", error, flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def load_and_fail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Loads models one after the other, in one process that has no engine before; gives the error of each."""
    script = tmp_path_factory.mktemp("loader") / "load.py"
    script.write_text(LOAD_AND_FAIL)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None

        def ask(model: Path, **options: Any) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([str(model), settings(**options).model_dump(mode="json")]) + "\n")
            process.stdin.flush()
            return next(line for line in process.stdout if line.startswith(("ERROR", "LOADED")))

        yield ask
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("process", ["inline", "separate"])
def test_broken_weights_are_a_configuration_error(
    load_and_fail: Callable[..., str], tmp_path: Path, process: str
) -> None:
    folder = make_model(tmp_path / "broken-model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    error = load_and_fail(folder, process=process)
    assert "broken-model: the model cannot be loaded" in error
    assert "safetensor" in error.lower()


@pytest.mark.slow
def test_unsupported_head_size_is_a_configuration_error(load_and_fail: Callable[..., str], tmp_path: Path) -> None:
    error = load_and_fail(make_model(tmp_path / "odd-model", head_size=24))
    assert "odd-model: the model cannot be run" in error
    assert "head" in error.lower()


@pytest.mark.slow
def test_too_much_memory_is_a_configuration_error(load_and_fail: Callable[..., str], model: Path) -> None:
    error = load_and_fail(model, cpu_kv_cache_gib=10**6)
    assert "tiny: the model cannot be loaded" in error
    assert "memory" in error.lower()


@pytest.mark.slow
def test_context_longer_than_the_models_is_a_configuration_error(
    load_and_fail: Callable[..., str], model: Path
) -> None:
    error = load_and_fail(model, max_model_len=10 * MAX_MODEL_LEN)
    assert "max_model_len" in error
