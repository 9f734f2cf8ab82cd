"""How one model is spoken to: its tokenizer, chat template, end tokens and think tags.

Reads the files of a Hugging Face model folder with ``tokenizers`` and ``jinja2`` alone: ``transformers`` would import
torch, which takes seconds. Knows nothing of weights or engines.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import ConfigurationError
from pipeline.samples import Piece

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

THINK_TAGS = {
    "</think>": "<think>",
    "</seed:think>": "<seed:think>",
    "[/THINK]": "[THINK]",
}
"""Closing think tags in use, each with its opening tag."""

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
_STAND_IN = "\ue000the user's message\ue001"  # private-use characters: no template has them
_ANSWER, _NEXT_MESSAGE = "\ue000the answer\ue001", "\ue000the next message\ue001"
_MAX_PENDING = 16
_MAX_TOKENS_IN_CHARACTER = 4  # UTF-8 has at most four bytes in a character, and a token has at least one


class WholeTexts(dict[int, str]):
    """Text by id, '' where an id alone is no whole text; filled as it is asked.

    For tokenizers that decode byte by byte: a token's text is the same after any other whole text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> str:
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        self[token_id] = whole = "" if "\ufffd" in text else text
        return whole


class TextStream:
    """Turns the tokens of one sample into text as they come. Not shared between threads.

    Lossless: the pieces joined are the text of all tokens. Special tokens appear as their text.

    after: the tokens before the first one. A character that they leave unfinished comes whole with its last token,
    and the first token keeps the space that some decoders drop at the start of a text.
    whole_texts: spares most tokens the decoder, which takes six times as long.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = (), whole_texts: WholeTexts | None = None) -> None:
        self._tokenizer = tokenizer
        self._whole_texts = whole_texts
        self._passed: int | None = None  # the last token that the decoder was spared
        self._anchor: list[int] = []  # the tokens of the last whole text: some decoders drop a space at the start
        self._pending: list[int] = []  # the tokens since
        if after:
            self._anchor, unfinished = self._split(list(after[-2 * _MAX_TOKENS_IN_CHARACTER :]))
            self._restart()
            for token_id in unfinished:
                self.step(token_id)
        else:
            self._restart()

    def _split(self, token_ids: list[int]) -> tuple[list[int], list[int]]:
        """Tokens with a whole text, and those after them that begin a character; ([], []) for stray bytes."""
        for length in range(len(token_ids), max(0, len(token_ids) - _MAX_TOKENS_IN_CHARACTER), -1):
            text = self._tokenizer.decode(token_ids[:length], skip_special_tokens=False)
            if text and not text.endswith("\ufffd"):
                return token_ids[:length], token_ids[length:]
        return [], token_ids if len(token_ids) < _MAX_TOKENS_IN_CHARACTER else []

    def step(self, token_id: int) -> str:
        """What this token adds: '' for one that ends inside a character, which comes with its last token."""
        if self._whole_texts is not None and not self._pending:
            whole = self._whole_texts[token_id]
            if whole:
                self._passed = token_id
                return whole
        if self._passed is not None:
            self._anchor, self._passed = [self._passed], None
            self._restart()
        self._pending.append(token_id)
        try:
            text: str | None = self._stream.step(self._tokenizer, token_id)
        except Exception:  # tokenizers raises nothing narrower; stray bytes can change text that was already given
            return self._flush(keep=0)
        if text is not None:
            self._anchor, self._pending = self._pending, []
            return text
        if len(self._pending) > _MAX_PENDING:  # stray bytes: each step would decode all of them again
            return self._flush(keep=_MAX_TOKENS_IN_CHARACTER - 1)
        return ""

    def finish(self) -> str:
        """What is left at the end: a U+FFFD for each part of a character that never got its last token."""
        return self._flush(keep=0)

    def _flush(self, *, keep: int) -> str:
        """Give up waiting for all but the last ``keep`` pending tokens."""
        cut = len(self._pending) - keep
        ready, rest = self._pending[:cut], self._pending[cut:]
        text: str = self._tokenizer.decode(ready, skip_special_tokens=False)
        if text and not text.endswith("\ufffd"):
            self._anchor = ready
        self._pending = []
        self._restart()
        return text + "".join(self.step(token_id) for token_id in rest)

    def _restart(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(ids=self._anchor, skip_special_tokens=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatModel:
    """One model's tokenizer and chat template. Thread-safe. Made by ``ChatModel.load``."""

    name: str
    """The hub id or path it was loaded by."""
    tokenizer: Tokenizer
    chat_template: str
    template_variables: dict[str, str]
    """bos_token, eos_token and the like, as the template sees them."""
    eos_ids: tuple[int, ...]
    """The ids that end an answer, ascending: the tokenizer's and those of generation_config.json."""
    max_model_len: int | None
    """Most tokens of prompt and output, where config.json says."""

    @classmethod
    def load(cls, path_or_hub_id: str | PathLike[str], revision: str | None = None) -> ChatModel:
        """Read a local folder, else a model of the Hugging Face hub (from its cache where it is there).

        Raises ConfigurationError that says what is missing. A name that looks like a path is never looked up.
        """
        name = str(path_or_hub_id)
        folder = Path(name).expanduser()
        if not name or not folder.is_dir():
            folder = _download(name, revision)
        tokenizer = _load_tokenizer(name, folder)
        settings = _read_json(folder / "tokenizer_config.json")
        variables = _special_tokens({**_read_json(folder / "special_tokens_map.json"), **settings})
        config = _read_json(folder / "config.json")
        model = cls(
            name=name,
            tokenizer=tokenizer,
            chat_template=_read_chat_template(name, folder, settings),
            template_variables=variables,
            eos_ids=_find_eos_ids(
                tokenizer,
                variables,
                config,
                _read_json(folder / "generation_config.json"),
            ),
            max_model_len=_find_max_model_len(config),
        )
        if _STAND_IN not in model._render(_STAND_IN):
            raise ConfigurationError(f"{name}: its chat template does not show the user's message")
        return model

    @classmethod
    def find_cached(cls, hub_id: str) -> ChatModel | None:
        """A model of the hub's cache on this machine, without asking the hub; None where it is not there whole."""
        if not _looks_like_hub_id(hub_id):
            return None
        from huggingface_hub import snapshot_download

        try:
            return cls.load(snapshot_download(hub_id, local_files_only=True))
        except (OSError, ValueError, ConfigurationError):
            return None

    def prompt_ids(self, user_message: str) -> list[int]:
        """The prompt of one user message up to where the assistant's text begins.

        The ids are those of the rendered template, as the model was trained, unless the message itself holds text of
        control tokens (an end of sequence, a think tag): such text is then encoded as the letters it is made of, so
        that a problem cannot end its own turn.
        """
        token_ids = self._encode(self._render(user_message))
        in_message = self._controls_among(self._encode(user_message))
        if not in_message and self._controls_among(token_ids) == self._frame_controls:
            return token_ids
        message_ids = self._encode_letters(user_message)
        joined: list[int] = []
        for index, part in enumerate(self._frame.split(_STAND_IN)):
            joined += message_ids if index else []
            joined += self._encode(part)
        return joined

    def turn_ids(self, question: str, opening: str = "") -> list[int]:
        """What follows the assistant's text where the user says something more, up to where the reply goes on.

        opening: how the reply begins. Text of control tokens in either becomes their ids. Only the template's frame is
        rendered, never the text before: several templates drop earlier thinking. Raises ConfigurationError for a
        template that does not show a conversation of three messages.
        """
        before, after = self._turn_frame()
        return self.encode_text(before + question + after + opening)

    def _turn_frame(self) -> tuple[str, str]:
        """What the template writes between the assistant's text and a next message, and after that."""
        messages = [("user", _STAND_IN), ("assistant", _ANSWER), ("user", _NEXT_MESSAGE)]
        rendered = self._render_messages([{"role": role, "content": content} for role, content in messages])
        _, has_answer, rest = rendered.partition(_ANSWER)
        before, has_next, after = rest.partition(_NEXT_MESSAGE)
        if not (has_answer and has_next):
            raise ConfigurationError(
                f"{self.name}: its chat template does not show an answer and a next message after it, so that nothing "
                "can be asked in a turn of its own"
            )
        return before, after

    def encode_text(self, text: str) -> list[int]:
        """The ids of text that goes on after other tokens; text of control tokens becomes their ids."""
        if self._lead:  # a tokenizer that puts a space before a text: none in the middle of one
            token_ids = self._encode("\n" + text)
            if token_ids[: len(self._lead)] == self._lead:
                return token_ids[len(self._lead) :]
        return self._encode(text)

    def encode_output(self, text: str) -> list[int]:
        """The ids of what another model wrote. Of all control tokens only the think tags become their ids: what ends a
        turn is each model's own affair, and the text of such a token is letters here."""
        token_ids = self.encode_text(text)
        if not set(token_ids) & (self._control_ids - self._think_ids):
            return token_ids
        tags = "|".join(map(re.escape, filter(None, (self.think_start, self.think_end))))
        token_ids = []
        for part in re.split(f"({tags})", text) if tags else [text]:
            if part in (self.think_start, self.think_end):
                token_ids += self._encode(part)
            elif part:
                token_ids += self._encode_letters(part)
        return token_ids

    def decode_stream(self, after: Sequence[int] = ()) -> TextStream:
        """after: the tokens before the first that the stream gets."""
        return TextStream(self.tokenizer, after, self._whole_texts)

    def piece(self, token_ids: Sequence[int]) -> Piece:
        """Ids that go on after other tokens, with the text that each of them adds."""
        stream = self.decode_stream(self._lead)
        texts = [stream.step(token_id) for token_id in token_ids]
        if texts:
            texts[-1] += stream.finish()
        return Piece(token_ids=tuple(token_ids), texts=tuple(texts))

    @cached_property
    def _whole_texts(self) -> WholeTexts | None:
        from tokenizers import decoders

        return WholeTexts(self.tokenizer) if isinstance(self.tokenizer.decoder, decoders.ByteLevel) else None

    @cached_property
    def think_end(self) -> str:
        """The closing think tag, '' for a model without one."""
        for closing in THINK_TAGS:
            if self.tokenizer.token_to_id(closing) is not None or closing in self.chat_template:
                return closing
        return ""

    @property
    def think_start(self) -> str:
        """The opening think tag, '' for a model without one."""
        return THINK_TAGS[self.think_end] if self.think_end else ""

    @property
    def think_end_id(self) -> int | None:
        """The closing think tag's id; None where it is no single token."""
        token_id: int | None = self.tokenizer.token_to_id(self.think_end) if self.think_end else None
        return token_id

    @property
    def tags_are_tokens(self) -> bool:
        """Whether each think tag is one token: its text then comes in one piece."""
        return len(self._think_ids) == 2

    @cached_property
    def _think_ids(self) -> frozenset[int]:
        ids = (self.tokenizer.token_to_id(tag) for tag in (self.think_start, self.think_end) if tag)
        return frozenset(token_id for token_id in ids if token_id is not None)

    @cached_property
    def _lead(self) -> list[int]:
        """The ids of a line's end, where the tokenizer puts a space before a text; else none."""
        stream = self.decode_stream(self._encode("\n"))
        text = "".join(stream.step(token_id) for token_id in self._encode("a"))
        return self._encode("\n") if text.startswith(" ") else []

    @cached_property
    def starts_in_think(self) -> bool:
        """Whether the prompt ends inside the think phase: the template has opened it."""
        if not self.think_end:
            return False
        tail = self._frame.rpartition(_STAND_IN)[2]
        return tail.rfind(self.think_start) > tail.rfind(self.think_end)

    @cached_property
    def vocabulary_sha256(self) -> str:
        """Of vocabulary, merges and added tokens: equal for models that agree on what ids mean."""
        description = json.loads(self.tokenizer.to_str())
        return _sha256(
            {
                "vocabulary": sorted(self.tokenizer.get_vocab(with_added_tokens=True).items()),
                "merges": description["model"].get("merges", []),
                "added": [[token["id"], token["content"], token["special"]] for token in description["added_tokens"]],
            }
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of vocabulary, special tokens and chat template, wherever the model's folder is."""
        return _sha256(
            {
                "vocabulary": self.vocabulary_sha256,
                "special": self.template_variables,
                "eos_ids": self.eos_ids,
                "chat_template": self.chat_template,
            }
        )

    def _encode_letters(self, text: str) -> list[int]:
        """The ids of text, none of them a control token's.

        Where the vocabulary itself has the text of one as a piece, as those made by SentencePiece do, it goes in letter
        by letter; what is one only after the tokenizer's normalisation (a wide ＜/s＞) is left out.
        """
        token_ids: list[int] = self._literal_tokenizer.encode(text, add_special_tokens=False).ids
        if not self._controls_among(token_ids):
            return token_ids
        parts = [part for part in re.split(f"({self._control_texts})", text) if part]
        letters = [letter for part in parts for letter in (part if re.fullmatch(self._control_texts, part) else [part])]
        return [
            token_id
            for letter in letters
            for token_id in self._literal_tokenizer.encode(letter, add_special_tokens=False).ids
            if token_id not in self._control_ids
        ]

    def _encode(self, text: str) -> list[int]:
        token_ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

    def _render(self, user_message: str) -> str:
        return self._render_messages([{"role": "user", "content": user_message}])

    def _render_messages(self, messages: list[dict[str, str]]) -> str:
        import jinja2

        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self.template_variables)
        except jinja2.TemplateError as error:
            told = "a user message" if len(messages) == 1 else f"a conversation of {len(messages)} messages"
            raise ConfigurationError(f"{self.name}: its chat template refuses {told}: {error}") from error

    @cached_property
    def _template(self) -> Template:
        return _compile_template(self.name, self.chat_template)

    @property
    def _frame(self) -> str:
        """The rendered prompt with a stand-in for the message. Not cached: a template may write today's date."""
        return self._render(_STAND_IN)

    @cached_property
    def _frame_controls(self) -> list[int]:
        return self._controls_among(self._encode(self._frame))

    def _controls_among(self, token_ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id in self._control_ids]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Without the one that stands for what a vocabulary lacks, as ordinary text may; GPT-2's is its end as well."""
        added = self.tokenizer.get_added_tokens_decoder()
        controls = {token_id for token_id, token in added.items() if _is_control(token.content, token.special)}
        unknown = self.template_variables.get("unk_token", "")
        others = {text for name, text in self.template_variables.items() if name != "unk_token"}
        if unknown not in others and (unknown_id := self.tokenizer.token_to_id(unknown)) not in self.eos_ids:
            controls.discard(-1 if unknown_id is None else unknown_id)
        return frozenset(controls)

    @cached_property
    def _control_texts(self) -> str:
        """A pattern for the texts of control tokens, the longest first."""
        texts = [self.tokenizer.id_to_token(token_id) or "" for token_id in self._control_ids]
        return "|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True)))

    @cached_property
    def _literal_tokenizer(self) -> Tokenizer:
        """A copy that takes the text of control tokens as mere letters. A copy, because that is a tokenizer's state."""
        from tokenizers import Tokenizer

        description = json.loads(self.tokenizer.to_str())
        for token in description["added_tokens"]:
            token["special"] = token["special"] or _is_control(token["content"], False)
        copy = Tokenizer.from_str(json.dumps(description))
        copy.encode_special_tokens = True  # that is: encode their text, do not recognise them
        return copy


