"""Finds out what a server is and can do, before a worker registers.

Its weights cannot be seen: which model it runs is taken on its word. What can be tried is tried: its name for the
model, the length of its context, whether its tokenizer gives the same ids, and whether ids come back as they went in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError
from pipeline.signals import NUM_TOP, Signal
from workers.engine.base import GenerateRequest, Sampling
from workers.engine.server.client import ServerClient
from workers.engine.server.completions import NO_IDS, PATH, Abilities, Chunk, read_event, request_body
from workers.engine.server.errors import ServerRefuses

_TEXT = "Wait, 3 × 14 = 42.\n\nSo x² ≠ ½ {y}; «да», 東京 🙂\n"
"""Of many kinds of characters: two tokenizers that agree on it are the same one, or nearly so."""
_MOST_PROBED = 64
"""Tokens of the prompt that is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundServer:
    """What a server is. root: what it was started with, as it says. version: vLLM's. vocabulary_compared: whether its
    tokenizer could be asked. tells_cached_tokens: whether it says how much of a prompt it had."""

    abilities: Abilities
    root: str | None
    max_model_len: int
    version: str | None
    vocabulary_compared: bool
    tells_cached_tokens: bool

    def is_still(self, cards: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a list of models has this one, as it was."""
        return any(
            card.get("id") == self.abilities.model
            and card.get("root") == self.root
            and (_length(card) or self.max_model_len) >= self.max_model_len
            for card in cards
        )


async def find_server(
    client: ServerClient, chat: ChatModel, *, model: str | None, max_model_len: int | None
) -> FoundServer:
    """What the server is, by its own words and by trying it. model: its name for the model, where a person gave one.

    Raises ConfigurationError for a server that cannot be written with, and ServerError where it did not answer.
    """
    card = choose_model(await client.models(), chat.name, model)
    name = str(card["id"])
    most = _length(card)
    length = min((given for given in (most, max_model_len) if given), default=chat.max_model_len)
    if length is None:
        raise ConfigurationError(
            f"{name}: neither the server nor the model's files say how long its context is: set "
            "SPECTHINK_ENGINE__MAX_MODEL_LEN"
        )
    if max_model_len and most and max_model_len > most:
        raise ConfigurationError(f"{name}: the server's context has {most} tokens, not max_model_len={max_model_len}")
    compared = await _compare_vocabulary(client, chat, name)
    probe = _Probe(client, chat, Abilities(model=name), length)
    cached = await probe.require_ids()
    return FoundServer(
        abilities=await probe.abilities(),
        root=card.get("root"),
        max_model_len=length,
        version=await client.version(),
        vocabulary_compared=compared,
        tells_cached_tokens=cached,
    )


def choose_model(cards: Sequence[Mapping[str, Any]], own: str, given: str | None) -> Mapping[str, Any]:
    """The card of the model that is meant: by the name that was given, else by the worker's own name for it.

    Raises ConfigurationError with the names that there are.
    """
    wanted = given or own
    by_name = [card for card in cards if card.get("id") == wanted]
    by_root = [card for card in cards if not given and card.get("root") == wanted and not card.get("parent")]
    found = by_name or by_root
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(str(card.get("id")) for card in cards)) or "none"
    raise ConfigurationError(
        f"the server has no model {wanted!r}; it has: {names}; say which one is meant by --server-model NAME"
    )


def _length(card: Mapping[str, Any]) -> int | None:
    length = card.get("max_model_len")
    return length if isinstance(length, int) and length > 0 else None


async def _compare_vocabulary(client: ServerClient, chat: ChatModel, name: str) -> bool:
    """Whether the server's tokenizer could be asked. Raises ConfigurationError where it is another one."""
    theirs = await client.token_ids(name, _TEXT)
    if theirs is None:
        return False
    if theirs != chat.tokenizer.encode(_TEXT, add_special_tokens=False).ids:
        raise ConfigurationError(
            f"{name}: the server's tokenizer is not that of {chat.name}: it gives other ids for the same text; give "
            "--model the folder or hub id of the model that the server has"
        )
    return True


class _Probe:
    """Tries a server with requests of one token."""

    def __init__(self, client: ServerClient, chat: ChatModel, abilities: Abilities, max_model_len: int) -> None:
        self._client = client
        self._chat = chat
        self._plain = abilities
        ids = set(chat.tokenizer.get_vocab(with_added_tokens=True).values())
        head = chat.prompt_ids("1 + 1 = ?")[: min(_MOST_PROBED, max_model_len - 4)]
        self._prompt_ids = [max(ids), *head, min(ids)]
        self._num_ids = max(ids) + 1

    async def require_ids(self) -> bool:
        """Whether the server also tells cached tokens. Raises ConfigurationError where ids do not go in and out."""
        chunks = await self._try(self._plain)
        token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        prompt_ids = next((chunk.prompt_ids for chunk in chunks if chunk.prompt_ids is not None), None)
        if prompt_ids is None:
            raise ConfigurationError(f"{self._plain.model}: the server cannot be used: {NO_IDS}")
        if list(prompt_ids) != self._prompt_ids:
            raise ConfigurationError(
                f"{self._plain.model}: the server cannot be used: it was given the ids {self._prompt_ids} and read "
                f"{list(prompt_ids)[: 2 * _MOST_PROBED]}"
            )
        if len(token_ids) != 1:
            raise ConfigurationError(
                f"{self._plain.model}: the server cannot be used: asked for one token, it gives {len(token_ids)}"
            )
        return any(chunk.num_cached_tokens is not None for chunk in chunks)

    async def abilities(self) -> Abilities:
        """What the server can do beside that."""
        by_priority = Abilities(model=self._plain.model, takes_priority=True)
        takes_priority = await self._takes(by_priority, priority=1)
        num_logprobs = 0
        if await self._takes(self._plain, signals=frozenset(Signal)):
            num_logprobs = NUM_TOP
        elif await self._takes(self._plain, signals=frozenset({Signal.LOGPROB})):
            num_logprobs = 1
        return Abilities(model=self._plain.model, takes_priority=takes_priority, num_logprobs=num_logprobs)

    async def _takes(self, abilities: Abilities, **options: Any) -> bool:
        try:
            chunks = await self._try(abilities, **options)
        except ServerRefuses:
            return False
        if "signals" not in options:
            return True
        return any(chunk.rows is not None and chunk.rows.top(0).token_ids for chunk in chunks)

    async def _try(self, abilities: Abilities, **options: Any) -> list[Chunk]:
        request = GenerateRequest(
            request_id="trial", prompt_ids=self._prompt_ids, max_tokens=1, sampling=Sampling(), seed=0, **options
        )
        body = request_body(request, abilities, self._chat.eos_ids)
        async with self._client.stream(PATH, body) as events:
            chunks = [read_event(data) async for data in events]
        return [chunk for chunk in chunks if chunk is not None]
