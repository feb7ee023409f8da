"""This module lets tasks wait, within a deadline, for an answer that comes as an event."""

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from torrentfs.errors import DeadlineError

T = TypeVar("T")


class Answers(Generic[T]):
    """Those who wait for the next answer of a kind; one answer serves all of them that it suits."""

    def __init__(self) -> None:
        self._waiters: dict[trio.Event, tuple[Callable[[T], bool], list[T]]] = {}

    async def get(self, timeout_s: float, suits: Callable[[T], bool] = lambda _: True) -> T:
        """Return the next answer that suits. Raises: DeadlineError."""
        event, box = trio.Event(), list[T]()
        self._waiters[event] = (suits, box)
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
        for event, (suits, box) in self._waiters.items():
            if not box and suits(answer):
                box.append(answer)
                event.set()
