"""Reads the files of a Hugging Face model folder: tokenizer, chat template, end tokens, length of the context.

With ``tokenizers`` alone: ``transformers`` would import torch, which takes seconds. Knows no weights and no engines.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
MAX_TEMPLATE_BYTES = 4 * 2**20
"""Of a chat template; the largest of today has 30 KiB."""
MAX_JSON_BYTES = 64 * 2**20
"""Of a file of settings; a tokenizer_config.json with 100,000 added tokens has 20 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What a model's folder says about how it is spoken to.

    name: the hub id or path it was read by. template_variables: bos_token, eos_token and the like, as the template sees
    them. eos_ids: the ids that end an answer, ascending: the tokenizer's and those of generation_config.json.
    max_model_len: most tokens of prompt and output, where config.json says.
    """

    name: str
    tokenizer: Tokenizer
    chat_template: str
    template_variables: dict[str, str]
    eos_ids: tuple[int, ...]
    max_model_len: int | None


PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""In the place of a chat template that a judge lacks: it is asked in plain text."""


def read_model(
    path_or_hub_id: str | PathLike[str], revision: str | None = None, *, may_lack_template: bool = False
) -> ModelFiles:
    """Read a local folder, else a model of the Hugging Face hub (from its cache where it is there).

    may_lack_template: a model without a chat template gets PLAIN_TEMPLATE. Raises ConfigurationError
    that says what is missing. A name that looks like a path is never looked up.
    """
    name = str(path_or_hub_id)
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        folder = _download(name, revision)
    tokenizer = _load_tokenizer(name, folder)
    settings = _read_json(folder / "tokenizer_config.json")
    variables = _special_tokens({**_read_json(folder / "special_tokens_map.json"), **settings})
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json")
    return ModelFiles(
        name=name,
        tokenizer=tokenizer,
        chat_template=_read_chat_template(name, folder, settings, may_lack=may_lack_template),
        template_variables=variables,
        eos_ids=_find_eos_ids(tokenizer, variables, config, generation),
        max_model_len=_find_max_model_len(config),
    )


_WITH_A_HEAD = re.compile(r"RewardModel|ForSequenceClassification|ForTokenClassification|ValueHead|ScoreHead")
"""In the names of architectures whose output is a number and no token."""


def refuse_pooling(model: str, folder: Path) -> None:
    """Raise ConfigurationError for a judge that writes no tokens: a reward model with a head of its own."""
    architectures = _read_json(folder / "config.json").get("architectures") or ()
    found = next((name for name in architectures if _WITH_A_HEAD.search(str(name))), None)
    if found is not None:
        raise ConfigurationError(
            f"{served_name(model)} is a reward model with a head of its own ({found}), which gives numbers and no "
            "tokens: take a generative one, that answers + or - (or Yes or No), as Math-Shepherd's does"
        )


def find_cached_folder(hub_id: str, revision: str | None = None) -> Path | None:
    """Where the hub's cache on this machine has a model, without asking the hub; None where it has not."""
    if not _looks_like_hub_id(hub_id):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def find_folder(path_or_hub_id: str | PathLike[str], revision: str | None = None) -> Path | None:
    """Where a model lies on this machine: its folder, else its place in the hub's cache; None where it does not."""
    folder = Path(path_or_hub_id).expanduser()
    return folder if folder.is_dir() else find_cached_folder(str(path_or_hub_id), revision)


def served_name(path_or_hub_id: str | PathLike[str]) -> str:
    """The name that jobs and workers use for a model: a folder's base name, or the hub id."""
    folder = Path(path_or_hub_id).expanduser()
    return folder.resolve().name if folder.is_dir() else str(path_or_hub_id)


def _download(name: str, revision: str | None) -> Path:
    """The folder of a hub model's text files."""
    if not _looks_like_hub_id(name):
        raise ConfigurationError(f"{name}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors are kinds of these
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"{name}: neither a folder here nor a model that the Hugging Face hub gives ({reason})"
        ) from error


def _looks_like_hub_id(name: str) -> bool:
    """owner/name or name, where owner is not a folder that exists here."""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", name):
        return False
    owner, slash, _ = name.partition("/")
    return not (slash and Path(owner).is_dir()) and not Path(name).exists()


def _load_tokenizer(name: str, folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigurationError(f"{name}: no model with a fast tokenizer: tokenizer.json is missing in {folder}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigurationError(f"{name}: {file} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_text(file: Path, *, most: int) -> str:
    """Raises FileNotFoundError, and ConfigurationError for a file that is too large or no text."""
    try:
        with file.open("rb") as content:
            found = content.read(most + 1)
        if len(found) > most:
            raise ConfigurationError(f"{file} has more than {most:,} bytes; fetch the model's files anew")
        return found.decode()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    """An optional file's content, {} where it is missing."""
    try:
        content = json.loads(_read_text(file, most=MAX_JSON_BYTES))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a JSON object")
    return content


def _read_chat_template(name: str, folder: Path, settings: dict[str, Any], *, may_lack: bool) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read_text(file, most=MAX_TEMPLATE_BYTES)
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if not isinstance(template, str):
        if may_lack:
            return PLAIN_TEMPLATE
        raise ConfigurationError(
            f"{name}: it has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json, in "
            f"{folder}); take the model's instruct or reasoning version"
        )
    if len(template) > MAX_TEMPLATE_BYTES:
        raise ConfigurationError(
            f"{name}: its chat template has more than {MAX_TEMPLATE_BYTES:,} characters; fetch the model's files anew"
        )
    return template


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as text; an entry is text or an object with its text as ``content``."""
    tokens = {}
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _find_eos_ids(
    tokenizer: Tokenizer,
    variables: dict[str, str],
    config: dict[str, Any],
    generation: dict[str, Any],
) -> tuple[int, ...]:
    """config.json counts only where nothing else names an end: it often keeps the base model's."""
    eos_ids = _as_ids(generation.get("eos_token_id"))
    if (eos_id := tokenizer.token_to_id(variables.get("eos_token", ""))) is not None:
        eos_ids.add(eos_id)
    return tuple(sorted(eos_ids or _as_ids(config.get("eos_token_id"))))


def _as_ids(value: object) -> set[int]:
    if isinstance(value, int):
        return {value}
    return {item for item in value if isinstance(item, int)} if isinstance(value, list) else set()


def _find_max_model_len(config: dict[str, Any]) -> int | None:
    for part in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return None
