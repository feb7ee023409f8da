"""This module makes pyfuse3's loop take requests that are waiting without a turn through trio for each.

pyfuse3 finds what it needs of trio in a variable, so that its asyncio variant can put something else there.
We put a cheaper lock and a cheaper wait for requests there. Measured with 20,000 files of 8 KiB, tar through
a pipe (63,000 requests): 3.1 s as it comes, 1.8 s with this, 1.25 s when it looks for 50 µs before sleeping.
"""

import os
import select
import time
from types import SimpleNamespace, TracebackType
from typing import Final

import pyfuse3
import trio

REQUESTS_PER_TURN: Final = 16
"""Requests after which all other tasks get their turn, however many more are waiting."""
_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Loop:
    """What pyfuse3 uses of trio; *disconnected* is set when the kernel has closed the connection."""

    def __init__(self, spin_us: int) -> None:
        """Look for the next request for *spin_us* after each before sleeping."""
        self.disconnected = trio.Event()
        self._spin_ns = spin_us * 1000
        self._poll = select.poll()
        self._fd = -1
        self._taken = 0

    def install(self) -> None:
        """Have pyfuse3 use it; the real trio is back after `remove`."""
        lowlevel = SimpleNamespace(
            wait_readable=self.wait_readable,
            notify_closing=trio.lowlevel.notify_closing,
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
        )
        vars(pyfuse3)["trio"] = SimpleNamespace(
            Lock=_Turnstile,
            lowlevel=lowlevel,
            open_nursery=trio.open_nursery,
            ClosedResourceError=trio.ClosedResourceError,
        )

    def remove(self) -> None:
        """Give pyfuse3 the real trio back."""
        vars(pyfuse3)["trio"] = trio

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read from *fd*, or the connection has ended."""
        if fd != self._fd:
            self._poll.register(fd, select.POLLIN)
            self._fd = fd
        self._taken += 1
        if self._taken % REQUESTS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()
        if not self._look():
            await trio.lowlevel.wait_readable(fd)
            self._look()

    def _look(self) -> bool:
        """Tell whether there is a request, after looking for as long as it may take."""
        ready = self._poll.poll(0)
        if not ready and self._spin_ns:
            end = time.perf_counter_ns() + self._spin_ns
            while not ready and time.perf_counter_ns() < end:
                os.sched_yield()
                ready = self._poll.poll(0)
        if ready and ready[0][1] & _GONE:
            self.disconnected.set()
        return bool(ready)


class _Turnstile:
    """A lock that costs no checkpoint when it is free: one task waits for requests, the others for it."""

    def __init__(self) -> None:
        self._held = False
        self._lot = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._lot.park()
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._lot:
            self._lot.unpark()
