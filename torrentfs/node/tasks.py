"""This module holds the nursery of a node's background work, so that what is not async can start some."""

import logging
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import trio

_LOG = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")


class Tasks:
    """Background work, all of which ends with `run`."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = 0

    def start(self, work: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        """Start work soon."""
        if self._nursery is None:
            raise RuntimeError("the node is not running")
        self._nursery.start_soon(self._do, work, *arguments)

    def soon(self, call: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Call at once in trio's thread, and from any other soon: a FUSE thread must not touch trio."""
        if self._token is None or threading.get_ident() == self._thread:
            call(*arguments)
        else:
            self._token.run_sync_soon(self._call, call, *arguments)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is started until cancelled."""
        self._token, self._thread = trio.lowlevel.current_trio_token(), threading.get_ident()
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def _call(self, call: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        if self._nursery is None:
            return  # the node has ended meanwhile
        try:
            call(*arguments)
        except Exception:  # our bug: what was to be prepared is fetched when it is read
            _LOG.exception("work for the node failed")

    async def _do(self, work: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        try:
            await work(*arguments)
        except Exception:  # our bug ends this work, and who waits for it has a deadline; the node lives on
            _LOG.exception("background work of the node failed")
