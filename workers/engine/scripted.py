"""An engine that answers from a script: for tests, and to measure everything but the model.

Deterministic: what a request gets depends on the request and the script alone. It streams, watches, aborts, caches
prefixes and orders by priority as the real one does, a token per request and step.
"""

from __future__ import annotations

import heapq
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeAlias

from pipeline.samples import SegmentFinish
from pipeline.signals import NUM_TOP
from workers.engine.base import EngineInfo, GenerateRequest
from workers.engine.readings import Top
from workers.engine.running import DecodeStream
from workers.engine.threaded import Ended, ThreadedEngine


class Drawn(NamedTuple):
    """A token with the distribution it was drawn from.

    token_id: None for EOS. logprob: its own. top: id → log-probability of the most likely ones, the greatest first.
    """

    token_id: int | None
    logprob: float
    top: Mapping[int, float]


Script: TypeAlias = Callable[[GenerateRequest], Iterable[int | Drawn]]
"""What follows a request's prompt_ids, without EOS: where it ends, the engine generates EOS. May be lazy. A bare id was
certain."""

_Entry: TypeAlias = tuple[int, int, str, GenerateRequest]
"""priority, order of arrival, core id, request"""


class ScriptedEngine(ThreadedEngine[GenerateRequest]):
    """Answers from a script.

    step_s: pause per step, in which each running request gets one token; 0: none.
    block_size: tokens per block of the pretended prefix cache, which never evicts. prefixes: another one in its place.
    cache_tokens: how many it says that its cache holds.
    """

    def __init__(
        self,
        script: Script,
        decode_stream: Callable[[Sequence[int]], DecodeStream],
        *,
        model: str = "scripted",
        max_model_len: int = 4096,
        max_in_flight: int = 128,
        step_s: float = 0.0,
        block_size: int = 16,
        prefixes: Prefixes | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        settings: dict[str, str | int | float | bool | None] = {
            "model": model,
            "max_model_len": max_model_len,
            "max_in_flight": max_in_flight,
            "step_s": step_s,
            "block_size": block_size,
        }
        info = EngineInfo(kind="scripted", version="1", settings=settings)
        super().__init__(
            info,
            decode_stream,
            name=model,
            max_model_len=max_model_len,
            max_in_flight=max_in_flight,
            cache_tokens=cache_tokens,
        )
        self._script = script
        self._step_s = step_s
        self._prefixes: Prefixes = prefixes or _PrefixCache(block_size)
        self._waiting: list[_Entry] = []  # a heap
        self._writing: dict[str, Iterator[int | Drawn]] = {}
        self._thread.start()

    def _prepare(self, request: GenerateRequest) -> GenerateRequest:
        if not request.written:
            return request
        return replace(request, prompt_ids=request.context_ids, max_tokens=request.max_new_tokens, written=())

    def _add(self, core_id: str, core_request: GenerateRequest) -> None:
        heapq.heappush(self._waiting, (core_request.priority, int(core_id), core_id, core_request))
        self._changed.notify_all()

    def _drop(self, core_id: str) -> None:
        self._writing.pop(core_id, None)

    def _shut_down(self) -> None:
        self._writing.clear()
        self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running or self._death)
                if self._step_s:
                    self._changed.wait_for(lambda: self._death, self._step_s)
                if self._death is not None:
                    return
                ended = self._step()
            for running, end in ended:
                self._deliver(running, end)

    def _step(self) -> list[Ended]:
        """One token for each writing request. Called with the lock held."""
        self._start_waiting()
        return self._write_tokens()

    def _write_tokens(self) -> list[Ended]:
        ended = []
        for core_id, tokens in list(self._writing.items()):
            end = self._write(core_id, next(tokens, None))
            if end is not None:
                self._prefixes.add([*end[0].request.prompt_ids, *end[0].token_ids])
                del self._writing[core_id]
                ended.append((self._release(core_id), end[1]))
        self._num_scheduled = len(self._writing)
        return ended

    def _start_waiting(self) -> int:
        """Tokens of prompts that were computed for those that begin."""
        computed = 0
        while self._waiting and len(self._writing) < self._max_in_flight:
            _, _, core_id, request = heapq.heappop(self._waiting)
            running = self._running.get(core_id)
            if running is None:
                continue  # aborted while it waited
            running.scheduled_at = time.monotonic()
            running.num_cached_tokens = self._prefixes.count(request.prompt_ids)
            self._prefixes.add(request.prompt_ids)
            self._writing[core_id] = iter(self._script(request))
            computed += len(request.prompt_ids) - running.num_cached_tokens
        return computed

    def _write(self, core_id: str, drawn: int | Drawn | None) -> Ended | None:
        running = self._running[core_id]
        token_id = drawn.token_id if isinstance(drawn, Drawn) else drawn
        rows = _Row.of(drawn) if running.reads_logprobs else None
        running.num_generated_tokens += 1
        running.first_token_at = running.first_token_at or time.monotonic()
        self._tally.generated(1)
        if token_id is None:
            return self._take(running, (), SegmentFinish.EOS, rows)
        length = running.num_generated_tokens
        room = self._max_model_len - len(running.request.context_ids)
        is_last = length >= min(running.request.max_new_tokens, room)
        return self._take(running, (token_id,), SegmentFinish.LENGTH if is_last else None, rows)


