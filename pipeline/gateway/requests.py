"""What a chat request may ask: checked, and divided into what is asked and how.

A parameter that this pipeline does not have is refused, unless its value changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.gateway.errors import NOT_SUPPORTED, UNSUPPORTED, bad, invalid
from pipeline.jobs.config import MAX_INTEGER
from pipeline.problems import Problem
from pipeline.problems.values import check_text, to_plain

Number = Annotated[float, Field(strict=True)]
Nothing = Annotated[list[Any], Field(max_length=0)]


def _storable(text: str) -> str:
    """Raises ValueError for a text with a NUL or half of a character, which neither Postgres nor UTF-8 has."""
    check_text(text)
    return text


Text = Annotated[str, Field(strict=True), AfterValidator(_storable)]

PolicyOptions = Annotated[dict[Text, Any], AfterValidator(to_plain)]
"""Values that can be stored: no NUL in a text, nothing nested without end."""

MAX_N = 128
MAX_STOPS = 4


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Part):
    """A part of a message. Images and sounds are refused: no model here reads them."""

    type: Literal["text"]
    text: Annotated[str, Field(strict=True)]

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if value != "text":
            raise PydanticCustomError(NOT_SUPPORTED, "only parts of the type 'text' are read here")
        return value


class Message(_Part):
    """One message. developer is another word for system."""

    role: Literal["system", "developer", "user", "assistant"]
    type: Literal["text", "message"] | None = None
    """Some harnesses write it."""
    content: Annotated[str, Field(strict=True)] | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None

    # An answer that was given comes back as the official client shows it: with the keys that it does not use.
    refusal: None = None
    tool_calls: Nothing | None = None
    function_call: None = None
    audio: None = None
    annotations: Nothing | None = None

    @property
    def text(self) -> str:
        """Earlier thoughts are no part of it: chat templates leave them out."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Part):
    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class TextFormat(_Part):
    type: Literal["text"]


class ChatOptions(_Part):
    """What is ours, under ``specthink``."""

    policy_options: PolicyOptions = {}
    """Numbers of the policy that differ from its preset."""
    require_workers: StrictBool | None = None
    """Refuse a model that no live worker serves; without a word: online so, in a batch not."""
    include: Annotated[list[Literal["segments", "discarded_text"]], Field(max_length=2)] = ["segments"]
    """What the answer says of itself."""


class ChatRequest(BaseModel):
    """The body of a chat completion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[Text, Field(min_length=1, max_length=500)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_INTEGER)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_INTEGER)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=MAX_INTEGER)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_N)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(strict=True, max_length=200)]
        | Annotated[list[Annotated[str, Field(strict=True, max_length=200)]], Field(max_length=MAX_STOPS)]
        | None
    ) = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    specthink: ChatOptions | None = None

    # Taken where they change nothing; the answer names them as ignored.
    user: Text | None = None
    metadata: dict[Text, Text] | None = None
    store: StrictBool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None
    parallel_tool_calls: StrictBool | None = None
    reasoning_effort: Text | None = None
    verbosity: Text | None = None
    include_reasoning: Literal[True] | None = None

    # Refused, but for the value that changes nothing.
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None
    prompt_logprobs: Literal[0] | None = None
    use_beam_search: Literal[False] | None = None
    guided_json: None = None
    guided_regex: None = None
    guided_choice: None = None
    guided_grammar: None = None
    structured_outputs: None = None
    prediction: None = None
    web_search_options: None = None

    @field_validator("logprobs", "echo", "use_beam_search", mode="before")
    @classmethod
    def _is_a_boolean(cls, value: Any) -> Any:
        """0 is equal to False, and is another thing."""
        if value is not None and not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value


_IGNORED = UNSUPPORTED | {
    "user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "reasoning_effort", "verbosity",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A checked request: how it is asked, and what. options: of a submission but for its models and problems.

    settings: what two requests have in common that can be problems of one job. ignored: parameters that were given and
    change nothing.
    """

    model: str
    problem: Problem
    options: Mapping[str, Any]
    include: tuple[str, ...]
    require_workers: bool | None
    ignored: tuple[str, ...] = ()
    settings: str = field(default="", compare=False)


def parse_request(body: object) -> ChatRequest:
    """Raises ApiError with the first fault."""
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error


def read_request(request: ChatRequest, *, external_id: str) -> Asked:
    """Raises ApiError for what no problem can be made of."""
    if request.stream_options is not None and not request.stream:
        raise bad("'stream_options' goes with 'stream': true.", param="stream_options")
    ours = request.specthink or ChatOptions()
    options = _options(request, ours)
    return Asked(
        model=request.model,
        problem=_problem(request.messages, external_id),
        options=options,
        include=tuple(sorted(set(ours.include))),
        require_workers=ours.require_workers,
        ignored=tuple(sorted(_ignored(request))),
        settings=orjson.dumps([request.model, options], option=orjson.OPT_SORT_KEYS).decode(),
    )


def _ignored(request: ChatRequest) -> Iterator[str]:
    """What was given and changes nothing."""
    yield from request.model_fields_set & _IGNORED
    if any(message.name is not None for message in request.messages):
        yield "messages.name"


def _options(request: ChatRequest, ours: ChatOptions) -> dict[str, Any]:
    if request.max_tokens and request.max_completion_tokens and request.max_tokens != request.max_completion_tokens:
        raise bad("max_tokens and max_completion_tokens differ; give one of them.", param="max_completion_tokens")
    top_k = 0 if request.top_k == -1 else request.top_k  # vLLM's way to say: from all
    given = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": top_k,
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "num_samples": request.n,
        "seed": request.seed,
        "stop": _stops(request.stop),
        "policy_values": ours.policy_options or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _stops(stop: str | list[str] | None) -> list[str] | None:
    texts = [stop] if isinstance(stop, str) else list(stop or ())
    for text in texts:
        _require_storable(text, "stop")
    return list(dict.fromkeys(text for text in texts if text)) or None  # an empty one stands nowhere


def _problem(messages: list[Message], external_id: str) -> Problem:
    """The last message is the question, and those before it are turns."""
    *earlier, last = messages
    if last.role != "user":
        raise bad("The last message must be the user's: no model here goes on with another's.", param="messages")
    if not last.text.strip():
        raise bad("The last message is empty.", param="messages")
    turns = []
    for index, message in enumerate(messages):
        _require_storable(message.text, f"messages.{index}.content")
        role = "system" if message.role == "developer" else message.role
        if role == "system" and index > 0:
            raise bad("A system message must be the first one.", param=f"messages.{index}.role")
        turns.append({"role": role, "content": message.text})
    return Problem(external_id=external_id, prompt=last.text, metadata={"turns": turns[:-1]} if earlier else {})


def _require_storable(text: str, param: str) -> None:
    try:
        check_text(text)
    except ValueError as error:
        raise bad(f"The text has {error}, which cannot be stored.", param=param, code="invalid_value") from error


def body_sha256(*parts: object) -> str:
    """By which a request that is sent twice is known again."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


def chat_sha256(request: ChatRequest) -> str:
    return body_sha256(request.model_dump(mode="json", exclude_unset=True))
