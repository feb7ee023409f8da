"""This module serves a filesystem by speaking the kernel's FUSE protocol itself: no libfuse, no open files.

A thread reads requests and answers at once what it can (`reader`); what needs bytes first waits here as a
task of trio. The session neither mounts nor unmounts: it serves a channel, which a successor may take over
with the requests that are in flight. Making the mount is in `mounting`.
"""

import errno
import logging
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from torrentfs.config import MountSettings
from torrentfs.errors import MountError
from torrentfs.fuse import kernel, protocol
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.journal import Journal, Negotiated
from torrentfs.fuse.operations import Operations, Parts
from torrentfs.fuse.protocol import InitFlag, Opcode
from torrentfs.fuse.pusher import Pusher
from torrentfs.fuse.reader import GONE, Channel, Reader, Replies, Request
from torrentfs.fuse.signals import is_asked_to_end, is_dying
from torrentfs.fuse.turns import Turns
from torrentfs.repository.metainfo import NotCached
from torrentfs.tree import Changes

FORGET_DEADLINE_S: Final = 5.0
PAGES_MAX: Final = 256
"""Pages of a read: 1 MiB, as many as a plain user may have (fs.fuse.max_pages_limit)."""
WRITE_MAX: Final = 4096
"""Nothing is written here, but the kernel wants it to be a page at least."""
WATCH_INTERVAL_S: Final = 0.25
WATCH_STEP: Final = 8
"""Waiting requests that are looked at without a pause: 0.3 ms."""
PATIENCE_S: Final = 1.0
"""How long a program with a handler for Ctrl-C waits on after it: a read that is just slow goes on."""

FLAGS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.HAS_RESEND
    | InitFlag.INIT_EXT
)
"""What we ask for, as far as the kernel offers it (linux/fuse.h, FUSE_INIT)."""
NEEDED: Final = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT

T = TypeVar("T")
log = logging.getLogger(__name__)

__all__ = ["Channel", "Journal", "Session", "serve"]


