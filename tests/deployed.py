"""What files of deploy/ may say: settings, and how long a worker may take to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.settings import LeaseSettings, Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
LEAST_STOP_S = LeaseSettings().drain_s + 10
"""From TERM to KILL: a worker drains, then hands back what is left."""


def require_setting(variable: str) -> None:
    """Raises where it is no variable of the settings."""
    part: Any = Settings
    for name in variable.removeprefix("SPECTHINK_").lower().split("__"):
        assert name in part.model_fields, variable
        part = part.model_fields[name].annotation
