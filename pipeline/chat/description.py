"""What the pipeline makes of a model, and of a pair: what people look at before they submit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.chat.model import ChatModel
from pipeline.chat.thinking import ThinkStart
from pipeline.chat.translation import settle_think_phase
from pipeline.chat.weights import weights_sha256

_EXAMPLE = "What is 1 + 2?"
_UNENDED = "{}, with which the template ends an answer: the model may write on; name it in generation_config.json"
_STARTS = {
    ThinkStart.OPENED: "the prompt opens it",
    ThinkStart.CLOSED: "the prompt closes it: the model does not think so",
    ThinkStart.BY_TEXT: "the model opens it itself",
    ThinkStart.NONE: "none was found; a text may open one itself, and --think-tags OPEN,CLOSE names others",
}


def describe_model(chat: ChatModel) -> dict[str, Any]:
    """All that is read from a model's folder, by name, with a rendered prompt."""
    folder = Path(chat.name).expanduser()
    marks = chat.think_marks
    return {
        "model": chat.name,
        "weights": (weights_sha256(folder) or "none here") if folder.is_dir() else "known to workers",
        "tokenizer and template": chat.fingerprint,
        "vocabulary": chat.vocabulary_sha256,
        "context": chat.max_model_len or "not said in config.json",
        "ends of a turn": [chat.tokenizer.id_to_token(token_id) for token_id in chat.eos_ids],
        **({"not among them": _UNENDED.format(chat.unended_turn)} if chat.unended_turn else {}),
        "template variables": sorted(chat.known_variables),
        "think tags": f"{marks.opening} … {marks.closing}" if marks.closing else "none",
        "think phase": _STARTS[marks.start],
        "prompt": chat.tokenizer.decode(chat.prompt_ids(_EXAMPLE), skip_special_tokens=False),
    }


def think_phase_of(chat: ChatModel) -> str:
    """How a model marks its thoughts as it is asked, in one line."""
    marks = chat.think_marks
    tags = f"{marks.opening} … {marks.closing}: " if marks.closing else ""
    return f"{tags}{_STARTS[marks.start]}"


def describe_pair(small: ChatModel, large: ChatModel) -> dict[str, Any]:
    """How two models write one text. Raises ConfigurationError where they cannot."""
    phase = settle_think_phase(small, large)
    same = small.vocabulary_sha256 == large.vocabulary_sha256
    return {
        "pair": f"{small.name} + {large.name}",
        "handed over as": "token ids: one vocabulary" if same else "text: each has a vocabulary of its own",
        "think phase of their texts": f"{phase.start} … {phase.end}" if phase.end else "none: large's end of turn ends",
        "opened by": "the prompt" if phase.opened else "the text, or by nothing: then it has no thoughts",
    }
