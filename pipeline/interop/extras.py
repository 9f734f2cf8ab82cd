"""Imports modules that need a package which is an extra of this one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pipeline.errors import ConfigurationError

_PACKAGES = {"inspect": ("inspect_ai",), "hub": ("datasets", "huggingface_hub")}


def extra_of(extra: str, module: str) -> Any:
    """The module. Raises ConfigurationError, naming the extra, where a package of that is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _PACKAGES[extra]:
            raise
        raise ConfigurationError(
            f"{missing} is not installed: it comes with the extra {extra!r}, as in pip install 'specthink[{extra}]'"
        ) from error
