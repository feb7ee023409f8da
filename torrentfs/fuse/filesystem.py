"""This module is the filesystem that any FUSE session serves: inodes, offsets and lengths, no open files.

Every operation is an attempt that answers at once or raises. A `TreeError` is an answer too. `NotCached` says
that bytes are needed first: `Filesystem.later` waits for them and attempts again. What a job sees of an error
is up to `Filesystem.fault`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

import trio

from torrentfs.config import MountSettings
from torrentfs.errors import (
    DeadlineError,
    FetchError,
    FormatError,
    NameTooLong,
    NoAttribute,
    NotSupported,
    TorrentfsError,
    TreeError,
)
from torrentfs.fuse.errnos import errno_of
from torrentfs.fuse.failures import Failures, LimitedLog
from torrentfs.fuse.waits import ReadStats, Waits
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.metainfo import NotCached, TorrentRef
from torrentfs.tree import Attributes, Changes, Inode, Slice, Tree

NAME_LENGTH_MAX: Final = 255
BLOCK_SIZE: Final = 4096
FIXED_TIMEOUT_S: Final = 86_400.0
"""How long the kernel keeps what cannot change: longer gains nothing."""
UPPER_TIMEOUT_S: Final = 60.0
"""How long the kernel keeps names above the packages, if it could not be made to forget them at a swap."""
ROUNDS_MAX: Final = 64
"""Times that one request may find something else missing; blocks of a directory and a long read take ten."""
GRACE_S: Final = 0.5
"""After its deadline a source may still say why it failed; then we do."""
SPARE_REQUESTS: Final = 64
"""Requests that never wait for bytes, so that `stat` is answered whatever else is not."""
_USER: Final = b"user."

T = TypeVar("T")
Widen: TypeAlias = Callable[[NotCached], Sequence[NotCached]]
log = logging.getLogger(__name__)


class Source(Protocol):
    """Verified frames of packs, and waiting for what is not here."""

    def frame(self, ref: TorrentRef, offset: int, stored: int) -> bytes:
        """Return a decoded frame.

        Raises:
            NotCached: it is not here yet.
        """

    def needing(self, wanted: Sequence[NotCached]) -> AbstractContextManager[None]:
        """Keep *wanted* from leaving, here already or not, until the end of the block."""

    async def ensure(self, missing: NotCached, deadline: float) -> None:
        """Wait until it is here, at most till *deadline* (trio's time).

        Raises:
            FetchError: why it did not come.
        """

    def locate(self, ref: TorrentRef, offset: int, stored: int) -> Path | None:
        """Return the file that holds a frame, if it is here and was checked; None if not."""


class Filesystem:
    """A tree with its bytes, as the kernel's side asks for them."""

    def __init__(self, tree: Tree, source: Source, settings: MountSettings) -> None:
        self.tree = tree
        self._source = source
        self._deadline_s = settings.read_deadline_s
        self._requests_max = settings.requests_max
        self._waiting_max = max(settings.requests_max - SPARE_REQUESTS, 1)
        self._waits = Waits()
        self._failures = Failures()
        self._limited = LimitedLog()
        # Hot: one attribute look-up less each.
        self.attributes = tree.attributes
        self.is_fixed = tree.is_fixed
        self.readlink = tree.readlink
        self._lookup = tree.lookup
        self.plan = tree.plan
        self.following = tree.following
        self._frame = source.frame

    def stats(self) -> ReadStats:
        """Return what jobs read and waited for."""
        return self._waits.stats()

    def limits(self) -> dict[str, tuple[int, int]]:
        """Return what is in use of that which is bounded, and its bound, by the name of the setting."""
        return {
            "mount.requests_max": (self._waits.waiting, self._requests_max),
            "mount.manifest_blocks_max": self.tree.manifest_blocks,
        }

    def swap(self, catalog: Catalog) -> Changes:
        """Show *catalog* from now on; return what each session must make the kernel forget.

        Raises:
            FormatError: it cannot be shown; the old one still is.
        """
        return self.tree.swap(catalog)

    def lookup(self, parent: Inode, name: bytes) -> Attributes | None:
        """Find a name in a directory; None if it is not there.

        Raises:
            NameTooLong, NotADirectory, StaleInode, NotCached.
        """
        if len(name) > NAME_LENGTH_MAX:
            raise NameTooLong(f"a name of {len(name)} bytes")
        return self._lookup(parent, name)

    def readdir(self, inode: Inode, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        """Iterate over a directory from position *start*: (position of the next, name, attributes).

        `NotCached` may come in the middle: what came before it stands.
        """
        return self.tree.readdir(inode, start)

    def xattr(self, inode: Inode, name: bytes) -> bytes:
        """Return the value of an extended attribute.

        Raises:
            NoAttribute, NotSupported: the namespace is not the user's; programs then stop asking.
        """
        if not name.startswith(_USER):
            raise NotSupported("only user attributes are published")
        for known, value in self.tree.xattrs(inode):
            if known == name:
                return value
        raise NoAttribute(f"inode {inode}")

    def xattr_names(self, inode: Inode) -> list[bytes]:
        """Return the names of all extended attributes."""
        return [name for name, _ in self.tree.xattrs(inode)]

    def read(self, inode: Inode, offset: int, length: int) -> bytes | memoryview:
        """Return *length* bytes at *offset* of a file, fewer only at its end.

        Raises:
            IsADirectory, StaleInode, NotCached.
        """
        parts = self.read_parts(inode, offset, length)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_parts(self, inode: Inode, offset: int, length: int) -> list[bytes | memoryview]:
        """Do as `read`, in parts that follow one another: to join them would copy a long read once more."""
        return self.parts(self.plan(inode, offset, length))

    def parts(self, slices: Sequence[Slice]) -> list[bytes | memoryview]:
        """Return the bytes of *slices*, which `plan` gave, each by itself.

        Raises:
            NotCached.
        """
        parts = [self._slice(wanted) for wanted in slices]
        self._waits.bytes_read += sum(map(len, parts))
        return parts

    def locate(self, wanted: Slice) -> Path | None:
        """Return the file of the cache that holds the frame of *wanted*; None if it is not here.

        Raises:
            FormatError, CacheError.
        """
        return self._source.locate(wanted.ref, wanted.offset, wanted.stored) if wanted.ref else None

    async def later(self, missing: NotCached, inode: Inode, attempt: Callable[..., T], *values: object) -> T:
        """Wait for what *attempt* on *inode* misses and attempt again, within one deadline for all of it.

        Raises:
            FetchError, FormatError: it cannot be had; and whatever *attempt* raises, save NotCached.
        """
        return await self._wait(missing, inode, partial(attempt, *values), _only)

    async def read_later(
        self, missing: NotCached, inode: Inode, offset: int, length: int
    ) -> bytes | memoryview:
        """Do as `later` for `read`; all that it misses is fetched side by side."""
        attempt = partial(self.read, inode, offset, length)
        return await self._wait(missing, inode, attempt, partial(self._missing, inode, offset, length))

    def fault(self, error: Exception, inode: Inode, doing: str) -> int:
        """Return the errno of what *doing* something to *inode* ended with; log and count a failure."""
        if not isinstance(error, TreeError) and not self._failures.is_fresh(inode, error):
            self._waits.errors += 1
            self._report(error, inode, doing)
        return errno_of(error)

    async def _wait(self, missing: NotCached, inode: Inode, attempt: Callable[[], T], widen: Widen) -> T:
        started = trio.current_time()
        failed = self._failures.recall(inode, started)
        if failed is not None:
            raise failed.with_traceback(None)
        if self._waits.waiting >= self._waiting_max:
            raise FetchError(f"{self._waits.waiting} requests wait for bytes already: as many as may")
        self._waits.waiting += 1
        try:
            return await self._retry(missing, attempt, widen, started + self._deadline_s)
        finally:
            self._waits.waiting -= 1
            self._waits.end(trio.current_time() - started)

    async def _retry(self, missing: NotCached, attempt: Callable[[], T], widen: Widen, deadline: float) -> T:
        with ExitStack() as stack:
            for _ in range(ROUNDS_MAX):
                wanted = widen(missing)
                # To the end of all rounds: what one brought must not make room for what the next one brings.
                stack.enter_context(self._source.needing(wanted))
                await self._ensure(wanted, deadline)
                try:
                    return attempt()
                except NotCached as error:
                    missing = error
        raise FetchError(f"still missing after {ROUNDS_MAX} rounds: {missing}")

    async def _ensure(self, wanted: Sequence[NotCached], deadline: float) -> None:
        """Wait for all of *wanted*; the source keeps the deadline, and this if it does not."""
        with trio.move_on_at(deadline + GRACE_S) as scope:
            if len(wanted) == 1:
                await self._source.ensure(wanted[0], deadline)
            else:
                await self._ensure_all(wanted, deadline)
        if scope.cancelled_caught:
            raise DeadlineError(f"{wanted[0]}: no answer within {self._deadline_s:g} s")

    async def _ensure_all(self, wanted: Sequence[NotCached], deadline: float) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for missing in wanted:
                    nursery.start_soon(self._source.ensure, missing, deadline)
        except* Exception as group:
            # One reason is enough for a log line; the others are alike.
            raise _first(group) from None

    def _missing(self, inode: Inode, offset: int, length: int, first: NotCached) -> list[NotCached]:
        """Return all that a read misses, of which *first* is known."""
        found = []
        try:
            slices = self.plan(inode, offset, length)
        except NotCached as error:
            return [error]
        for wanted in slices:
            try:
                self._slice(wanted)
            except NotCached as error:
                found.append(error)
        return found or [first]

    def _slice(self, wanted: Slice) -> bytes | memoryview:
        ref = wanted.ref
        if ref is None:
            return bytes(wanted.length)
        end = wanted.skip + wanted.length
        frame = self._frame(ref, wanted.offset, wanted.stored)
        if len(frame) < end:
            raise FormatError(f"frame of {len(frame)} bytes, of which the manifest wants {end}")
        # A view, as a copy of a long read costs more than all else here.
        return memoryview(frame)[wanted.skip : end]

    def _report(self, error: Exception, inode: Inode, doing: str) -> None:
        now = trio.current_time()
        self._failures.remember(inode, error, now)
        path = self.tree.path(inode).decode(errors="backslashreplace")
        if isinstance(error, TorrentfsError):
            self._limited.warn(now, "%s of %s failed: %s", doing, path, error)
        else:
            log.error("%s of %s met a fault of ours", doing, path, exc_info=error)


def _only(missing: NotCached) -> tuple[NotCached]:
    return (missing,)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
