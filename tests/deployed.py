"""What files of deploy/ may say: settings, and how long a worker may take to stop."""

from __future__ import annotations

from pathlib import Path

from pipeline.settings import LeaseSettings, settings_variables

DEPLOY = Path(__file__).parents[1] / "deploy"
LEAST_STOP_S = LeaseSettings().drain_s + 10
"""From TERM to KILL: a worker drains, then hands back what is left."""


def require_setting(variable: str) -> None:
    """Raises where it is no variable of the settings."""
    assert variable in settings_variables(), variable
