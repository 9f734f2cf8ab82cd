"""Model folders for plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.devices.models import QWEN_1_5B, QWEN_7B, QWEN_32B, write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders named 1.5b, 7b and 32b."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in {"1.5b": QWEN_1_5B, "7b": QWEN_7B, "32b": QWEN_32B}.items():
        write_model(folder / name, config)
    return folder
