from __future__ import annotations

import pytest

from pipeline.embedded.launcher import restart_delay_s


@pytest.mark.parametrize(
    ("starts", "delay_s"),
    [
        ([], 0.0),
        ([99.0], 0.0),
        ([98.0, 99.0], 0.5),
        ([97.0, 98.0, 99.0], 1.0),
        ([96.0, 97.0, 98.0, 99.0], 2.0),
        ([95.0, 96.0, 97.0, 98.0, 99.0], None),
    ],
)
def test_restarts_wait_longer_each_time_and_end(starts: list[float], delay_s: float | None) -> None:
    assert restart_delay_s(starts, 100.0, max_starts=5, window_s=60) == delay_s


def test_starts_before_the_window_do_not_count() -> None:
    assert restart_delay_s([1.0, 2.0, 3.0, 99.0], 100.0, max_starts=2, window_s=60) == 0.0


def test_starts_in_the_future_do_not_count_after_the_clock_was_set_back() -> None:
    assert restart_delay_s([500.0, 501.0], 100.0, max_starts=2, window_s=60) == 0.0


def test_the_delay_is_bounded() -> None:
    assert restart_delay_s([99.0] * 20, 100.0, max_starts=30, window_s=60) == 10.0
