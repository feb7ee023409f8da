"""This module is a mount that a keeper holds: made, taken up from a predecessor, served, ended."""

import logging
import os
import socket
from pathlib import Path
from typing import ParamSpec, TypeVar

import trio

from torrentfs.daemon import claims, presence
from torrentfs.daemon.holdings import CATALOG, CONTROL, FUSE, JOURNAL, Holdings
from torrentfs.daemon.lifetime import look
from torrentfs.daemon.mountpoint import clear_dead_mount, device_at, unmount
from torrentfs.daemon.request import CONFIG, Request, contents, decode, encode, in_memory
from torrentfs.daemon.runtime import key_of
from torrentfs.daemon.settings import check_mountpoint
from torrentfs.errors import FormatError, MountError
from torrentfs.fuse import mounting, native
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.journal import Journal
from torrentfs.fuse.reader import Channel
from torrentfs.fuse.turns import Turns
from torrentfs.repository import catalog
from torrentfs.repository.catalog import Catalog

log = logging.getLogger(__name__)


P = ParamSpec("P")
T = TypeVar("T")


class KeptMount:
    """One mount, served or not."""

    def __init__(self, holdings: Holdings, turns: Turns, request: Request) -> None:
        """Know it by what is held for it; nothing is done yet."""
        self.request = request
        self.session: native.Session | None = None
        self._holdings = holdings
        self._turns = turns
        self._key = key_of(request.mountpoint)
        known = presence.noted(request.mountpoint)
        self._device = known.device if known and self.is_mounted else ""

    @property
    def mountpoint(self) -> Path:
        return self.request.mountpoint

    @property
    def is_mounted(self) -> bool:
        """Whether it was made, here or by a predecessor."""
        return f"{self._key}.{FUSE}" in self._holdings

    @property
    def is_committed(self) -> bool:
        """Whether a successor is to serve it too."""
        return f"{self._key}.{CONFIG}" in self._holdings

    async def listener(self) -> socket.socket:
        """Return the socket for questions about it, the caller's to close.

        Raises: MountError: another daemon serves the mountpoint; ControlError.
        """
        name = f"{self._key}.{CONTROL}"
        if name not in self._holdings:
            made = await trio.to_thread.run_sync(claims.take, self.mountpoint)
            self._holdings.put(name, made.detach())
        return claims.resume(self._holdings.dup(name))

    async def prepare(self) -> None:
        """Clear the way for a mount that is not made yet.

        Raises: MountError: it cannot be made there.
        """
        if not self.is_mounted:
            await look(clear_dead_mount, self.mountpoint)
            await look(check_mountpoint, self.mountpoint)

    async def serve(self, filesystem: Filesystem, *, task_status: trio.TaskStatus[native.Session]) -> None:
        """Serve it until it is unmounted; made if need be. Started once it answers.

        Raises: MountError.
        """
        settings = self.request.configuration.mount
        device = self._device
        if not self.is_mounted:
            source = settings.source or mounting.plain(filesystem.tree.catalog.name)
            await self._make(source, settings.requests_max)
        descriptor = self._holdings.dup(f"{self._key}.{FUSE}")
        try:
            journal = Journal(self._holdings.dup(f"{self._key}.{JOURNAL}"))
            try:
                channel = Channel(descriptor, journal)
                self.session = native.Session(
                    filesystem, self.mountpoint, settings, channel, self._turns, device
                )
                await self.session.serve(task_status=task_status)
            finally:
                self.session = None
                journal.close()
        finally:
            os.close(descriptor)

    async def _make(self, source: str, slot_count: int) -> None:
        try:
            journal = Journal.create(slot_count)
        except OSError as error:
            raise MountError(f"no memory for requests: {error.strerror}") from None
        self._holdings.put(f"{self._key}.{JOURNAL}", os.dup(journal.descriptor))
        journal.close()
        descriptor = await trio.to_thread.run_sync(lambda: mounting.mount(self.mountpoint, source=source))
        self._holdings.put(f"{self._key}.{FUSE}", descriptor)
        self._device = device_at(self.mountpoint)

    # What a successor goes by

    def commit(self) -> None:
        """Make it one that any successor serves: what it was asked with is held last, and makes it a mount.

        Raises: MountError.
        """
        self._holdings.put(f"{self._key}.{CONFIG}", in_memory(CONFIG, encode(self.request)))

    def shown(self, catalog_: Catalog) -> None:
        """Take note of what the kernel was shown: a successor tells it what changed since."""
        self._holdings.put(f"{self._key}.{CATALOG}", in_memory(CATALOG, catalog.encode(catalog_)))

    def last_shown(self) -> Catalog | None:
        """Return what the kernel was shown last; None if it was not mounted yet."""
        name = f"{self._key}.{CATALOG}"
        if name not in self._holdings or not self.is_mounted:
            return None
        try:
            return catalog.decode(contents(self._holdings[name]))
        except FormatError as error:
            log.warning("%s: what was shown is asked for anew: %s", self.mountpoint, error)
            return None

    def note(self, keeper: int) -> None:
        """Note who keeps it."""
        if self.session:
            presence.note(self.mountpoint, self.session.device, keeper)

    def end(self) -> None:
        """Unmount it here, from under whoever uses it, and let go of all that is held for it."""
        # By now another mount may be on top, and have the number that ours had.
        known = presence.noted(self.mountpoint)
        is_there = device_at(self.mountpoint) == self._device and (known is None or known.is_there)
        if self._device and is_there:
            try:
                unmount(self.mountpoint, lazy=True)
            except MountError as error:
                log.warning("%s", error)
        # Another daemon may serve there, which is why this one never did.
        if f"{self._key}.{CONTROL}" in self._holdings:
            claims.release(self.mountpoint)
        self._holdings.drop_mount(self._key)


def held_mounts(holdings: Holdings, turns: Turns) -> list[KeptMount]:
    """Return the mounts that are held; what is held for one that was never complete is let go of.

    Raises: UsageError: one was asked for by another version of this program.
    """
    for key in holdings.unfinished:
        holdings.drop_mount(key)
    return [
        KeptMount(holdings, turns, decode(contents(holdings[f"{key}.{CONFIG}"]))) for key in holdings.mounts
    ]
