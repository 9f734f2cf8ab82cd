"""What lets an engine write several tokens per step: somebody drafts them, and its model checks all of them at once.

An accelerator is a setting of one engine, never a part of a job: with it the same tokens are as likely as without, but
with a seed other ones are drawn. Greedy requests get the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigurationError

FORMS = "ngram, suffix, eagle3:MODEL or draft:MODEL"


class DraftMethod(StrEnum):
    """Where drafts come from."""

    NGRAM = "ngram"  # what followed the same tokens earlier in the request
    SUFFIX = "suffix"  # the same, in what other requests wrote too
    EAGLE3 = "eagle3"  # a head that was trained for just this model
    DRAFT = "draft"  # a smaller model with the same vocabulary


_WITH_MODEL = (DraftMethod.EAGLE3, DraftMethod.DRAFT)
_TOKENS = {DraftMethod.NGRAM: 4, DraftMethod.SUFFIX: 16, DraftMethod.EAGLE3: 3, DraftMethod.DRAFT: 4}
"""Of one draft, where nobody says it: vLLM's examples have these; a suffix's draft ends where it becomes unlikely."""
_NGRAM_TOKENS = (2, 5)
"""Fewest and most tokens that must be the same for what followed them to be a draft. vLLM's own 5 and 5 find little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """model: a folder or hub id; None where no model makes the drafts. draft_tokens: of one draft, at most."""

    method: DraftMethod
    model: str | None
    draft_tokens: int

    @property
    def label(self) -> str:
        """As it is stored and shown: a folder by its own name."""
        if self.model is None:
            return self.method.value
        name = Path(self.model).name if Path(self.model).expanduser().is_dir() else self.model
        return f"{self.method.value}:{name}"

    def speculative_config(self, *, tensor_parallel_size: int) -> dict[str, Any]:
        """vLLM's ``speculative_config``. tensor_parallel_size: of the engine's own model, and so of a draft model."""
        config: dict[str, Any] = {"num_speculative_tokens": self.draft_tokens}
        match self.method:
            case DraftMethod.NGRAM:
                least, most = _NGRAM_TOKENS
                return config | {"method": "ngram", "prompt_lookup_min": least, "prompt_lookup_max": most}
            case DraftMethod.SUFFIX:
                return config | {"method": "suffix"}
            case DraftMethod.EAGLE3:
                return config | {"method": "eagle3", "model": self.model}
            case DraftMethod.DRAFT:
                tensor_parallel = {"draft_tensor_parallel_size": tensor_parallel_size}
                return config | {"method": "draft_model", "model": self.model, **tensor_parallel}


def parse_accelerator(text: str, draft_tokens: int | None = None) -> Accelerator:
    """The accelerator of ``METHOD`` or ``METHOD:MODEL``. draft_tokens: None for the method's own number.

    Raises ConfigurationError for another form.
    """
    name, _, model = text.strip().partition(":")
    try:
        method = DraftMethod(name)
    except ValueError:
        raise ConfigurationError(f"accelerate {text!r}: write {FORMS}") from None
    if (method in _WITH_MODEL) != bool(model):
        fault = "takes no model" if model else "needs the model that makes the drafts"
        raise ConfigurationError(f"accelerate {text!r}: {method.value} {fault}: write {FORMS}")
    return Accelerator(method=method, model=model or None, draft_tokens=draft_tokens or _TOKENS[method])


def with_full_path(text: str) -> str:
    """The same accelerator for a process that runs in another folder: a model's folder by its full path."""
    name, separator, model = text.partition(":")
    folder = Path(model).expanduser()
    return f"{name}:{folder.resolve()}" if separator and folder.is_dir() else text
