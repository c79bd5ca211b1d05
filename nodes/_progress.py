"""How far a node is and how long it will still take, in words."""

from __future__ import annotations

import time
from collections.abc import Callable

LOG_EVERY = 10.0  # seconds


class TimeLeft:
    """Time that the rest of `total` units takes at the pace so far."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._started = self._logged = clock()

    def text(self, unit: str, done: int) -> str:
        """`step 3 of 30, 1 min 05 s left`; without the time where it is unknown or over."""
        text = f"{unit} {done} of {self._total}"
        if not 0 < done < self._total:
            return text
        seconds = (self._clock() - self._started) / done * (self._total - done)
        return f"{text}, {duration(seconds)} left"

    def is_log_due(self) -> bool:
        """Whether the last line in the log is long enough ago; counts as a line if so."""
        now = self._clock()
        if now - self._logged < LOG_EVERY:
            return False
        self._logged = now
        return True


def duration(seconds: float) -> str:
    """`7 s`, `1 min 05 s` or `2 h 03 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
