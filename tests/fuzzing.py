"""How long tests with drawn input run: a little in CI, ``make fuzz`` for as long as one likes."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""So many times the examples of CI."""


def examples(number: int) -> settings:
    """Hypothesis' settings for so many examples, or so many times as many."""
    return settings(
        max_examples=number * TIMES,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
