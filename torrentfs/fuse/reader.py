"""This module is the thread that reads the kernel's requests and answers at once what it can.

It spins a moment before it sleeps: to sleep and be woken costs a process that waits some 40 µs. What needs
bytes first, or fails, is handed to trio; what such a request is answered with is the caller's.
"""

import errno
import logging
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from torrentfs.errors import TreeError
from torrentfs.fuse import protocol
from torrentfs.fuse.errnos import errno_of
from torrentfs.fuse.journal import Journal
from torrentfs.fuse.operations import FIXED_ERRORS, SILENT, Operation, Operations, Parts
from torrentfs.fuse.protocol import Opcode
from torrentfs.fuse.pusher import Pusher
from torrentfs.fuse.turns import Turns
from torrentfs.tree import Inode

log = logging.getLogger(__name__)

_FREE: Final = bytes(4)
_PARTS_MAX: Final = os.sysconf("SC_IOV_MAX") - 1
"""Parts of an answer that writev(2) takes beside the header: 1023 on Linux."""
GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})
"""What reading and writing end in when the connection has ended."""
_RETRY: Final = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})
"""What reading ends in when a request was taken back, or a signal came (fuse(4))."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that waits in *slot* of the journal; *thread* asked for it, 0 if that cannot be seen."""

    slot: int
    unique: int
    opcode: int
    inode: Inode
    thread: int
    body: memoryview
    operation: Operation


@dataclass(frozen=True, slots=True)
class Channel:
    """What a mount is served by, and what a successor takes over: /dev/fuse, and the requests in flight."""

    descriptor: int
    journal: Journal


class Replies:
    """Sends answers over a channel, from any thread."""

    def __init__(self, channel: Channel) -> None:
        self._descriptor = channel.descriptor

    def answer(self, unique: int, parts: Parts) -> None:
        """Answer with a body, in parts."""
        if len(parts) > _PARTS_MAX:
            parts = (b"".join(parts),)
        length = protocol.OUT_HEADER.size + sum(map(len, parts))
        if not self.send((protocol.OUT_HEADER.pack(length, 0, unique), *parts)):
            self.refuse(unique, errno.EIO)  # or whoever asked waits for ever

    def refuse(self, unique: int, code: int) -> None:
        """Answer with an errno."""
        self.send((protocol.error_reply(unique, code),))

    def send(self, parts: Parts) -> bool:
        """Write one whole message; tell whether that is all that can be done."""
        try:
            os.writev(self._descriptor, parts)
        except FileNotFoundError:
            pass  # whoever asked was killed, or a predecessor answered already
        except OSError as error:
            # The connection has ended, which the reader finds out; or the kernel refuses what we made of it.
            if error.errno not in GONE:
                log.error("the kernel refused a reply of %d bytes: %s", sum(map(len, parts)), error.strerror)
                return False
        return True


