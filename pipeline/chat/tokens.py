"""Text to tokens and tokens to text, for one tokenizer, whatever is in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
            unfinished: list[int] = []
            # A run of byte tokens that begins inside a character has no text at all: then it begins one token earlier.
            for more in range(_MAX_TOKENS_IN_CHARACTER):
                self._anchor, unfinished = self._split(list(after[-2 * _MAX_TOKENS_IN_CHARACTER - more :]))
                if self._anchor:
                    break
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
class Encoder:
    """From text to ids. Thread-safe.

    special_tokens: texts by name, bos_token and the like. eos_ids: those that end an answer. think_tags: the opening
    and the closing one, () for a model without.
    """

    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]
    think_tags: tuple[str, ...]

    def with_tags(self, think_tags: tuple[str, ...]) -> Encoder:
        """The same for a model that marks its thoughts so."""
        changed = replace(self, think_tags=think_tags)
        changed.__dict__.update({name: getattr(self, name) for name in _OF_THE_TOKENIZER})
        return changed

    def encode(self, text: str) -> list[int]:
        """The ids of a text by itself; text of control tokens becomes their ids."""
        token_ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

    def encode_text(self, text: str) -> list[int]:
        """The ids of text that goes on after other tokens; text of control tokens becomes their ids."""
        if self.lead:  # a tokenizer that puts a space before a text: none in the middle of one
            token_ids = self.encode("\n" + text)
            if token_ids[: len(self.lead)] == self.lead:
                return token_ids[len(self.lead) :]
        return self.encode(text)

    def encode_output(self, text: str) -> list[int]:
        """The ids of what another model wrote. Of all control tokens only the think tags become their ids: what ends a
        turn is each model's own affair, and the text of such a token is letters here."""
        token_ids = self.encode_text(text)
        if not set(token_ids) & (self._control_ids - self.think_ids):
            return token_ids
        tags = "|".join(map(re.escape, self.think_tags))
        token_ids = []
        for part in re.split(f"({tags})", text) if tags else [text]:
            if part in self.think_tags:
                token_ids += self.encode(part)
            elif part:
                token_ids += self.encode_letters(part)
        return token_ids

    def encode_letters(self, text: str) -> list[int]:
        """The ids of text, none of them a control token's.

        Where the vocabulary itself has the text of one as a piece, as those made by SentencePiece do, it goes in letter
        by letter; what is one only after the tokenizer's normalisation (a wide ＜/s＞) is left out.
        """
        token_ids: list[int] = self._literal_tokenizer.encode(text, add_special_tokens=False).ids
        if not self.controls_among(token_ids):
            return token_ids
        parts = [part for part in re.split(f"({self._control_texts})", text) if part]
        letters = [letter for part in parts for letter in (part if re.fullmatch(self._control_texts, part) else [part])]
        return [
            token_id
            for letter in letters
            for token_id in self._literal_tokenizer.encode(letter, add_special_tokens=False).ids
            if token_id not in self._control_ids
        ]

    @cached_property
    def lead(self) -> list[int]:
        """The ids of a line's end, where the tokenizer puts a space before a text; else none."""
        stream = TextStream(self.tokenizer, self.encode("\n"))
        text = "".join(stream.step(token_id) for token_id in self.encode("a"))
        return self.encode("\n") if text.startswith(" ") else []

    @cached_property
    def think_ids(self) -> frozenset[int]:
        """The ids of those think tags that are one token."""
        ids = (self.tokenizer.token_to_id(tag) for tag in self.think_tags)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def controls_among(self, token_ids: Sequence[int]) -> list[int]:
        """The ids of control tokens, in order."""
        return [token_id for token_id in token_ids if token_id in self._control_ids]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Without the one that stands for what a vocabulary lacks, as ordinary text may; GPT-2's is its end as well."""
        added = self.tokenizer.get_added_tokens_decoder()
        controls = {token_id for token_id, token in added.items() if _is_control(token.content, token.special)}
        unknown = self.special_tokens.get("unk_token", "")
        others = {text for name, text in self.special_tokens.items() if name != "unk_token"}
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


_OF_THE_TOKENIZER = ("lead", "_control_ids", "_control_texts", "_literal_tokenizer")
"""What takes long to compute, and has nothing to do with think tags."""


def _is_control(content: str, special: bool) -> bool:
    """Whether an added token steers a model. Others (runs of spaces, whole words) are vocabulary like any other."""
    is_markup = len(content) > 1 and not any(end.isalnum() or end.isspace() for end in (content[0], content[-1]))
    return special or is_markup
