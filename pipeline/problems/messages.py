"""Prompts that a set gives as a conversation: a system text, earlier turns, and what is asked at last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.problems.values import parse_json, type_name

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """earlier: messages before the last one of the user, each with role and content. has_reply: an assistant's text
    followed it, which is left out: it shows the answer."""

    earlier: tuple[dict[str, str], ...]
    question: str
    has_reply: bool


def looks_like_messages(value: Any) -> bool:
    return isinstance(value, list) or (type(value) is str and value.lstrip().startswith("[{"))


def read_messages(name: str, value: Any) -> Conversation:
    """Raises ValueError for anything but texts by a system, a user and an assistant that end with the user's."""
    if type(value) is str:
        value = parse_json(value)
    if not value or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"wrong type: {name!r} must be text or a list of messages")
    messages = [_read_message(name, message) for message in value]
    asked = list(messages)
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    if not asked or asked[-1]["role"] != "user":
        raise ValueError(f"{name!r} has no message of the user to answer")
    if any(message["role"] == "system" for message in asked[1:]):
        raise ValueError(f"{name!r} has a system message after the first message")
    return Conversation(earlier=tuple(asked[:-1]), question=asked[-1]["content"], has_reply=len(asked) < len(messages))


def _read_message(name: str, message: dict[str, Any]) -> dict[str, str]:
    role = _ROLES.get(str(message.get("role", message.get("from"))).lower())
    if role is None:
        raise ValueError(f"{name!r} has a message by another than {', '.join(sorted(_ROLES))}")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(_read_part(name, part) for part in content)
    if type(content) is not str:
        raise ValueError(f"{name!r} has a message whose content is {type_name(content)}, not text")
    return {"role": role, "content": content}


def _read_part(name: str, part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text" and type(part.get("text")) is str:
        return str(part["text"])
    raise ValueError(f"{name!r} has a message with something other than text in it, such as an image")
