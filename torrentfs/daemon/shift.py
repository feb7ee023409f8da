"""This module is one shift of a server: node and mounts, from what is held until the server ends or pauses.

Whatever ends a shift, a death included, leaves all mounts as they are: the next one goes on with them, in
this process or in another.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from torrentfs.daemon import claims, control
from torrentfs.daemon.holdings import MOUNTS_MAX, Holdings
from torrentfs.daemon.kept import KeptMount
from torrentfs.daemon.lifetime import first_of
from torrentfs.daemon.request import NODE_CONTROL, decode_all
from torrentfs.daemon.serving import Place, Repositories, running_node, serve
from torrentfs.errors import MountError, TorrentfsError
from torrentfs.fuse.turns import Turns
from torrentfs.node import Node

log = logging.getLogger(__name__)

STUCK_MAX_S = 20.0
"""How long a thread may be at one request; after that, another server is better."""
RETRY_DELAY_S, RETRY_DELAY_MAX_S = 0.5, 30.0


class Shift:
    """A node and the mounts that are served with it; the first one says how the node is set."""

    def __init__(
        self,
        mounts: Sequence[KeptMount],
        holdings: Holdings,
        turns: Turns,
        server: Callable[[], Mapping[str, Any]],
        words: control.Answers,
    ) -> None:
        """Serve none of *mounts* yet. *server* tells of the processes, *words* may be asked of each mount."""
        self.mounts = list(mounts)
        self._holdings = holdings
        self._turns = turns
        self._server = server
        self._words = words
        self.cache = self.mounts[0].request.cache
        self._settings = self.mounts[0].request.configuration.node
        self._node: Node
        self._repositories: Repositories
        self._nursery: trio.Nursery

    @property
    def is_well(self) -> bool:
        """Whether every mount gets on."""
        sessions = [mount.session for mount in self.mounts if mount.session]
        return all(session.stuck_for_s < STUCK_MAX_S for session in sessions)

    async def work(
        self, *, patiently: bool, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the last mount is unmounted. Started once all answer, with what the admin should know.

        *patiently*: all were served before, and one that cannot be served now may be later.

        Raises: MountError, CacheError, TrustError, FetchError, in groups.
        """
        if NODE_CONTROL not in self._holdings:
            self._holdings.put(NODE_CONTROL, claims.take(self.cache, claims.is_used_already).detach())
        with claims.resume(self._holdings.dup(NODE_CONTROL)) as listener:
            async with (
                running_node(self._settings, self.cache) as (self._node, self._repositories),
                trio.open_nursery() as self._nursery,
            ):
                attempt = self._serve_patiently if patiently else self._serve
                notices = [str(await self._nursery.start(attempt, mount)) for mount in list(self.mounts)]
                words = {**self._words, "mount": self._asked_to_mount, "stats": _nothing}
                self._nursery.start_soon(control.serve, listener, words)
                task_status.started("; ".join(filter(None, notices)))

    def end(self) -> None:
        """End what mounts are left; the node has ended: who waits for the one waits for the other."""
        # First of all, or nobody would if we died now.
        if NODE_CONTROL in self._holdings:
            claims.release(self.cache)
            self._holdings.drop(NODE_CONTROL)
        for mount in self.mounts:
            mount.end()

    async def _serve(
        self, mount: KeptMount, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve a mount until it is unmounted; with the last one, the shift ends."""
        with await mount.listener() as listener:
            await mount.prepare()
            place = Place(mount.request, self._node, self._repositories, listener, self._server, self._words)
            await serve(place, mount.serve, mount.shown, mount.last_shown(), task_status=task_status)
        self._leave(mount)

    async def _serve_patiently(self, mount: KeptMount, *, task_status: trio.TaskStatus[str]) -> None:
        """Serve a mount as soon as that is possible. Started once it answers, or cannot yet."""
        once, delay_s = _Once(task_status), RETRY_DELAY_S
        while True:
            try:
                return await self._serve(mount, task_status=once)
            except* TorrentfsError as group:
                log.error("%s is not served: %s", mount.mountpoint, first_of(group))
            except* Exception as group:
                # Our fault, and no reason to end other mounts.
                log.error("%s is not served", mount.mountpoint, exc_info=first_of(group))
            once.started("")
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_DELAY_MAX_S)

    def _leave(self, mount: KeptMount) -> None:
        """Go on without *mount*, if there is another; `end` ends the last one."""
        if self.mounts == [mount]:
            self._nursery.cancel_scope.cancel()
        elif mount in self.mounts:
            self.mounts.remove(mount)
            mount.end()

    async def _asked_to_mount(self, given: object) -> str:
        """Serve one more mount; return, once it answers, what the admin should know.

        Raises: MountError, CacheError, TrustError, FetchError, UsageError: it cannot be served.
        """
        [request] = decode_all([given])
        if request.cache != self.cache:
            raise MountError(f"{request.mountpoint} is to use another cache than this server's, {self.cache}")
        if any(mount.mountpoint == request.mountpoint for mount in self.mounts):
            raise await trio.to_thread.run_sync(claims.is_mounted_already, request.mountpoint, os.getpid())
        if len(self.mounts) >= MOUNTS_MAX:
            raise MountError(f"{MOUNTS_MAX} mounts use this cache already: give another --cache")
        mount = KeptMount(self._holdings, self._turns, request)
        self.mounts.append(mount)
        try:
            with trio.fail_after(request.configuration.mount.start_deadline_s):
                notice = str(await self._nursery.start(self._serve, mount))
            mount.commit()
        except trio.TooSlowError:
            self._leave(mount)
            raise MountError(
                f"{mount.mountpoint} did not get ready in time; the log says how far it came"
            ) from None
        except BaseException as error:
            self._leave(mount)
            if isinstance(error, ExceptionGroup):
                raise first_of(error) from None
            raise
        if request.configuration.node == self._settings:
            return notice
        ignored = f"{self.cache} is in use with other settings of the node, which stay as they are"
        return "; ".join(filter(None, (notice, ignored)))


class _Once:
    """A task's status that may be told again that it has started."""

    def __init__(self, status: trio.TaskStatus[str]) -> None:
        self._status: trio.TaskStatus[str] | None = status

    def started(self, value: str | None = None) -> None:
        if self._status and value is not None:
            self._status.started(value)
        self._status = None


async def _nothing(_: object) -> None:
    """A cache's socket has nothing to tell of its own: each mount does."""
