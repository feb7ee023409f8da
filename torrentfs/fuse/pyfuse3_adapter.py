"""This module serves a filesystem through pyfuse3. It translates, and decides nothing.

What can be answered at once is, without a checkpoint: pyfuse3 itself costs some 25 µs a request.
"""

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, readdir_reply

from torrentfs.config import MountSettings
from torrentfs.errors import MountError
from torrentfs.fuse import kernel
from torrentfs.fuse.filesystem import BLOCK_SIZE, FIXED_TIMEOUT_S, UPPER_TIMEOUT_S, Filesystem
from torrentfs.fuse.mounting import plain
from torrentfs.fuse.pyfuse3_loop import Loop
from torrentfs.repository.metainfo import NotCached
from torrentfs.tree import Attributes, Changes, Inode

FORGET_DEADLINE_S: Final = 5.0
_OPTIONS: Final = frozenset({"ro", "nosuid", "nodev", "default_permissions", "subtype=torrentfs"})

T = TypeVar("T")
log = logging.getLogger(__name__)


class Session:
    """A mount: pyfuse3 has one per process."""

    def __init__(self, filesystem: Filesystem, mountpoint: Path, settings: MountSettings) -> None:
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._settings = settings
        self._device = ""
        self._connection = 0
        self._one_at_a_time = trio.CapacityLimiter(1)

    @property
    def device(self) -> str:
        """The mount's major:minor; empty if it was not found."""
        return self._device

    @property
    def front(self) -> str:
        """What the mount is served by, in words."""
        return f"pyfuse3 {pyfuse3.__version__}"

    async def forget(self, changes: Changes) -> None:
        """Make the kernel forget what changed; never called by a handler, for which it might have to wait."""
        with trio.move_on_after(FORGET_DEADLINE_S) as scope:
            await trio.to_thread.run_sync(
                _forget, changes, limiter=self._one_at_a_time, abandon_on_cancel=True
            )
        if scope.cancelled_caught:
            log.warning("the kernel takes long to forget what a new catalog changed; it stays a while")

    async def serve(self, *, task_status: trio.TaskStatus["Session"] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount and serve until it is unmounted, or cancelled: then unmount; started when it answers.

        Raises:
            MountError: it cannot be mounted.
        """
        loop = Loop(self._settings.spin_us)
        operations = _Operations(self._filesystem)
        loop.install()
        logging.getLogger("pyfuse3").addFilter(_is_worth_a_line)
        try:
            self._mount(operations)
            try:
                await self._serve(loop, operations, task_status)
            finally:
                await self._close()
        finally:
            loop.remove()

    def _mount(self, operations: "_Operations") -> None:
        options = {*_OPTIONS, f"fsname={self._settings.source or plain(self._filesystem.tree.catalog.name)}"}
        if _is_root():
            options.add("allow_other")
            # Without the control files, 12 readers that wait hold up others: worth a line, not worth failing.
            try:
                kernel.open_control()
            except (OSError, subprocess.SubprocessError) as error:
                log.info("%s: %s", kernel.CONNECTIONS, error)
        try:
            pyfuse3.init(operations, str(self._mountpoint), options)
        except RuntimeError as error:
            raise MountError(f"{self._mountpoint} cannot be mounted: {error}") from error

    async def _serve(
        self, loop: Loop, operations: "_Operations", task_status: trio.TaskStatus["Session"]
    ) -> None:
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                await operations.initialised.wait()
                self._tune()
                task_status.started(self)

            async def end() -> None:
                # Requests that still wait have nobody to answer to.
                await loop.disconnected.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(start)
            nursery.start_soon(end)
            await pyfuse3.main(max_tasks=self._settings.requests_max)
            nursery.cancel_scope.cancel()

    def _tune(self) -> None:
        settings = self._settings
        try:
            self._device = kernel.device_of(self._mountpoint)
            self._connection = kernel.connection_of(self._device)
            kernel.tune(
                self._device,
                background_max=settings.background_max,
                read_ahead_kib=settings.read_ahead_kib,
            )
        except (OSError, MountError) as error:
            log.info("%s: background_max and read_ahead_kib stay the kernel's: %s", self._mountpoint, error)

    async def _close(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FORGET_DEADLINE_S):
            # A thread that still notifies would use the session after its end.
            async with self._one_at_a_time:
                pass
        # libfuse takes away whatever is mounted there: by now perhaps another filesystem than ours.
        pyfuse3.close(unmount=not self._device or self._is_in_place())
        # An aborted connection leaves a dead mount, which libfuse takes for one that is gone.
        with suppress(MountError, OSError, subprocess.SubprocessError):
            if self._device and self._is_in_place():
                kernel.detach(self._mountpoint)

    def _is_in_place(self) -> bool:
        """Tell whether what is mounted on top at our mountpoint is ours."""
        try:
            device = kernel.device_of(self._mountpoint)
            return device == self._device and kernel.is_still(device, self._connection)
        except MountError:
            return False


async def serve(
    filesystem: Filesystem,
    mountpoint: Path,
    settings: MountSettings,
    *,
    task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount and serve until it is unmounted, or cancelled: then unmount. Gives the session when it answers.

    Raises:
        MountError: it cannot be mounted.
    """
    await Session(filesystem, mountpoint, settings).serve(task_status=task_status)


class _Operations(pyfuse3.Operations):
    """The requests. A file handle is the inode: there is no state of open files."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__()
        self.initialised = trio.Event()
        self._filesystem = filesystem
        self._uid, self._gid = filesystem.tree.owner
        self._absent_for_good = _absent(FIXED_TIMEOUT_S)
        self._absent = _absent(UPPER_TIMEOUT_S)

    def init(self) -> None:
        self.initialised.set()

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> EntryAttributes:
        inode = Inode(parent)
        return await self._answer("lookup", inode, self._lookup, inode, name)

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        wanted = Inode(inode)
        return await self._answer("stat", wanted, self._getattr, wanted)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        wanted = Inode(inode)
        return await self._answer("readlink", wanted, self._filesystem.readlink, wanted)

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, offset: int, length: int) -> bytes | memoryview:  # type: ignore[override]
        filesystem, inode = self._filesystem, Inode(fh)
        try:
            try:
                return filesystem.read(inode, offset, length)
            except NotCached as missing:
                return await filesystem.read_later(missing, inode, offset, length)
        except Exception as error:
            raise self._fault(error, inode, "read") from None

    async def release(self, fh: int) -> None:
        pass

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: Any) -> None:
        inode, position = Inode(fh), start

        def reply() -> None:
            nonlocal position
            try:
                for position, name, found in self._filesystem.readdir(inode, start):
                    if not readdir_reply(token, name, self._entry(found), position):
                        return
            except NotCached:
                # What is in the reply already is an answer: the kernel comes again for the rest.
                if position == start:
                    raise

        await self._answer("list", inode, reply)

    async def releasedir(self, fh: int) -> None:
        pass

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        wanted = Inode(inode)
        return await self._answer("getxattr", wanted, self._filesystem.xattr, wanted, name)

    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        wanted = Inode(inode)
        return await self._answer("listxattr", wanted, self._filesystem.xattr_names, wanted)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        totals = self._filesystem.tree.totals
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = -(-totals.size // BLOCK_SIZE)
        data.f_files = totals.entries
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    async def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        pass

    # What the kernel cannot be told (a size above 2**63) must raise inside `_answer` too.

    def _lookup(self, parent: Inode, name: bytes) -> EntryAttributes:
        found = self._filesystem.lookup(parent, name)
        if found is not None:
            return self._entry(found)
        return self._absent_for_good if self._filesystem.is_fixed(parent) else self._absent

    def _getattr(self, inode: Inode) -> EntryAttributes:
        return self._entry(self._filesystem.attributes(inode))

    async def _answer(self, doing: str, inode: Inode, attempt: Callable[..., T], *values: object) -> T:
        """Return what *attempt* does, at once if it can. Only FUSEErrors come out: others would unmount."""
        try:
            try:
                return attempt(*values)
            except NotCached as missing:
                return await self._filesystem.later(missing, inode, attempt, *values)
        except Exception as error:
            raise self._fault(error, inode, doing) from None

    def _fault(self, error: Exception, inode: Inode, doing: str) -> FUSEError:
        try:
            return FUSEError(self._filesystem.fault(error, inode, doing))
        except Exception:  # a fault in reporting one must not unmount either
            log.exception("%s of inode %d failed, and so did saying so", doing, inode)
            return FUSEError(errno.EIO)

    def _entry(self, found: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = found.inode
        entry.st_mode = found.mode
        entry.st_nlink = found.nlink
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_size = found.size
        entry.st_blocks = found.blocks
        entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = found.mtime_ns
        entry.attr_timeout = FIXED_TIMEOUT_S if found.fixed else UPPER_TIMEOUT_S
        entry.entry_timeout = FIXED_TIMEOUT_S if found.fixed_name else UPPER_TIMEOUT_S
        return entry


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Tell whether a line of pyfuse3's matters: not that a reader was killed before its answer came.

    The kernel says ENOENT to an answer that nobody waits for any more (fuse(4)).
    """
    return not (
        str(record.msg).endswith("fuse_reply_* failed with %s")
        and record.args == (os.strerror(errno.ENOENT),)
    )


def _absent(timeout_s: float) -> EntryAttributes:
    """Say that a name is not there, and for how long the kernel need not ask again: inode 0 (fuse(4))."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = timeout_s
    return entry


def _forget(changes: Changes) -> None:
    calls = [partial(pyfuse3.invalidate_entry, parent, name) for parent, name in changes.entries]
    calls += [partial(pyfuse3.invalidate_inode, inode) for inode in changes.inodes]
    refused: list[OSError] = []
    for call in calls:
        try:
            call()
        except FileNotFoundError:  # the kernel does not know that name or inode
            continue
        except OSError as error:
            # One that it refuses, or all as the mount is ending: what is stale goes after UPPER_TIMEOUT_S.
            refused.append(error)
    if refused:
        log.info("the kernel did not forget %d of %d changes: %s", len(refused), len(calls), refused[0])


def _is_root() -> bool:
    return os.geteuid() == 0
