"""Speaks HTTP with one server. Lives in one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import aiohttp
import orjson
from pydantic import SecretStr

from workers.engine.failures import one_line
from workers.engine.server.errors import NoSuchHost, ServerAway, ServerError, ServerForbids, ServerRefuses, of_status

_CONNECT_S = 10.0
_ANSWER_S = 20.0
"""For an answer that is no stream."""
_MAX_LINE = 64 * 2**20
"""Bytes of one line of a stream; the ids of a prompt come in one."""


class ServerClient:
    """A session with one server: made in its event loop, and closed there. url: as OpenAI's clients take it."""

    def __init__(self, url: str, api_key: SecretStr | None) -> None:
        self._url = url
        self._root = url.removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the engine says how many requests run
            headers=headers | {"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            trust_env=True,  # a proxy, where the environment names one
        )

    async def __aenter__(self) -> ServerClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def models(self) -> list[dict[str, Any]]:
        """The models that it serves, as it describes them."""
        content = await self._json("GET", f"{self._url}/models")
        found = content.get("data") if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise ServerRefuses("what it says of its models cannot be read")
        return [card for card in found if isinstance(card, dict)]

    async def version(self) -> str | None:
        """vLLM's version; None where the server says none."""
        try:
            content = await self._json("GET", f"{self._root}/version")
        except ServerError:
            return None
        version = content.get("version") if isinstance(content, dict) else None
        return str(version) if version else None

    async def token_ids(self, model: str, text: str) -> list[int] | None:
        """A text by the server's tokenizer; None where it does not say."""
        asked = {"model": model, "prompt": text, "add_special_tokens": False}
        try:
            content = await self._json("POST", f"{self._root}/tokenize", asked)
        except ServerError:
            return None
        found = content.get("tokens") if isinstance(content, dict) else None
        return found if isinstance(found, list) else None

    async def is_well(self) -> bool:
        """Whether it says of itself that it works; one without a page for that works where it lists its models."""
        try:
            async with self._answer("GET", f"{self._root}/health", timeout_s=_ANSWER_S):
                return True
        except ServerForbids:
            return await self._lists_models()
        except ServerError:
            return False

    async def _lists_models(self) -> bool:
        try:
            await self.models()
        except ServerError:
            return False
        return True

    @asynccontextmanager
    async def stream(self, path: str, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """A request that the server has taken: its events, as they come. Leaving ends it on the server."""
        async with self._answer("POST", f"{self._url}{path}", body) as response:
            yield _events(response)

    async def _json(self, method: str, url: str, asked: object = None) -> Any:
        body = None if asked is None else orjson.dumps(asked)
        async with self._answer(method, url, body, timeout_s=_ANSWER_S) as response:
            content = await response.read()
        try:
            return orjson.loads(content)
        except ValueError as error:
            raise ServerRefuses("its answer is no JSON") from error

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, body: bytes | None = None, *, timeout_s: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose status is 200. Raises ServerError, also for what breaks while it is read."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        try:
            async with self._session.request(
                method, url, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    text = (await response.content.read(2**16)).decode(errors="replace")
                    raise of_status(response.status, text, response.headers.get("Retry-After"))
                yield response
        except aiohttp.ClientConnectorDNSError as error:
            raise NoSuchHost(one_line(error)) from error
        except TimeoutError as error:
            raise ServerAway("it does not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerAway(one_line(error)) from error


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    lines = Lines()
    async for received in response.content.iter_any():
        for data in lines.feed(received):
            yield data


class Lines:
    """Cuts what a stream of events brings into their data."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of the events that are whole by now."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            raise ServerAway("a line of its stream has no end")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
