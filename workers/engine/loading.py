"""Chooses an engine by its kind (``SPECTHINK_ENGINE__KIND``)."""

from __future__ import annotations

from typing import assert_never

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import EngineKind, EngineSettings
from workers.engine.base import Engine


def load_engine(chat: ChatModel, *, revision: str | None, role: ModelRole, settings: EngineSettings) -> Engine:
    """The engine of a small or large worker, for the model that chat belongs to.

    Raises ConfigurationError where the model cannot be loaded.
    """
    match settings.kind:
        case EngineKind.VLLM:
            from workers.engine.vllm.starting import load_vllm  # only where it is wanted: it may not be installed

            return load_vllm(chat, revision=revision, role=role, settings=settings)
        case EngineKind.SERVER:
            if settings.vllm.accelerate is not None:
                raise ConfigurationError(
                    f"accelerate {settings.vllm.accelerate} is of engines here: whoever runs the server tells it"
                )
            try:
                from workers.engine.server.starting import load_server
            except ModuleNotFoundError as error:
                raise ConfigurationError(f"{error.name} is not installed: install specthink[server]") from error

            return load_server(chat, revision=revision, role=role, settings=settings)
        case _:
            assert_never(settings.kind)
