"""This module counts what jobs read and how long they waited for it. It has no clock of its own."""

from collections import deque
from typing import Final

import msgspec

SAMPLES_MAX: Final = 2048
"""Waits that percentiles are taken over: the last ones."""


class ReadStats(msgspec.Struct, frozen=True):
    """What jobs asked of a mount; *wait_p50_s* and *wait_p99_s* over the last waits, if any."""

    bytes_read: int
    waiting: int
    waits: int
    wait_p50_s: float | None
    wait_p99_s: float | None
    errors: int


class Waits:
    """The counters of a mount."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.errors = 0
        self.waiting = 0
        self._ended = 0
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)

    def end(self, wait_s: float) -> None:
        """Count a wait that is over, answered or not."""
        self._ended += 1
        self._samples.append(wait_s)

    def stats(self) -> ReadStats:
        """Sum up."""
        samples = sorted(self._samples)
        return ReadStats(
            bytes_read=self.bytes_read,
            waiting=self.waiting,
            waits=self._ended,
            wait_p50_s=_percentile(samples, 50),
            wait_p99_s=_percentile(samples, 99),
            errors=self.errors,
        )


def _percentile(samples: list[float], percent: int) -> float | None:
    """Return the nearest-rank percentile of sorted samples."""
    return samples[max(-(-len(samples) * percent // 100) - 1, 0)] if samples else None
