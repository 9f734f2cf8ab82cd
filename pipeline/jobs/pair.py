"""The models that a submission names, as far as the submitting machine can know them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pipeline.chat.asking import Asking
from pipeline.chat.files import find_cached_folder, refuse_pooling
from pipeline.chat.translation import ThinkPhase, settle_think_phase
from pipeline.errors import ConfigurationError
from pipeline.jobs.config import ModelSpec
from pipeline.jobs.submission import ModelChoice, Submission
from pipeline.policies import PolicySpec
from pipeline.policies.composition import compose
from pipeline.samples import WRITING_ROLES, ModelRole

if TYPE_CHECKING:
    from pipeline.chat.model import ChatModel


class KnownPairs:
    """The pairs of submissions that are checked together: the files of each are looked at once."""

    def __init__(self) -> None:
        self._pairs: dict[object, ModelPair] = {}

    def find(self, submission: Submission, spec: PolicySpec) -> ModelPair:
        """Raises ConfigurationError for a path that is no folder."""
        roles = compose(spec.build(), exit=submission.exit).roles
        models = {role: model for role in sorted(roles) if (model := submission.model(role)) is not None}
        asking = {role: submission.asking(role) for role in models}
        revisions = {role: submission.revision(role) for role in models}
        key = tuple((role, models[role], asking[role].model_dump_json(), revisions[role]) for role in models)
        if key not in self._pairs:
            self._pairs[key] = ModelPair.load(models, asking, revisions)
        return self._pairs[key]


@dataclass(frozen=True, kw_only=True)
class ModelPair:
    """The models that the policy calls for, with the tokenizer and template of each that is a local folder."""

    models: Mapping[ModelRole, ModelChoice]
    chats: Mapping[ModelRole, ChatModel | None]
    """As the job asks them."""
    asking: Mapping[ModelRole, Asking]
    revisions: Mapping[ModelRole, str | None]

    @classmethod
    def load(
        cls,
        models: Mapping[ModelRole, ModelChoice],
        asking: Mapping[ModelRole, Asking],
        revisions: Mapping[ModelRole, str | None],
    ) -> ModelPair:
        chats = {role: load_chat_model(model, may_lack_template=_may_lack(role)) for role, model in models.items()}
        asked = {role: None if chat is None else chat.asked(asking[role]) for role, chat in chats.items()}
        return cls(models=models, chats=asked, asking=asking, revisions=revisions)

    @property
    def is_new(self) -> bool:
        """Whether one of them is named here, and not taken as another job has it."""
        return any(not isinstance(model, ModelSpec) for model in self.models.values())

    @cached_property
    def specs(self) -> Mapping[ModelRole, ModelSpec]:
        return {role: model_spec(model, self.chats[role], self.revisions[role]) for role, model in self.models.items()}

    def known_chats(self) -> list[ChatModel]:
        """Of those that write."""
        return [chat for role, chat in self.chats.items() if role in WRITING_ROLES and chat is not None]

    @cached_property
    def found_chats(self) -> Mapping[ModelRole, ChatModel | None]:
        """As ``chats``, with what an earlier job left of the others' files in this machine's cache."""
        return {role: self._find_chat(role) for role in self.models}

    def think_phase(self, opener: ModelRole) -> ThinkPhase | None:
        """How the job's texts mark the think phase; None where only workers can tell.

        Raises ConfigurationError for a pair that cannot write one text.
        """
        known = {role: chat for role, chat in self.found_chats.items() if role in WRITING_ROLES}
        first, *others = (known[role] for role in sorted(known, key=lambda role: role is not opener))
        if first is None or None in others:
            return None
        return settle_think_phase(first, *others)

    def reasons(self, role: ModelRole) -> bool | None:
        """Whether the model has a think phase in this job; None where only workers can tell."""
        chat = self.found_chats.get(role)
        return None if chat is None else bool(chat.think_end)

    def _find_chat(self, role: ModelRole) -> ChatModel | None:
        name, may_lack = _name(self.models[role]), _may_lack(role)
        cached = None if self.chats[role] else _find_cached(name, may_lack_template=may_lack)
        return cached.asked(self.asking[role]) if cached else self.chats[role]


def _may_lack(role: ModelRole) -> bool:
    """Whether a role's model may have no chat template."""
    return role is ModelRole.JUDGE


def _name(model: ModelChoice) -> str:
    return model.name if isinstance(model, ModelSpec) else str(model)


Signature: TypeAlias = tuple[tuple[str, int, int], ...]
"""What a folder's files are known again by: their names, sizes in bytes and times of change in nanoseconds."""


def _signature(folder: Path) -> Signature:
    found = []
    with suppress(OSError), os.scandir(folder) as entries:  # what cannot be read is told by whoever reads it
        for entry in entries:
            with suppress(OSError):
                found.append((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
    return tuple(sorted(found))


@lru_cache(maxsize=16)
def _load_folder(folder: Path, signature: Signature, may_lack_template: bool) -> ChatModel:
    """Read once for many jobs, for as long as the folder stays as it is."""
    from pipeline.chat.model import ChatModel

    return ChatModel.load(folder, may_lack_template=may_lack_template)


def _find_cached(hub_id: str, *, may_lack_template: bool) -> ChatModel | None:
    """A model of the hub's cache on this machine, without asking the hub; None where it is not there whole."""
    folder = find_cached_folder(hub_id)
    try:
        return None if folder is None else _load_folder(folder, _signature(folder), may_lack_template)
    except (OSError, ValueError, ConfigurationError):
        return None


@lru_cache(maxsize=16)
def _weights_of(folder: Path, signature: Signature) -> str | None:
    """Their hash, asked for once for many jobs, for as long as the folder stays as it is."""
    from pipeline.chat.weights import weights_sha256

    return weights_sha256(folder)


def load_chat_model(model: ModelChoice, *, may_lack_template: bool = False) -> ChatModel | None:
    """The tokenizer and chat template of a local folder; None for a name, which only workers need to know.

    may_lack_template: of a judge. Raises ConfigurationError for a path that is no folder.
    """
    if isinstance(model, ModelSpec):
        return None
    path = Path(model).expanduser()
    if path.is_dir():
        if may_lack_template:
            refuse_pooling(str(model), path)
        return _load_folder(path, _signature(path), may_lack_template)
    looks_like_path = isinstance(model, PathLike) or model.startswith(("/", ".", "~")) or model.count("/") > 1
    if looks_like_path:
        raise ConfigurationError(f"model {str(model)!r}: there is no such folder; give a model's folder or hub id")
    return None


def model_spec(model: ModelChoice, chat: ChatModel | None, revision: str | None = None) -> ModelSpec:
    """The model as the job names it, with its identity where its files are at hand."""
    if isinstance(model, ModelSpec):
        return model if revision is None else model.model_copy(update={"revision": revision})
    from pipeline.chat.files import find_folder, served_name

    folder = find_folder(model, revision)
    return ModelSpec(
        name=served_name(model),
        revision=revision,
        fingerprint=chat.fingerprint if chat else None,
        weights=_weights_of(folder, _signature(folder)) if folder else None,
    )
