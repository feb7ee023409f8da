"""This module lets tasks wait, within a deadline, for an answer that comes as an event."""

from typing import Generic, TypeVar

import trio

from torrentfs.errors import DeadlineError

T = TypeVar("T")


class Answers(Generic[T]):
    """Those who wait for the next answer of a kind; one answer serves all of them."""

    def __init__(self) -> None:
        self._waiters: dict[trio.Event, list[T]] = {}

    async def get(self, timeout_s: float) -> T:
        """Return the next answer. Raises: DeadlineError."""
        event, box = trio.Event(), list[T]()
        self._waiters[event] = box
        try:
            with trio.move_on_after(timeout_s):
                await event.wait()
        finally:
            del self._waiters[event]
        if not box:
            raise DeadlineError(f"the BitTorrent session did not answer in {timeout_s:g} s")
        return box[0]

    def give(self, answer: T) -> None:
        """Hand *answer* to those who wait."""
        for event, box in self._waiters.items():
            if not box:
                box.append(answer)
                event.set()
