"""This module decides which files the kernel is given before they are asked for (FUSE_NOTIFY_STORE).

A walk over small files, as `tar` does, waits for one answer after the other although their bytes lie side by
side. Once reads run forward through a pack, the files that follow in the same directory are pushed into the
page cache by a process of its own, `push_process`. A program's start jumps about in a pack: nothing is
pushed.
"""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import msgspec

from torrentfs.errors import TorrentfsError
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.push_process import MESSAGE_MAX, File, Frame
from torrentfs.repository.metainfo import NotCached, TorrentRef
from torrentfs.tree import Inode, Slice

log = logging.getLogger(__name__)

RUN_MIN: Final = 4
"""Reads forward before anything is pushed: pushed always, starts take 10 to 15 % longer."""
NEAR: Final = 1 << 20
"""Stored bytes ahead that still are forward; a walk leaves out what it need not read."""
SIZE_MAX: Final = 128 * 1024
"""The largest file that is pushed: the kernel reads ahead in larger ones by itself."""
BUDGET: Final = 512 * 1024
"""Bytes pushed for one read."""
FILES_MAX: Final = 512
"""Files pushed for one read: of tiny ones, a message would have no room for more than some 5000."""
PROCESS: Final = "torrentfs.fuse.push_process"
RESTART_S: Final = 10.0
"""A process that ended is not started again sooner."""


class Pusher:
    """What one mount's kernel is given unasked. Called by the thread that reads requests, but for `close`."""

    def __init__(
        self, filesystem: Filesystem, descriptor: int, started: Callable[["subprocess.Popen[bytes]"], None]
    ) -> None:
        """Push over /dev/fuse, *descriptor*; *started* is given each process, to collect it when it ends."""
        self._filesystem = filesystem
        self._descriptor = descriptor
        self._ref: TorrentRef | None = None
        self._offset = 0
        self._run = 0
        self._due: Inode | None = None
        self._pushed = range(0)
        self._began = started
        self._socket: socket.socket | None = None
        self._started_s = float("-inf")

    def was_read(self, inode: Inode, slices: Sequence[Slice]) -> None:
        """Take note of a read that is about to be answered."""
        if len(slices) != 1 or slices[0].ref is None:
            return
        read = slices[0]
        forward = read.ref is self._ref and self._offset <= read.offset <= self._offset + NEAR
        self._run = self._run + 1 if forward else 0
        self._ref, self._offset = read.ref, read.offset
        # A walk that overtakes the process must not make it begin again.
        if self._run >= RUN_MIN and inode not in self._pushed:
            self._due = inode

    def push(self) -> None:
        """Have pushed what is due after a read, now that this is answered. Called by who has the turn."""
        inode, self._due = self._due, None
        if inode is None:
            return
        frames, last = self._following(inode)
        # Also if nothing follows: each read of a large file would look again.
        if not frames or self._send(frames):
            self._pushed = range(inode, last + 1)

    def close(self) -> None:
        """End the process; it may take a moment, as it waits for a page that is being read."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def is_due(self) -> bool:
        """Tell whether there is something to `push`."""
        return self._due is not None

    def _following(self, inode: Inode) -> tuple[list[Frame], Inode]:
        """Return what is worth to be pushed after *inode*, frame by frame, and the last inode of it."""
        # Frames of two packs may begin at the same offset, and often do: at 0.
        frames: dict[tuple[TorrentRef, int], Frame] = {}
        left, last = BUDGET, inode
        try:
            for following, wanted in islice(self._filesystem.following(inode, SIZE_MAX), FILES_MAX):
                left -= wanted.length
                if left < 0 or wanted.ref is None:
                    break
                frame = frames.get((wanted.ref, wanted.offset))
                if frame is None:
                    path = self._filesystem.locate(wanted)
                    if path is None:
                        break
                    frame = Frame(os.fsencode(path), wanted.offset, wanted.stored, [])
                    frames[wanted.ref, wanted.offset] = frame
                frame.files.append(File(following, wanted.skip, wanted.length))
                last = max(last, following)  # of hard links, the first name's, which may lie before
        except (NotCached, TorrentfsError):
            # Nobody asked for it: who does waits for it, or gets the error.
            return [], inode
        return list(frames.values()), last

    def _send(self, frames: list[Frame]) -> bool:
        """Tell the process what to push, without waiting for it; start it if need be."""
        if self._socket is None:
            self._start()
        message = msgspec.msgpack.encode(frames)
        if self._socket is None or len(message) > MESSAGE_MAX:
            return False
        try:
            self._socket.send(message)
        except BlockingIOError:
            return False  # it is busy: what comes too late is not worth a push
        except OSError:
            self.close()
            return False
        return True

    def _start(self) -> None:
        if time.monotonic() - self._started_s < RESTART_S:
            return
        self._started_s = time.monotonic()
        try:
            self._socket, process = _started(self._descriptor)
        except OSError as error:
            log.warning("walks are slower than they could be: %s", error)
        else:
            self._began(process)


def _started(device: int) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start the process that pushes over *device*; return the socket that it takes orders from.

    Raises:
        OSError: no descriptor or no process is to be had.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with its:
        try:
            # -P: a module of that name in a working directory must not run in our place.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROCESS, str(its.fileno()), str(device)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno(), device],
                cwd="/",
            )
        except OSError:
            ours.close()
            raise
    return ours, process
