"""An engine that is a server: what it makes of what servers do, on a real HTTP server that does it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError, EngineAway, EngineError, EngineRefused, EngineUnavailable
from pipeline.samples import ModelRole, SegmentFinish
from pipeline.settings import EngineKind, EngineSettings, ServerSettings
from pipeline.signals import Readings, Signal
from tests.completions_server import MODEL, WELL, CompletionsServer, Mood, next_ids
from tests.vllm_server import free_port
from workers.engine.base import GenerateRequest, GenerateResult, Sampling
from workers.engine.loading import load_engine
from workers.engine.server import adapter, patience
from workers.engine.server.adapter import ServerEngine
from workers.engine.server.client import Lines
from workers.engine.server.errors import ServerForbids, ServerOverloaded, of_status, words

DEMO = Path(__file__).parents[4] / "examples" / "models" / "demo-large"
PROMPT = list(range(30, 50))


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load(DEMO)


@pytest.fixture
def server(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionsServer]:
    monkeypatch.setattr(patience, "_FIRST_S", 0.02)
    monkeypatch.setattr(patience, "_LONGEST_S", 0.1)
    server = CompletionsServer(chat, free_port())
    server.start()
    yield server
    server.close()


@pytest.fixture
def load(server: CompletionsServer, chat: ChatModel) -> Iterator[Callable[..., ServerEngine]]:
    engines: list[ServerEngine] = []

    def load_one(**options: Any) -> ServerEngine:
        engine = load_engine(chat, revision=None, role=ModelRole.LARGE, settings=settings(server, **options))
        assert isinstance(engine, ServerEngine)
        engines.append(engine)
        return engine

    yield load_one
    for engine in engines:
        engine.close()


def settings(server: CompletionsServer, **options: Any) -> EngineSettings:
    own = {name: options.pop(name) for name in list(options) if name in ServerSettings.model_fields}
    given = ServerSettings(**{"url": server.url, "model": MODEL, **own})
    return EngineSettings(kind=EngineKind.SERVER, server=given, **options)


def ask(engine: ServerEngine, name: str, **options: Any) -> queue.SimpleQueue[GenerateResult | Exception]:
    outcomes: queue.SimpleQueue[GenerateResult | Exception] = queue.SimpleQueue()
    given: dict[str, Any] = {"prompt_ids": PROMPT, "max_tokens": 10, "sampling": Sampling(), "seed": 3} | options
    engine.submit(GenerateRequest(request_id=name, **given), outcomes.put)
    return outcomes


def result_of(outcomes: queue.SimpleQueue[GenerateResult | Exception]) -> GenerateResult:
    outcome = outcomes.get(timeout=20)
    assert isinstance(outcome, GenerateResult), outcome
    return outcome


def ids_of(outcomes: queue.SimpleQueue[GenerateResult | Exception]) -> list[int]:
    return list(result_of(outcomes).piece.token_ids)


def after(server: CompletionsServer, number: int, mood: Mood, then: Mood = WELL) -> None:
    """The next so many requests meet this mood."""
    left = [number]

    def of_next(asked: dict[str, Any]) -> Mood:
        left[0] -= 1
        return mood if left[0] >= 0 else then

    server.mood = of_next


# What is asked.


def test_request_says_every_number(
    server: CompletionsServer, load: Callable[..., ServerEngine], chat: ChatModel
) -> None:
    sampling = Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=12,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
    )
    request = {"sampling": sampling, "seed": 2**62, "priority": -1, "written": (7, 8)}
    assert ids_of(ask(load(), "a", **request)) == [7, 8, *next_ids([*PROMPT, 7, 8], 8)]
    asked = server.requests[-1]
    assert {name: asked[name] for name in Sampling.__dataclass_fields__} == {
        name: getattr(sampling, name) for name in Sampling.__dataclass_fields__
    }
    assert asked["prompt"] == [*PROMPT, 7, 8]
    assert (asked["seed"], asked["priority"], asked["max_tokens"]) == (2**62, -1, 8)
    assert asked["stop_token_ids"] == list(chat.eos_ids)
    assert "logprobs" not in asked


def test_greedy_request_has_no_seed(server: CompletionsServer, load: Callable[..., ServerEngine]) -> None:
    result_of(ask(load(), "a", seed=None))
    assert "seed" not in server.requests[-1]


def test_signals_are_read_by_id(load: Callable[..., ServerEngine]) -> None:
    result = result_of(ask(load(), "a", max_tokens=2, signals=frozenset({Signal.LOGPROB, Signal.MARGIN})))
    assert result.signals[Signal.LOGPROB] == (-0.5, -0.5)
    assert result.signals[Signal.MARGIN] == (0.23865, 0.23865)


def test_cached_tokens_come_after_the_last_token(load: Callable[..., ServerEngine]) -> None:
    assert result_of(ask(load(), "a")).num_cached_tokens == len(PROMPT) - 1


def test_watchers_word_ends_the_request_on_the_server(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    class AfterThree:
        seen = 0

        def feed(self, text: str, readings: Readings | None = None) -> bool:
            self.seen += 1
            return self.seen == 3

    engine = load()
    server.pause_s = 0.01
    result = result_of(ask(engine, "a", max_tokens=400, watcher=AfterThree()))
    assert result.finish is SegmentFinish.WATCH
    assert 3 <= len(result.piece) == result.num_generated_tokens < 100
    wait_until(lambda: server.num_left == 1 and server.num_running == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# A server that cannot be used.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gives_ids": False}, "it gives no token ids (return_token_ids): vLLM does from 0.10.2 on"),
        ({"read_prompt": lambda ids: ids[1:]}, "it was given the ids"),
        ({"tokenize": lambda text: [1, 2, 3]}, "the server's tokenizer is not that of"),
        ({"card": {"id": "org/other", "root": "x"}},
         "the server has no model 'org/large'; it has: org/other; say which one is meant by --server-model NAME"),
        ({"key": "secret"}, "wants a key: give it in SPECTHINK_ENGINE__SERVER__API_KEY (it answers 401: Unauthorized)"),
        ({"mood": lambda asked: Mood(status=400, text="no such thing here")}, "it answers 400: no such thing here"),
    ],
)  # fmt: skip
def test_server_that_cannot_be_used_is_refused_in_one_line(
    server: CompletionsServer, load: Callable[..., ServerEngine], change: dict[str, Any], said: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_wrong_key_is_refused_and_not_shown(server: CompletionsServer, load: Callable[..., ServerEngine]) -> None:
    server.key = "the right one"
    with pytest.raises(
        ConfigurationError, match="does not take the key in SPECTHINK_ENGINE__SERVER__API_KEY"
    ) as refused:
        load(api_key=SecretStr("a wrong one"))
    assert "a wrong one" not in str(refused.value)
    assert "the right one" not in str(load(api_key=SecretStr("the right one")).info)


def test_address_without_models_is_refused_with_the_form(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    with pytest.raises(ConfigurationError, match="the address of OpenAI-compatible servers ends with /v1"):
        load(url=server.url.removesuffix("/v1"))


def test_unknown_host_is_refused_at_once(load: Callable[..., ServerEngine]) -> None:
    with pytest.raises(ConfigurationError, match="no server of this name"):
        load(url="http://server.invalid:8000/v1")


def test_kind_without_an_address_is_refused(chat: ChatModel) -> None:
    with pytest.raises(ConfigurationError, match="SPECTHINK_ENGINE__SERVER__URL"):
        load_engine(chat, revision=None, role=ModelRole.LARGE, settings=EngineSettings(kind=EngineKind.SERVER))


def test_longer_context_than_the_servers_is_refused(load: Callable[..., ServerEngine]) -> None:
    assert load(max_model_len=100).max_model_len == 100
    with pytest.raises(ConfigurationError, match="the server's context has 512 tokens, not max_model_len=600"):
        load(max_model_len=600)


# What a server may lack.


def test_model_is_found_by_what_the_server_was_started_with(
    server: CompletionsServer, load: Callable[..., ServerEngine], chat: ChatModel
) -> None:
    server.card = {"id": "alias", "root": chat.name, "max_model_len": 512}
    assert load(model=None).info.settings["served_model"] == "alias"


def test_without_priorities_none_are_sent(server: CompletionsServer, load: Callable[..., ServerEngine]) -> None:
    server.takes_priority = False
    engine = load()
    assert engine.info.settings["priorities"] is False
    result_of(ask(engine, "a", priority=-1))
    assert "priority" not in server.requests[-1]


def test_without_logprobs_a_request_for_them_is_refused(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    server.max_logprobs = 1
    engine = load()
    assert len(result_of(ask(engine, "a", signals=frozenset({Signal.LOGPROB}))).signals) == 1
    refused = ask(engine, "b", signals=frozenset({Signal.MARGIN})).get(timeout=20)
    assert isinstance(refused, EngineRefused)
    assert "log-probabilities of 1 tokens, and the policy reads 20" in str(refused)


def test_tokenizer_that_cannot_be_asked_is_noted(server: CompletionsServer, load: Callable[..., ServerEngine]) -> None:
    assert load().info.settings["tokenizer_compared"] is True
    server.tokenize = lambda text: None
    assert load().info.settings["tokenizer_compared"] is False


# A server in trouble.


def test_start_waits_for_a_server_that_is_not_there_yet(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    server.stop()
    later = threading.Timer(0.3, server.start)
    later.start()
    assert ids_of(ask(load(), "a")) == next_ids(PROMPT, 10)
    later.join()


@pytest.mark.parametrize("status", [429, 503])
def test_overloaded_server_gets_every_request_in_time(
    server: CompletionsServer, load: Callable[..., ServerEngine], status: int
) -> None:
    engine = load()
    after(server, 3, Mood(status=status, text="full", headers={"Retry-After": "0.05"}))
    answers = [ask(engine, str(number), prompt_ids=[*PROMPT, number + 20]) for number in range(8)]
    assert [ids_of(answer) for answer in answers] == [next_ids([*PROMPT, number + 20], 10) for number in range(8)]
    assert engine.stats().num_lost_tokens == 0


def test_two_workers_share_a_server_that_takes_few_requests(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engines = [load(), load()]
    server.most_running, server.pause_s = 3, 0.002
    answers = [ask(engines[number % 2], str(number), prompt_ids=[*PROMPT, number + 20]) for number in range(24)]
    assert [ids_of(answer) for answer in answers] == [next_ids([*PROMPT, number + 20], 10) for number in range(24)]


def test_what_the_server_refuses_is_refused_with_its_words(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load()
    after(server, 1, Mood(status=400, text="top_k must be\n an even number"))
    refused = ask(engine, "a").get(timeout=20)
    assert isinstance(refused, EngineRefused)
    assert "it answers 400: top_k must be an even number" in str(refused)
    assert ids_of(ask(engine, "b")) == next_ids(PROMPT, 10)


def test_fault_of_a_server_that_is_well_is_the_requests(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load()
    after(server, 1, Mood(error_after=4))
    outcome = ask(engine, "a").get(timeout=20)
    assert isinstance(outcome, EngineUnavailable)
    assert "EngineCore encountered an issue" in str(outcome)
    assert engine.stats().num_generated_tokens == engine.stats().num_lost_tokens == 4


def test_fault_of_a_server_that_is_not_well_is_waited_for(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load()
    server.health = 503
    after(server, 1, Mood(status=500, text="dead"))
    assert ids_of(ask(engine, "a")) == next_ids(PROMPT, 10)


def test_requests_wait_while_the_server_is_away(server: CompletionsServer, load: Callable[..., ServerEngine]) -> None:
    engine = load()
    server.stop()
    waiting = ask(engine, "a")
    wait_until(lambda: engine._away is not None)
    later = ask(engine, "b", priority=-1)
    assert engine.stats().num_waiting == 2
    assert engine.stats().last_token_age_s == 0.0
    server.start()
    assert ids_of(waiting) == ids_of(later) == next_ids(PROMPT, 10)


@pytest.mark.parametrize("status", [401, 404])
def test_server_that_no_longer_lets_in_is_waited_for(
    server: CompletionsServer, load: Callable[..., ServerEngine], status: int
) -> None:
    engine = load()
    after(server, 2, Mood(status=status, text="not now"))
    assert ids_of(ask(engine, "a")) == next_ids(PROMPT, 10)


def test_stream_that_breaks_off_gives_back_what_came(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load()
    after(server, 1, Mood(breaks_after=6))
    outcome = ask(engine, "a", written=(7, 8)).get(timeout=20)
    assert isinstance(outcome, EngineAway)
    assert list(outcome.token_ids) == [7, 8, *next_ids([*PROMPT, 7, 8], 6)]
    assert engine.stats().num_lost_tokens == engine.stats().num_generated_tokens == 6
    resumed = ask(engine, "b", written=outcome.token_ids, max_tokens=12)
    assert ids_of(resumed) == [7, 8, *next_ids([*PROMPT, 7, 8], 10)]


def test_stream_that_breaks_off_before_a_token_counts_as_a_try(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load()
    after(server, 1, Mood(breaks_after=0))
    outcome = ask(engine, "a").get(timeout=20)
    assert isinstance(outcome, EngineUnavailable)
    assert "before the first token" in str(outcome)


def test_what_waits_for_long_goes_back(server: CompletionsServer, load: Callable[..., ServerEngine]) -> None:
    engine = load(give_back_after_s=0.2)
    server.stop()
    outcome = ask(engine, "a", written=(7,)).get(timeout=20)
    assert isinstance(outcome, EngineAway)
    assert list(outcome.token_ids) == [7]
    server.start()


def test_server_that_comes_back_with_another_model_is_not_written_with(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load(give_back_after_s=0.4)
    num_asked = len(server.requests)
    server.stop()
    outcomes = ask(engine, "a")
    wait_until(lambda: engine._away is not None)
    server.card = server.card | {"root": "/models/another"}
    server.start()
    assert isinstance(outcomes.get(timeout=20), EngineAway)
    assert len(server.requests) == num_asked
    server.card = server.card | {"root": "/models/large"}
    assert ids_of(ask(engine, "b")) == next_ids(PROMPT, 10)


def test_server_that_got_another_model_between_two_requests_is_found_out(
    server: CompletionsServer, load: Callable[..., ServerEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_WATCH_S", 0.02)
    engine = load(give_back_after_s=0.2)
    server.card = server.card | {"root": "/models/another"}
    wait_until(lambda: engine._away is not None)
    assert isinstance(ask(engine, "a").get(timeout=20), EngineAway)


def test_silent_server_is_asked_again(server: CompletionsServer, load: Callable[..., ServerEngine]) -> None:
    engine = load(stall_after_s=0.3)
    after(server, 1, Mood(is_silent=True))
    assert ids_of(ask(engine, "a")) == next_ids(PROMPT, 10)
    assert not engine.stats().is_dead


def test_prompt_that_the_server_changes_is_refused(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load()
    server.read_prompt = lambda ids: ids[1:]
    outcome = ask(engine, "a").get(timeout=20)
    assert isinstance(outcome, EngineRefused)
    assert "has read other ids than it was given" in str(outcome)


def test_closed_engine_leaves_no_request_on_the_server(
    server: CompletionsServer, load: Callable[..., ServerEngine]
) -> None:
    engine = load()
    server.pause_s = 0.01
    outcomes = ask(engine, "a", max_tokens=400)
    wait_until(lambda: server.num_running == 1)
    engine.close()
    assert isinstance(outcomes.get(timeout=20), EngineError)
    wait_until(lambda: server.num_running == 0)


# Parts.


def test_events_are_cut_where_their_lines_end() -> None:
    lines = Lines()
    found = [
        data for part in (b"data: a", b"b\n\n: hm\nda", b"ta:c\r\n\r\n", b"data: [DONE]\n") for data in lines.feed(part)
    ]
    assert found == [b"ab", b"c", b"[DONE]"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"error": {"message": "too\\n long", "code": 400}}', "too long"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"detail": "Not Found"}', "Not Found"),
        ('{"detail": [{"loc": ["body"], "msg": "x"}]}', '[{"loc": ["body"], "msg": "x"}]'),
        ("<html>\n<b>502</b>", "<html> <b>502</b>"),
        ("", ""),
    ],
)
def test_servers_words_are_one_line(text: str, said: str) -> None:
    assert words(text) == said


def test_status_is_classed() -> None:
    assert isinstance(of_status(403, ""), ServerForbids)
    overloaded = of_status(429, "", "7")
    assert isinstance(overloaded, ServerOverloaded)
    assert overloaded.retry_after_s == 7.0
    dated = of_status(503, "", "Wed, 21 Oct 2026 07:28:00 GMT")
    assert isinstance(dated, ServerOverloaded)
    assert dated.retry_after_s is None


def test_delays_double_and_differ() -> None:
    found = [delay for _, delay in zip(range(8), patience.delays(), strict=False)]
    assert 0.75 <= found[0] <= 1.25
    assert 22.5 <= found[-1] <= 37.5
    assert found != [delay for _, delay in zip(range(8), patience.delays(), strict=False)]


def test_throttle_sends_less_after_an_overload_and_more_again() -> None:
    throttle = patience.Throttle(8)
    assert throttle.overloaded(3, 5.0) == 5.0
    assert throttle.limit == 3
    for _ in range(9):
        throttle.ended()
    assert throttle.limit == 8
