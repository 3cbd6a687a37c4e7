from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.reports.rate import Rate, duration, per_second_words


def seen(*points: tuple[float, int]) -> Rate:
    rate = Rate(window_s=30)
    for now, done in points:
        rate.see(now, done)
    return rate


def test_a_steady_task_has_its_rate_and_time_left() -> None:
    rate = seen((0, 0), (10, 50), (20, 100))
    assert rate.per_second(20) == 5
    assert rate.seconds_left(20, 200) == 20


def test_what_an_earlier_start_did_is_not_counted() -> None:
    rate = seen((0, 900), (10, 920))
    assert rate.per_second(10) == 2
    assert rate.overall(10) == 2
    assert rate.seconds_left(10, 1000) == 40


def test_only_the_last_seconds_count_for_the_rate_of_late() -> None:
    points = [(float(second), 10 * second) for second in range(60)]
    slow = [(60.0 + second, 600 + second) for second in range(60)]
    rate = seen(*points, *slow)
    assert rate.per_second(119) == pytest.approx(1)
    assert rate.overall(119) == pytest.approx(659 / 119)


def test_a_task_slower_than_the_window_still_has_a_rate() -> None:
    assert seen((0, 0), (100, 1), (200, 2)).per_second(200) == pytest.approx(0.01)


def test_a_task_that_stalls_slows_down_as_time_passes() -> None:
    rate = seen((0, 0), (10, 100))
    assert rate.per_second(10) == 10
    assert rate.per_second(40) == 2.5


def test_nothing_is_said_before_anything_is_known() -> None:
    assert Rate().per_second(1) is None
    assert Rate().overall(1) is None
    assert seen((0, 5)).per_second(1) is None
    assert seen((0, 5), (1, 6)).seconds_left(1, None) is None


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 1000)), min_size=1), st.integers(0, 2000))
def test_no_rate_and_no_time_left_is_ever_negative(points: list[tuple[float, int]], total: int) -> None:
    times, counts = sorted(time for time, _ in points), sorted(count for _, count in points)
    rate = seen(*zip(times, counts, strict=True))
    assert (rate.per_second(times[-1]) or 0) >= 0
    assert (rate.seconds_left(times[-1], total) or 0) >= 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(0.0123, "0.0123 x/s"), (12.34, "12.3 x/s"), (1234.5, "1,234 x/s")]
)
def test_a_rate_has_three_digits_or_all_before_the_point(rate: float, words: str) -> None:
    assert per_second_words(rate, "x") == words
