"""How one model is spoken to: its chat template around a message, its tokens, its think tags.

With ``tokenizers`` alone: ``transformers`` would import torch, which takes seconds. Knows nothing of weights or
engines. Its template runs in a process of its own (``pipeline.chat.rendering``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.chat.asking import GIVEN_BY_PIPELINE, Asking
from pipeline.chat.files import read_model
from pipeline.chat.rendering import ChatTemplate, Conversation
from pipeline.chat.thinking import ThinkMarks, ThinkStart, find_marks
from pipeline.chat.tokens import Encoder, TextStream, WholeTexts
from pipeline.errors import ConfigurationError
from pipeline.samples import Piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_STAND_IN = "\ue000the user's message\ue001"  # private-use characters: no template has them
_ANSWER, _NEXT_MESSAGE = "\ue000the answer\ue001", "\ue000the next message\ue001"


_AS_IT_IS = Asking()


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
    asking: Asking = _AS_IT_IS
    """What a job says about how it is asked."""

    @classmethod
    def load(
        cls, path_or_hub_id: str | PathLike[str], revision: str | None = None, *, may_lack_template: bool = False
    ) -> ChatModel:
        """Read a local folder, else a model of the Hugging Face hub (from its cache where it is there).

        may_lack_template: a model without a chat template is read, too, as a judge of plain text may be. Raises
        ConfigurationError that says what is missing. A name that looks like a path is never looked up.
        """
        files = read_model(path_or_hub_id, revision, may_lack_template=may_lack_template)
        model = cls(
            name=files.name,
            tokenizer=files.tokenizer,
            chat_template=files.chat_template,
            template_variables=files.template_variables,
            eos_ids=files.eos_ids,
            max_model_len=files.max_model_len,
        )
        if _STAND_IN not in model._render(_STAND_IN):
            raise ConfigurationError(f"{files.name}: its chat template does not show the user's message")
        return model

    def asked(self, asking: Asking) -> ChatModel:
        """The same model as a job asks it.

        Raises ConfigurationError for a variable that its template does not have, a system message that the template
        does not show, and a template that refuses either.
        """
        if asking == self.asking:
            return self
        asked = replace(self, asking=asking)
        asked.__dict__.update({name: getattr(self, name) for name in _OF_THE_FILES})
        asked._check_variables()
        if asking.system is not None and asking.system not in asked._render(_STAND_IN):
            raise ConfigurationError(
                f"{self.name}: its chat template does not show a system message as it is given; put the text into the "
                "prompt template instead"
            )
        if _STAND_IN not in asked._render(_STAND_IN):
            raise ConfigurationError(f"{self.name}: asked so, its chat template does not show the user's message")
        return asked

    def _check_variables(self) -> None:
        known = self.known_variables
        unknown = sorted(set(self.asking.template_variables) - known)
        if unknown:
            there_are = f"it has: {', '.join(sorted(known))}" if known else "it has none that can be set"
            raise ConfigurationError(
                f"{self.name}: its chat template has no variable {', '.join(unknown)}; {there_are}"
            )

    @cached_property
    def known_variables(self) -> frozenset[str]:
        """The variables of its template that a job may set."""
        return self._template.names() - GIVEN_BY_PIPELINE - set(self.template_variables)

    def prompt_ids(self, user_message: str, earlier: Sequence[Mapping[str, str]] = ()) -> list[int]:
        """The prompt of one user message up to where the assistant's text begins.

        earlier: messages before it, each with role and content. Raises ConfigurationError for a template that does not
        show them, and as ``ChatTemplate.render_all``.

        The ids are those of the rendered template, as the model was trained, unless the message itself holds text of
        control tokens (an end of sequence, a think tag): such text is then encoded as the letters it is made of, so
        that a problem cannot end its own turn.
        """
        return next(self.ids_of_prompts([(user_message, earlier)]))

    def ids_of_prompts(self, prompts: Sequence[tuple[str, Sequence[Mapping[str, str]]]]) -> Iterator[list[int]]:
        """As ``prompt_ids`` for many, in their order; rendered many at a time."""
        conversations = [[*earlier, {"role": "user", "content": message}] for message, earlier in prompts]
        asked: list[Conversation] = []
        for messages in conversations:
            asked += [messages] if len(messages) == 1 else [messages, _frame_of(messages)]
        rendered = self._render_all(asked)
        for messages in conversations:
            if len(messages) == 1:
                yield self._message_ids(messages[0]["content"], next(rendered))
            else:
                yield self._conversation_ids(messages, next(rendered), next(rendered))

    def _message_ids(self, user_message: str, text: str) -> list[int]:
        token_ids = self._encoder.encode(text)
        in_message = self._encoder.controls_among(self._encoder.encode(user_message))
        if not in_message and self._encoder.controls_among(token_ids) == self._frame_controls:
            return token_ids
        message_ids = self._encoder.encode_letters(user_message)
        joined: list[int] = []
        for index, part in enumerate(self._frame.split(_STAND_IN)):
            joined += message_ids if index else []
            joined += self._encoder.encode(part)
        return joined

    def _conversation_ids(self, messages: Sequence[Mapping[str, str]], text: str, frame: str) -> list[int]:
        """As ``_message_ids`` for several messages: control tokens are those of the template alone."""
        places = [message["content"] for message in _frame_of(messages)]
        parts = re.split("|".join(map(re.escape, places)), frame)
        if re.findall("\ue000message \\d+\ue001", frame) != places:
            raise ConfigurationError(
                f"{self.name}: its chat template does not show each message of a conversation once, in order"
            )
        contents = [message["content"] for message in messages]
        token_ids = self._encoder.encode(text)
        in_contents = any(self._encoder.controls_among(self._encoder.encode(content)) for content in contents)
        if not in_contents and self._encoder.controls_among(token_ids) == self._encoder.controls_among(
            self._encoder.encode(frame)
        ):
            return token_ids
        joined = self._encoder.encode(parts[0])
        for content, part in zip(contents, parts[1:], strict=True):
            joined += self._encoder.encode_letters(content) + self._encoder.encode(part)
        return joined

    def turn_ids(self, question: str, opening: str = "") -> list[int]:
        """What follows the assistant's text where the user says something more, up to where the reply goes on.

        opening: how the reply begins. Text of control tokens in it becomes their ids; in the question it is letters, as
        in a message. Only the template's frame is rendered, never the text before: several templates drop earlier
        thinking. Raises ConfigurationError for a template that does not show a conversation of three messages.
        """
        before, after = self._turn_frame()
        if not self._encoder.controls_among(self._encoder.encode(question)):
            return self.encode_text(before + question + after + opening)
        question_ids = self._encoder.encode_letters(question)
        return [*self.encode_text(before), *question_ids, *self.encode_text(after + opening)]

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

    def text_ids(self, text: str) -> list[int]:
        """The ids of a plain text that stands for itself, without a template: behind the token that begins a text,
        where the tokenizer puts one there."""
        lead = self.tokenizer.encode("", add_special_tokens=True).ids
        token_ids = self._encoder.encode(text)
        if self._encoder.controls_among(token_ids):
            token_ids = self._encoder.encode_letters(text)
        return [*lead, *token_ids]

    def encode_text(self, text: str) -> list[int]:
        """The ids of text that goes on after other tokens; text of control tokens becomes their ids."""
        return self._encoder.encode_text(text)

    def encode_output(self, text: str) -> list[int]:
        """The ids of what another model wrote; of all control tokens only the think tags become their ids."""
        return self._encoder.encode_output(text)

    def decode_stream(self, after: Sequence[int] = ()) -> TextStream:
        """after: the tokens before the first that the stream gets."""
        return TextStream(self.tokenizer, after, self._whole_texts)

    def piece(self, token_ids: Sequence[int]) -> Piece:
        """Ids that go on after other tokens, with the text that each of them adds."""
        stream = self.decode_stream(self._encoder.lead)
        texts = [stream.step(token_id) for token_id in token_ids]
        if texts:
            texts[-1] += stream.finish()
        return Piece(token_ids=tuple(token_ids), texts=tuple(texts))

    @cached_property
    def _encoder(self) -> Encoder:
        return self._plain_encoder.with_tags((self.think_start, self.think_end) if self.think_end else ())

    @cached_property
    def _plain_encoder(self) -> Encoder:
        return Encoder(
            tokenizer=self.tokenizer, special_tokens=self.template_variables, eos_ids=self.eos_ids, think_tags=()
        )

    @cached_property
    def _whole_texts(self) -> WholeTexts | None:
        from tokenizers import decoders

        return WholeTexts(self.tokenizer) if isinstance(self.tokenizer.decoder, decoders.ByteLevel) else None

    @cached_property
    def think_marks(self) -> ThinkMarks:
        """How it marks its thoughts, and where its prompt leaves the think phase."""
        before, _, tail = self._frame.rpartition(_STAND_IN)
        return find_marks(
            tail=tail,
            shown=self.chat_template + before,
            told=self.asking.think_tags,
            vocabulary=self.added_tokens,
        )

    @cached_property
    def added_tokens(self) -> frozenset[str]:
        """The texts of its added tokens, which steer it or are written whole."""
        return frozenset(token.content for token in self.tokenizer.get_added_tokens_decoder().values())

    @cached_property
    def unended_turn(self) -> str | None:
        """The token with which its template ends an answer, where that ends no turn by its files; else None.

        Such a model writes on behind its answer, in the user's name. Raises as ``render_all`` of its template.
        """
        try:
            before, _ = self._turn_frame()
        except ConfigurationError:
            return None
        first = next(iter(self._encoder.controls_among(self._encoder.encode(before))), None)
        if first is None or first in self.eos_ids:
            return None
        text: str | None = self.tokenizer.id_to_token(first)
        return None if text is None or text in self.think_marks.closing else text

    @property
    def think_end(self) -> str:
        """The closing think tag, '' for a model that does not think in this job."""
        return self.think_marks.closing if self.think_marks.thinks else ""

    @property
    def think_start(self) -> str:
        """The opening think tag, '' for a model that does not think in this job."""
        return self.think_marks.opening if self.think_marks.thinks else ""

    @property
    def think_end_id(self) -> int | None:
        """The closing think tag's id; None where it is no single token."""
        token_id: int | None = self.tokenizer.token_to_id(self.think_end) if self.think_end else None
        return token_id

    @property
    def may_think_unseen(self) -> bool:
        """Whether neither its files nor the job say how it marks its thoughts, or that it has none."""
        return self.think_marks.start is ThinkStart.NONE and self.asking.think_tags is None

    @property
    def tags_are_tokens(self) -> bool:
        """Whether each think tag is one token: its text then comes in one piece."""
        return len(self._encoder.think_ids) == 2

    @property
    def starts_in_think(self) -> bool:
        """Whether the prompt ends inside the think phase: the template has opened it."""
        return self.think_marks.start is ThinkStart.OPENED

    @property
    def vocabulary_sha256(self) -> str:
        """Of vocabulary, merges and added tokens: equal for models that agree on what ids mean."""
        return self._tokenizer_hashes.vocabulary

    @cached_property
    def prompts_sha256(self) -> str:
        """Equal for models, as a job asks them, that make the same ids of each prompt."""
        return _sha256(
            {
                "tokenizer": self._tokenizer_hashes.whole,
                "variables": self.template_variables,
                "eos_ids": self.eos_ids,
                "chat_template": self.chat_template,
                "asking": self.asking.sha256,
            }
        )

    @cached_property
    def _tokenizer_hashes(self) -> _TokenizerHashes:
        text = self.tokenizer.to_str()
        description = json.loads(text)
        vocabulary = _sha256(
            {
                "vocabulary": sorted(self.tokenizer.get_vocab(with_added_tokens=True).items()),
                "merges": description["model"].get("merges", []),
                "added": [[token["id"], token["content"], token["special"]] for token in description["added_tokens"]],
            }
        )
        return _TokenizerHashes(vocabulary=vocabulary, whole=hashlib.sha256(text.encode()).hexdigest())

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

    def _render(self, user_message: str) -> str:
        return self._render_messages([{"role": "user", "content": user_message}])

    def _render_messages(self, messages: Conversation) -> str:
        return next(self._render_all([messages]))

    def _render_all(self, conversations: Sequence[Conversation]) -> Iterator[str]:
        variables = {**self.template_variables, **self.asking.template_variables}
        return self._template.render_all([self._with_system(messages) for messages in conversations], variables)

    def _with_system(self, messages: Conversation) -> Conversation:
        """The same behind the job's system message, where it has one."""
        if self.asking.system is None:
            return messages
        own = [message for message in messages[:1] if message["role"] == "system"]
        told = "\n\n".join([self.asking.system, *(message["content"] for message in own)])
        return [{"role": "system", "content": told}, *messages[len(own) :]]

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(name=self.name, source=self.chat_template, today=self.asking.today)

    @property
    def _frame(self) -> str:
        """The rendered prompt with a stand-in for the message. Not cached: a template may write today's date."""
        return self._render(_STAND_IN)

    @cached_property
    def _frame_controls(self) -> list[int]:
        return self._encoder.controls_among(self._encoder.encode(self._frame))


class _TokenizerHashes(NamedTuple):
    """sha256 of a tokenizer: of what its ids mean, and of all that it is made of."""

    vocabulary: str
    whole: str


_OF_THE_FILES = ("_tokenizer_hashes", "fingerprint", "_whole_texts", "_plain_encoder")
"""What no job changes, and takes long to compute."""


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _frame_of(messages: Conversation) -> list[dict[str, str]]:
    """The same conversation with a stand-in for each message."""
    return [
        {"role": message["role"], "content": f"\ue000message {index}\ue001"} for index, message in enumerate(messages)
    ]
