"""This module remembers a mount's failures for a moment, and says them in the log without flooding it."""

import logging
from collections import OrderedDict
from typing import Final

from torrentfs.tree import Inode

MEMORY_S: Final = 1.0
"""The kernel repeats a failed readahead as a single read: without this a deadline would last two."""
MEMORY_MAX: Final = 1024
LINES_MAX: Final = 20
LINES_WINDOW_S: Final = 10.0

log = logging.getLogger(__name__)


class Failures:
    """The fresh failures of a mount, by inode."""

    def __init__(self) -> None:
        self._fresh: OrderedDict[Inode, tuple[float, Exception]] = OrderedDict()

    def remember(self, inode: Inode, error: Exception, now: float) -> None:
        """Take note that waiting for *inode* ended in *error*."""
        self._fresh[inode] = (now, error)
        self._fresh.move_to_end(inode)
        if len(self._fresh) > MEMORY_MAX:
            self._fresh.popitem(last=False)

    def recall(self, inode: Inode, now: float) -> Exception | None:
        """Return the fresh failure of an inode, if there is one."""
        noted = self._fresh.get(inode)
        if noted is None:
            return None
        if now - noted[0] >= MEMORY_S:
            del self._fresh[inode]
            return None
        return noted[1]

    def is_fresh(self, inode: Inode, error: Exception) -> bool:
        """Tell whether *error* is the very one that was recalled: it was counted and logged before."""
        noted = self._fresh.get(inode)
        return noted is not None and noted[1] is error


class LimitedLog:
    """Log lines of which no more than `LINES_MAX` come in `LINES_WINDOW_S`: 200 readers may fail at once."""

    def __init__(self) -> None:
        self._start = float("-inf")
        self._lines = 0

    def warn(self, now: float, message: str, *values: object) -> None:
        """Log a warning, or count it if there were too many."""
        if now - self._start >= LINES_WINDOW_S:
            if self._lines > LINES_MAX:
                log.warning("%d more failures were not logged", self._lines - LINES_MAX)
            self._start, self._lines = now, 0
        self._lines += 1
        if self._lines <= LINES_MAX:
            log.warning(message, *values)
