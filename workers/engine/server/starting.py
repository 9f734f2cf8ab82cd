"""Makes the engine of a worker that writes through a server."""

from __future__ import annotations

import asyncio
import time

import structlog

from pipeline.chat.files import served_name
from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings
from workers.engine.base import EngineInfo
from workers.engine.server.adapter import ServerEngine
from workers.engine.server.client import ServerClient
from workers.engine.server.errors import NoSuchHost, ServerAway, ServerError, ServerForbids, ServerOverloaded
from workers.engine.server.finding import FoundServer, find_server
from workers.engine.server.patience import delays

log = structlog.get_logger()


def load_server(chat: ChatModel, *, revision: str | None, role: ModelRole, settings: EngineSettings) -> ServerEngine:
    """The engine behind ``settings.server.url``; waits for a server that is not there yet.

    Raises ConfigurationError, in one line, for an address that cannot be right and a server that cannot be used.
    """
    url = settings.server.url
    if url is None:
        raise ConfigurationError("SPECTHINK_ENGINE__SERVER__URL: say where the server is, e.g. http://host:8000/v1")
    started_at = time.monotonic()
    found = asyncio.run(_find_patiently(chat, url, settings))
    name = served_name(chat.name)
    engine = ServerEngine(name, describe(name, revision, url, found), chat, found, settings)
    seconds = round(time.monotonic() - started_at, 1)
    log.info("server found", model=name, role=role, url=url, version=found.version, seconds=seconds)
    return engine


def describe(name: str, revision: str | None, url: str, found: FoundServer) -> EngineInfo:
    """What is stored of it. The weights are the server's, and on its word alone."""
    return EngineInfo(
        kind="server",
        version=f"vllm {found.version}" if found.version else "unknown",
        has_own_device=True,
        settings={
            "model": name,
            "revision": revision,
            "server": url,
            "served_model": found.abilities.model,
            "served_root": found.root,
            "weights": "on the server's word",
            "tokenizer_compared": found.vocabulary_compared,
            "max_model_len": found.max_model_len,
            "priorities": found.abilities.takes_priority,
            "logprobs": found.abilities.num_logprobs,
            "tells_cached_tokens": found.tells_cached_tokens,
        },
    )


async def _find_patiently(chat: ChatModel, url: str, settings: EngineSettings) -> FoundServer:
    async with ServerClient(url, settings.server.api_key) as client:
        for delay in delays():
            try:
                return await find_server(
                    client, chat, model=settings.server.model, max_model_len=settings.max_model_len
                )
            except NoSuchHost as error:
                raise ConfigurationError(f"{url}: no server of this name: {error}") from error
            except (ServerAway, ServerOverloaded) as error:
                log.warning("server away", url=url, reason=str(error), next_try_s=round(delay, 1))
            except ServerError as error:
                raise ConfigurationError(_why_not(url, error, has_key=settings.server.api_key is not None)) from error
            await asyncio.sleep(delay)
    raise AssertionError("the delays have no end")


def _why_not(url: str, error: ServerError, *, has_key: bool) -> str:
    """What a person reads of a server that a worker cannot begin with."""
    if isinstance(error, ServerForbids) and error.status in (401, 403):
        what = "does not take the key in" if has_key else "wants a key: give it in"
        return f"{url} {what} SPECTHINK_ENGINE__SERVER__API_KEY ({error})"
    if isinstance(error, ServerForbids):
        return f"{url} has no list of models ({error}); the address of OpenAI-compatible servers ends with /v1"
    return f"{url} cannot be used: {error}"