class Reader:
    """The thread's work: `run` it in one of its own; `stop` and `free` may be called from others."""

    def __init__(
        self,
        channel: Channel,
        operations: Operations,
        turns: Turns,
        *,
        spin_us: int,
        initialise: Callable[[int, memoryview], None],
        interrupted: Callable[[int], None],
        wait: Callable[[Request], None],
        pusher: Pusher,
    ) -> None:
        """Hand INIT to *initialise*, INTERRUPTs to *interrupted*, what cannot be answered now to *wait*.

        All three, and *pusher*, are called in the thread.
        """
        self._descriptor = channel.descriptor
        self._journal = channel.journal
        self._replies = Replies(channel)
        self._table = operations.table
        self._turns = turns
        self._spin_ns = spin_us * 1000
        self._initialise = initialise
        self._interrupted = interrupted
        self._wait = wait
        self._pusher = pusher
        self._stopping = False
        self._starved = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)
        self.busy_since_ns = 0
        """time.monotonic_ns() since when the thread is at one request; 0 between requests."""

    def run(self, replay: bool) -> None:
        """Answer until `stop`, or until the connection ends; first what a predecessor left, if *replay*.

        Raises:
            OSError: the kernel's side failed in a way that is not foreseen.
        """
        for left, message in list(self._journal.left()):
            if not (replay and self._serve(left, message)):
                self._journal.free(left)
        slot: int | None = self._journal.take()
        while not self._stopping:
            if slot is None:
                slot = self._await_slot()
                continue
            buffer = self._journal.buffer(slot)
            length = self._next(buffer)
            if length < 0:
                break
            if length and not self._serve(slot, buffer[:length]):
                buffer[:4] = _FREE
            elif length:
                slot = self._journal.take()
        if slot is not None:
            self._journal.free(slot)

    def stop(self) -> None:
        """Make `run` return after the request that it is at."""
        self._stopping = True
        os.eventfd_write(self._bell, 1)

    def free(self, slot: int) -> None:
        """Take note that a request that was handed over is answered."""
        self._journal.free(slot)
        if self._starved:
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Let go of what `run` used; it has returned."""
        os.close(self._bell)

    def _next(self, buffer: memoryview) -> int:
        """Read a request; return its length, 0 if there is none yet, -1 if there will never be one."""
        end_ns = 0
        while True:
            try:
                return os.readv(self._descriptor, (buffer,))
            except BlockingIOError:
                now_ns = time.perf_counter_ns()
                if not end_ns:
                    end_ns = now_ns + self._spin_ns
                if now_ns >= end_ns or self._stopping:
                    break
                # Whoever shares our processor may be the one that is about to ask.
                os.sched_yield()
            except OSError as error:
                if error.errno in GONE:
                    return -1
                if error.errno not in _RETRY:
                    raise
                return 0
        if (self._bell, select.POLLIN) in self._poll.poll():
            self._hush()
        return 0

    def _await_slot(self) -> int | None:
        """Wait for one of the requests in flight to be answered: there may be no more of them."""
        self._starved = True
        if not self._stopping and (slot := self._journal.take()) is None:
            only_bell = select.poll()
            only_bell.register(self._bell, select.POLLIN)
            only_bell.poll()
        self._starved = False
        self._hush()
        return slot if slot is not None else self._journal.take()

    def _hush(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return

    def _serve(self, slot: int, message: memoryview) -> bool:
        """Answer a request, or hand it over; tell whether its slot stays in use."""
        try:
            _, opcode, unique, inode, _, _, thread, _, _ = protocol.IN_HEADER.unpack_from(message)
        except Exception:
            log.exception("a request of %d bytes is none", len(message))
            return False
        operation = self._table.get(opcode)
        if operation is None:
            return self._serve_apart(opcode, unique, message)
        self.busy_since_ns = time.monotonic_ns()
        body = message[protocol.IN_HEADER.size :]
        try:
            with self._turns:
                parts = operation(inode, body)
        except TreeError as error:
            self._replies.refuse(unique, errno_of(error))
        except Exception:
            # NotCached, or a failure: to wait, to count and to log is trio's part.
            self._wait(Request(slot, unique, opcode, inode, thread, body, operation))
            return True
        else:
            self._replies.answer(unique, parts)
            if self._pusher.is_due:
                self._push()
        finally:
            self.busy_since_ns = 0
        return False

    def _push(self) -> None:
        try:
            with self._turns:
                self._pusher.push()
        except Exception:  # nobody asked for it: not worth the mount
            log.exception("pushing what is read next failed")

    def _serve_apart(self, opcode: int, unique: int, message: memoryview) -> bool:
        """Answer what is not an operation of the filesystem; no slot is kept for that."""
        if opcode in SILENT:
            return False
        if opcode == Opcode.INTERRUPT:
            # It has no reply either. One that names nobody is passed over: who dies is found without it.
            with suppress(protocol.ProtocolError):
                self._interrupted(protocol.interrupt_in(message[protocol.IN_HEADER.size :]))
            return False
        try:
            if opcode == Opcode.INIT:
                self._initialise(unique, message[protocol.IN_HEADER.size :])
            else:
                self._replies.refuse(unique, FIXED_ERRORS.get(opcode, errno.ENOSYS))
        except protocol.ProtocolError as error:
            log.error("%s", error)
            self._replies.refuse(unique, errno.EIO)
        return False
