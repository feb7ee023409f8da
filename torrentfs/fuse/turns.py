"""This module lets FUSE threads and trio's tasks take turns: what they share is never touched by two at once.

The tree, the store and all that hangs on them were written for one thread. A thread that reads requests of
the kernel holds the turn while it attempts an answer, and trio holds it during each step of a task. Whoever
waits for the turn is the next to get it: a bare lock would go to the busy thread again and again. Only until
a waiter wakes, some 50 to 300 µs, may a busy thread go on. Taking a free turn and giving it back costs
0.25 µs.
"""

import threading
from types import TracebackType

import trio


class Turns(trio.abc.Instrument):
    """The turn of one process; give it to `trio.run` as an instrument, and to each FUSE thread."""

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._turn = threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._turn.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn.release()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Wait for the turn: a task's step is about to run."""
        with self._next:
            self._turn.acquire()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Give the turn away: the step is over."""
        self._turn.release()
