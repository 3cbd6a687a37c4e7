"""How fast a task is and how long it has still to go, from what was done lately."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
"""Seconds looked back: long enough to be calm, short enough to follow a change."""


class Rate:
    """Counts by second over a sliding window.

    The first count is where this start of the work began: what an earlier start did is in it, and no
    rate counts it.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None

    def see(self, now: float, done: int) -> None:
        """Take note that `done` are done at `now`, in seconds of a clock that never goes back."""
        if self._first is None:
            self._first = (now, done)
        self._seen.append((now, done))
        # The newest point older than the window stays, or a slow task would have no past to measure from.
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._window_s:
            self._seen.popleft()

    def per_second(self, now: float) -> float | None:
        """Return the rate of late; None before anything was seen to be done."""
        if not self._seen:
            return None
        (then, before), (_, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - then) if done > before and now > then else None

    def overall(self, now: float) -> float | None:
        """Return the rate since this start began; None before anything was seen to be done."""
        if self._first is None:
            return None
        then, before = self._first
        done = self._seen[-1][1]
        return (done - before) / (now - then) if done > before and now > then else None

    def seconds_left(self, now: float, total: int | None) -> float | None:
        """Return how long the rest takes at the rate of late; None where that cannot be said."""
        rate = self.per_second(now)
        if rate is None or total is None:
            return None
        return max(0, total - self._seen[-1][1]) / rate


def duration(seconds: float) -> str:
    """Return seconds in words: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def per_second_words(rate: float, unit: str) -> str:
    """Return a rate with three digits and its unit: 12.3 images/s."""
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"
