"""This module holds the nursery of a node's background work, so that what is not async can start some."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import trio

_LOG = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")


class Tasks:
    """Background work, all of which ends with `run`."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    def start(self, work: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        """Start work soon."""
        if self._nursery is None:
            raise RuntimeError("the node is not running")
        self._nursery.start_soon(self._do, work, *arguments)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is started until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def _do(self, work: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        try:
            await work(*arguments)
        except Exception:  # our bug ends this work, and who waits for it has a deadline; the node lives on
            _LOG.exception("background work of the node failed")