class Session:
    """One mount that is being served."""

    def __init__(
        self,
        filesystem: Filesystem,
        mountpoint: Path,
        settings: MountSettings,
        channel: Channel,
        turns: Turns,
        device: str,
    ) -> None:
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._settings = settings
        self._channel = channel
        self._replies = Replies(channel)
        self._device = device
        self._waiting: dict[int, tuple[Request, trio.CancelScope, float]] = {}
        self._somebody_waits = trio.Event()
        self._initialised = trio.Event()
        self._refused = ""
        self._has_ended = False
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._token = trio.lowlevel.current_trio_token()
        self._pusher = Pusher(
            filesystem,
            channel.descriptor,
            lambda process: self._token.run_sync_soon(self._start, self._collect, process),
        )
        self._operations = Operations(filesystem, self._pusher.was_read)
        self._reader = Reader(
            channel,
            self._operations,
            turns,
            spin_us=settings.spin_us,
            initialise=self._initialise,
            interrupted=lambda unique: self._token.run_sync_soon(self._interrupt, unique),
            wait=lambda request: self._token.run_sync_soon(self._start, self._later, request),
            pusher=self._pusher,
        )
        self._nursery: trio.Nursery

    @property
    def device(self) -> str:
        """The mount's major:minor; empty if it was not found."""
        return self._device

    @property
    def front(self) -> str:
        """What the mount is served by, in words: the protocol's version, and what the kernel can do."""
        agreed = self._channel.journal.negotiated
        if agreed is None:
            return "native"
        resend = ", resend" if self._resends(agreed) else ""
        return f"native {protocol.KERNEL_VERSION}.{agreed.minor}{resend}"

    @property
    def stuck_for_s(self) -> float:
        """Seconds that the thread has been at one request: the disk hangs, or a library does."""
        since_ns = self._reader.busy_since_ns
        return (time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0

    async def forget(self, changes: Changes) -> None:
        """Make the kernel forget what changed; from a thread, for a notification may wait for a lookup."""
        with trio.move_on_after(FORGET_DEADLINE_S) as scope:
            # A descriptor of its own: the thread may be left behind, and the number become another file's.
            await trio.to_thread.run_sync(
                _notify,
                os.dup(self._channel.descriptor),
                changes,
                limiter=self._one_at_a_time,
                abandon_on_cancel=True,
            )
        if scope.cancelled_caught:
            log.warning("the kernel takes long to forget what a new catalog changed; it stays a while")

    async def serve(self, *, task_status: trio.TaskStatus["Session"] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until it is unmounted; cancelled, leave all to a successor. Started once it answers.

        Raises:
            MountError: the kernel lacks what this needs.
        """
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watch)
            self._nursery.start_soon(self._read)
            if self._channel.journal.negotiated is None:
                await self._initialised.wait()
            if self._refused:
                raise MountError(f"{self._mountpoint}: {self._refused}")
            if not self._device:
                self._device = self._tuned()
            task_status.started(self)

    async def _read(self) -> None:
        """Run the reader's thread; it ends when the kernel closes the connection, or this is cancelled."""
        try:
            await _in_thread(partial(self._reader.run, not self._ask_again()), self._reader.stop)
        finally:
            self._reader.close()
            self._pusher.close()
            # Who still waits is nobody's any more, or a successor's.
            self._has_ended = True
            self._nursery.cancel_scope.cancel()

    def _ask_again(self) -> bool:
        """Have the kernel send again what a predecessor did not answer; tell whether it can."""
        agreed = self._channel.journal.negotiated
        if agreed is None or not self._resends(agreed):
            return False
        return self._replies.send((protocol.resend(),))

    def _resends(self, agreed: Negotiated) -> bool:
        return self._settings.resend and bool(agreed.flags & InitFlag.HAS_RESEND)

    # INIT

    def _initialise(self, unique: int, body: memoryview) -> None:
        """Agree with the kernel on version and abilities; called in the reader's thread."""
        offered = protocol.init_in(body)
        if offered.major != protocol.KERNEL_VERSION or offered.minor < protocol.MINOR_MIN:
            self._refuse(unique, f"the kernel speaks FUSE {offered.major}.{offered.minor}, 7.31 is needed")
            return
        if offered.flags & NEEDED != NEEDED:
            self._refuse(unique, "the kernel cannot do without open and opendir")
            return
        settings, minor = self._settings, min(offered.minor, protocol.MINOR_MAX)
        agreed = offered.flags & FLAGS
        reply = protocol.init_out(
            minor,
            max_readahead=min(offered.max_readahead, settings.read_ahead_kib * 1024),
            flags=agreed,
            max_background=settings.background_max,
            congestion_threshold=max(settings.background_max * 3 // 4, 1),
            max_write=WRITE_MAX,
            max_pages=PAGES_MAX,
        )
        self._replies.answer(unique, (reply,))
        self._channel.journal.negotiated = Negotiated(minor, int(agreed))
        self._token.run_sync_soon(self._initialised.set)

    def _refuse(self, unique: int, reason: str) -> None:
        self._refused = reason
        self._replies.refuse(unique, errno.EPROTO)
        self._token.run_sync_soon(self._initialised.set)

    def _tuned(self) -> str:
        """Tell the kernel how much to read ahead, and return the mount's device; empty if it is not found."""
        settings, device = self._settings, ""
        try:
            device = kernel.device_of(self._mountpoint)
            kernel.open_control()
            kernel.tune(
                device,
                background_max=settings.background_max,
                read_ahead_kib=settings.read_ahead_kib,
            )
        except (OSError, MountError, subprocess.SubprocessError) as error:
            log.info("%s: read_ahead_kib stays the kernel's: %s", self._mountpoint, error)
        return device

    # Requests that wait

    def _start(self, work: Callable[[T], Awaitable[None]], what: T) -> None:
        """Start *work*; asked for by the reader's thread, perhaps just before the end."""
        if not self._has_ended:
            self._nursery.start_soon(work, what)

    async def _collect(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a process to end, so that no zombie stays."""
        pidfd = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
            process.poll()

    async def _later(self, request: Request) -> None:
        """Answer a request that was not answered at once. Cancelled from outside, it is the successor's."""
        with trio.CancelScope() as scope:
            self._waiting[request.unique] = (request, scope, trio.current_time())
            self._somebody_waits.set()
            try:
                self._answer(request.unique, await self._attempt(request))
            finally:
                del self._waiting[request.unique]
        if scope.cancelled_caught:
            self._replies.refuse(request.unique, errno.EINTR)
        self._reader.free(request.slot)

    async def _attempt(self, request: Request) -> Parts | int:
        """Return the parts of a reply, or an errno."""
        filesystem, inode = self._filesystem, request.inode
        try:
            try:
                return request.operation(inode, request.body)
            except NotCached as missing:
                if request.opcode != Opcode.READ:
                    return await filesystem.later(missing, inode, request.operation, inode, request.body)
                _, offset, length = protocol.read_in(request.body)
                return (await filesystem.read_later(missing, inode, offset, length),)
        except Exception as error:
            return self._fault(request, error)

    def _fault(self, request: Request, error: Exception) -> int:
        doing = self._operations.names[request.opcode]
        try:
            return self._filesystem.fault(error, request.inode, doing)
        except Exception:  # a fault in reporting one must not leave the job waiting
            log.exception("%s of inode %d failed, and so did saying so", doing, request.inode)
            return errno.EIO

    def _answer(self, unique: int, answer: Parts | int) -> None:
        if isinstance(answer, int):
            self._replies.refuse(unique, answer)
        else:
            self._replies.answer(unique, answer)

    # Who waits may be told to end

    def _interrupt(self, unique: int) -> None:
        """Look at once after one who was sent a signal; the watch goes on looking."""
        waiting = self._waiting.get(unique)
        if waiting is not None:
            request, scope, _ = waiting
            if not request.thread or is_dying(request.thread):
                scope.cancel()

    async def _watch(self) -> None:
        """Let go of those that are dying, or were asked to end long enough ago, while anybody waits."""
        while True:
            await self._somebody_waits.wait()
            await trio.sleep(WATCH_INTERVAL_S)
            for looked, (request, scope, since) in enumerate(list(self._waiting.values())):
                if looked % WATCH_STEP == WATCH_STEP - 1:
                    await trio.lowlevel.checkpoint()
                patient = trio.current_time() - since < PATIENCE_S
                ends = is_dying if patient else is_asked_to_end
                if request.thread and ends(request.thread):
                    scope.cancel()
            if not self._waiting:
                self._somebody_waits = trio.Event()


def _notify(descriptor: int, changes: Changes) -> None:
    """Tell the kernel what to forget, over *descriptor*, which is closed then."""
    messages = [protocol.inval_entry(parent, name) for parent, name in changes.entries]
    messages += [protocol.inval_inode(inode, 0, 0) for inode in changes.inodes]
    refused: list[OSError] = []
    try:
        for message in messages:
            try:
                os.write(descriptor, message)
            except FileNotFoundError:  # the kernel does not know that name or inode
                continue
            except OSError as error:
                # One that it refuses; or the mount has ended. What is stale goes after UPPER_TIMEOUT_S.
                refused.append(error)
                if error.errno in GONE:
                    return
    finally:
        os.close(descriptor)
    if refused:
        log.info("the kernel did not forget %d of %d changes: %s", len(refused), len(messages), refused[0])


async def _in_thread(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Do *run* in a thread of its own to its end, which *stop* brings about if this is cancelled."""
    done = trio.Event()

    async def work() -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(run, limiter=trio.CapacityLimiter(1))
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        try:
            await done.wait()
        finally:
            stop()


async def serve(
    filesystem: Filesystem,
    mountpoint: Path,
    settings: MountSettings,
    channel: Channel,
    turns: Turns,
    *,
    device: str = "",
    task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the mount of *channel* until it is unmounted; see `Session.serve`.

    *device* is the mount's major:minor, if a predecessor found it: by now another may be at *mountpoint*.

    Raises:
        MountError.
    """
    await Session(filesystem, mountpoint, settings, channel, turns, device).serve(task_status=task_status)
