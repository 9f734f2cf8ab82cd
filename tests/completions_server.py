"""A small HTTP server with vLLM's completions endpoint, whose model is a rule and whose moods a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from pipeline.chat.model import ChatModel

MODEL = "org/large"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mood:
    """How the server takes one request.

    status: of its answer; text, headers: beside a status that is not 200. breaks_after: tokens after which it cuts the
    connection. error_after: tokens after which the stream tells an error. is_silent: no token ever comes.
    """

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    breaks_after: int | None = None
    error_after: int | None = None
    is_silent: bool = False


WELL = Mood()


def next_ids(prompt_ids: Sequence[int], number: int) -> list[int]:
    """What the model writes behind a prompt: the same behind the same text, however it was cut into requests."""
    ids = list(prompt_ids)
    for _ in range(number):
        ids.append(20 + (ids[-1] * 7 + len(ids)) % 60)
    return ids[len(prompt_ids) :]


class CompletionsServer:
    """Runs in a thread of its own. What it may be told is read at each request."""

    def __init__(self, chat: ChatModel, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.mood: Callable[[dict[str, Any]], Mood] = lambda request: WELL
        self.card: dict[str, Any] = {"id": MODEL, "root": "/models/large", "max_model_len": 512}
        self.key: str | None = None
        self.health = 200
        self.gives_ids = True
        self.takes_priority = True
        self.max_logprobs = 20
        self.most_running = 1000
        self.pause_s = 0.0
        self.read_prompt: Callable[[list[int]], list[int]] = lambda ids: ids
        self.tokenize: Callable[[str], list[int] | None] = lambda text: (
            chat.tokenizer.encode(text, add_special_tokens=False).ids
        )
        self.requests: list[dict[str, Any]] = []
        self.num_running = 0
        self.num_left = 0
        """Requests whose client went away."""
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self) -> None:
        self._call(self._start())

    def stop(self) -> None:
        """All connections are cut."""
        self._call(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.get("/version", self._version),
                web.get("/health", self._health),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/completions", self._complete),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, shutdown_timeout=0.0, reuse_address=True).start()

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # Pages.

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"object": "list", "data": [self.card]})

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "9.9"})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _tokenize(self, request: web.Request) -> web.Response:
        ids = self.tokenize((await request.json())["prompt"])
        return (
            web.json_response({"detail": "Not Found"}, status=404)
            if ids is None
            else web.json_response({"tokens": ids})
        )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append(asked)
        mood = self.mood(asked)
        if refusal := self._refusal(asked):
            return _error(400, refusal)
        if mood.status != 200:
            return _error(mood.status, mood.text, mood.headers)
        if self.num_running >= self.most_running:
            return _error(429, "Too many requests")
        self.num_running += 1
        try:
            return await self._stream(request, asked, mood)
        except (ConnectionError, asyncio.CancelledError):
            self.num_left += 1
            raise
        finally:
            self.num_running -= 1

    def _refusal(self, asked: dict[str, Any]) -> str | None:
        if asked.get("priority") and not self.takes_priority:
            return "Got priority 1 but priority scheduling is not enabled"
        if (asked.get("logprobs") or 0) > self.max_logprobs:
            return f"Requested sample logprobs of {asked['logprobs']}, which is greater than max allowed"
        return None

    async def _stream(self, request: web.Request, asked: dict[str, Any], mood: Mood) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for data in self._events(asked, mood):
            if data is None:
                await response.write(b"")
                if request.transport is not None:
                    request.transport.abort()
                await asyncio.sleep(10)
            while mood.is_silent:
                await asyncio.sleep(0.05)
            await asyncio.sleep(self.pause_s)
            await response.write(b"data: " + data + b"\n\n" if data else b": still here\n\n")
        await response.write_eof()
        return response

    def _events(self, asked: dict[str, Any], mood: Mood) -> Iterator[bytes | None]:
        """None: the connection is cut here."""
        prompt_ids = self.read_prompt(asked["prompt"])
        most = min(asked["max_tokens"], self.card["max_model_len"] - len(prompt_ids))
        for place, token_id in enumerate(next_ids(prompt_ids, most)):
            if mood.breaks_after == place:
                yield None
            if mood.error_after == place:
                yield orjson.dumps({"error": {"message": "EngineCore encountered an issue", "code": 500}})
                yield b"[DONE]"
                return
            choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": None}
            if self.gives_ids:
                choice |= {"token_ids": [token_id]} | ({"prompt_token_ids": prompt_ids} if not place else {})
            if asked.get("logprobs") is not None:
                top = {f"token_id:{token_id}": -0.5, f"token_id:{token_id + 1}": -1.0}
                choice["logprobs"] = {
                    "tokens": [f"token_id:{token_id}"],
                    "token_logprobs": [-0.5],
                    "top_logprobs": [top],
                }
            if place == most - 1:
                choice["finish_reason"] = "length"
            yield orjson.dumps({"choices": [choice]})
            yield b""
        yield orjson.dumps({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": len(prompt_ids) - 1}}})
        yield b"[DONE]"


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    body = orjson.dumps({"error": {"message": text, "type": "Error", "param": None, "code": status}})
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


def closing(server: CompletionsServer) -> None:
    with suppress(RuntimeError):
        server.close()
