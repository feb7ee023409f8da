"""This module measures how far a publication is: a byte counts once, however often it is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

REPORT_BYTES = 1024 * 1024
"""What comes between two reports at least."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a publication is, in bytes of the source."""

    bytes_done: int
    bytes_total: int


class Meter:
    """Adds up what is done of a source, and reports it."""

    def __init__(self, report: Callable[[Progress], None] | None) -> None:
        self._report = report
        self._total = self._done = self._reported = 0
        self._start = self._share = self._length = self._seen = 0

    def begin(self, total: int) -> None:
        """Start, with *total* bytes to do."""
        self._total = total
        if self._report:
            self._report(Progress(0, total))

    def add(self, length: int) -> None:
        """Count *length* bytes as done."""
        self._done += length
        self._tell()

    @contextmanager
    def step(self, share: int, length: int) -> Iterator[None]:
        """Do *share* bytes of the total by what happens within, which reads up to *length* bytes."""
        self._start, self._share, self._length, self._seen = self._done, share, max(length, 1), 0
        yield
        self._done = self._start
        self.add(share)

    def over(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass on the blocks of a file that is read in this step."""
        for block in blocks:
            yield block
            self._seen = min(self._seen + len(block), self._length)
            self._done = self._start + self._share * self._seen // self._length
            self._tell()

    def _tell(self) -> None:
        moved = self._done - self._reported
        if self._report and moved and (moved >= REPORT_BYTES or self._done == self._total):
            self._reported = self._done
            self._report(Progress(self._done, self._total))