def served_name(path_or_hub_id: str | PathLike[str]) -> str:
    """The name that jobs and workers use for a model: a folder's base name, or the hub id."""
    folder = Path(path_or_hub_id).expanduser()
    return folder.resolve().name if folder.is_dir() else str(path_or_hub_id)


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_control(content: str, special: bool) -> bool:
    """Whether an added token steers a model. Others (runs of spaces, whole words) are vocabulary like any other."""
    is_markup = len(content) > 1 and not any(end.isalnum() or end.isspace() for end in (content[0], content[-1]))
    return special or is_markup


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


def _read_json(file: Path) -> dict[str, Any]:
    """An optional file's content, {} where it is missing."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a JSON object")
    return content


def _read_chat_template(name: str, folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        raise ConfigurationError(
            f"{name}: it has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json, in "
            f"{folder}); take the model's instruct or reasoning version"
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
        for key in (
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "seq_length",
        ):
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def _compile_template(name: str, chat_template: str) -> Template:
    """Compiled as transformers does it: chat templates are written against that environment."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_in_template
    environment.globals["strftime_now"] = lambda pattern: dt.datetime.now().strftime(pattern)
    without_marks = re.sub(
        r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}",
        r"{%\1 if true %}{% endif \2%}",
        chat_template,
    )
    try:
        return environment.from_string(without_marks)
    except jinja2.TemplateError as error:
        raise ConfigurationError(f"{name}: its chat template is broken: {error}") from error


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_in_template(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