class _Row:
    """The one row of a step."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn

    @classmethod
    def of(cls, drawn: int | Drawn | None) -> _Row:
        if isinstance(drawn, Drawn):
            return cls(drawn)
        return cls(Drawn(drawn, 0.0, {} if drawn is None else {drawn: 0.0}))

    def drawn(self, row: int) -> float:
        return self._drawn.logprob

    def top(self, row: int) -> Top:
        return Top(list(self._drawn.top)[:NUM_TOP], list(self._drawn.top.values())[:NUM_TOP])


class Prefixes(Protocol):
    """Which beginnings of texts were computed before."""

    def add(self, token_ids: Sequence[int]) -> None: ...

    def count(self, token_ids: Sequence[int]) -> int:
        """Tokens found; as in vLLM at least one is left to compute."""
        ...


class _PrefixCache:
    """Which beginnings, in whole blocks, were computed before."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._hashes: set[int] = set()

    def add(self, token_ids: Sequence[int]) -> None:
        self._hashes.update(self._chain(token_ids))

    def count(self, token_ids: Sequence[int]) -> int:
        """Tokens found; as in vLLM at least one is left to compute."""
        found = 0
        for block_hash in self._chain(token_ids[:-1]):
            if block_hash not in self._hashes:
                break
            found += self._block_size
        return found

    def _chain(self, token_ids: Sequence[int]) -> Iterator[int]:
        chained = 0
        for end in range(self._block_size, len(token_ids) + 1, self._block_size):
            chained = hash((chained, tuple(token_ids[end - self._block_size : end])))
            yield chained


class Vocabulary:
    """Words as tokens, numbered as they come up. Thread-safe. Lossless: a token's text keeps its spaces.

    A run of newlines is a token of its own; a word has the blanks before it.
    """

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        with self._lock:
            return [self._id(token) for token in re.findall(r"\n+|[^\S\n]*\S+|[^\S\n]+", text)]

    def decode(self, token_ids: Iterable[int]) -> str:
        return "".join(self._texts[token_id] for token_id in token_ids)

    def decode_stream(self, after: Sequence[int] = ()) -> DecodeStream:
        return _WordStream(self)

    def _id(self, token: str) -> int:
        token_id = self._ids.setdefault(token, len(self._texts))
        if token_id == len(self._texts):
            self._texts.append(token)
        return token_id


class _WordStream:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def step(self, token_id: int) -> str:
        return self._vocabulary.decode((token_id,))


def answers(vocabulary: Vocabulary, texts: Mapping[str, str]) -> Script:
    """A script from a table, prompt → whole answer. The tokens of a prompt after its key are taken as the beginning of
    the answer; the script goes on after them. The longest matching key counts. Raises KeyError where none matches."""
    table = {tuple(vocabulary.encode(prompt)): vocabulary.encode(answer) for prompt, answer in texts.items()}
    lengths = sorted({len(prompt) for prompt in table}, reverse=True)

    def script(request: GenerateRequest) -> Iterable[int]:
        prompt_ids = tuple(request.prompt_ids)
        for length in lengths:
            answer = table.get(prompt_ids[:length])
            if answer is not None and length <= len(prompt_ids):
                return answer[len(prompt_ids) - length :]
        raise KeyError(f"no answer for the prompt {vocabulary.decode(prompt_ids)!r}")

    return script
