"""This module is the process that pushes files into the kernel's page cache; `pusher` decides which.

    python -m torrentfs.fuse.push_process SOCKET DEVICE

It is a process of its own because a push (FUSE_NOTIFY_STORE) waits, and cannot be killed, while one of its
pages is being read. A thread that waits so would keep a server that was killed from dying, its successor
from taking over, and so the read from ever being answered. It also decodes on another processor than the
server. It ends when the server has closed the socket, or died.
"""

import errno
import os
import socket
import sys
from collections import OrderedDict
from typing import Final

import msgspec

from torrentfs.errors import FormatError
from torrentfs.fuse import protocol
from torrentfs.repository.pack import decode_frame

MESSAGE_MAX: Final = 64 * 1024
FILES_OPEN_MAX: Final = 8
IDLE_S: Final = 30.0
"""A walk that pauses for longer pays for another start: 0.1 s."""
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})


class File(msgspec.Struct, array_like=True):
    """A whole file: *length* bytes at *skip* of a decoded frame."""

    inode: int
    skip: int
    length: int


class Frame(msgspec.Struct, array_like=True):
    """A frame of a pack file, whose pieces were checked, with the files in it that are to be pushed."""

    path: bytes
    offset: int
    stored: int
    files: list[File]


class Process:
    """The work: frames come over a socket, files go to /dev/fuse."""

    def __init__(self, orders: socket.socket, device: int) -> None:
        self._orders = orders
        self._device = device
        self._packs: OrderedDict[bytes, int] = OrderedDict()
        self._decoder = msgspec.msgpack.Decoder(list[Frame])

    def run(self) -> None:
        """Push until the socket is closed, nothing comes for long, or the mount has ended."""
        self._orders.settimeout(IDLE_S)
        try:
            while message := self._orders.recv(MESSAGE_MAX):
                # From the end: the walk goes on meanwhile, and forward one would always come just too late.
                if not all(map(self._push, reversed(self._decoder.decode(message)))):
                    return
        except TimeoutError:
            return

    def _push(self, frame: Frame) -> bool:
        """Push the files of a frame; tell whether the mount is still there."""
        try:
            data = decode_frame(os.pread(self._pack(frame.path), frame.stored, frame.offset))
        except (OSError, FormatError):
            # Gone or damaged since it was checked: whoever asks for it finds that out, and repairs it.
            return True
        view = memoryview(data)
        for file in reversed(frame.files):
            if file.skip + file.length > len(data):
                return True
            head = protocol.store(file.inode, 0, file.length)
            try:
                os.writev(self._device, (head, view[file.skip : file.skip + file.length]))
            except FileNotFoundError:
                continue  # the kernel does not know that inode yet; those before it, perhaps
            except OSError as error:
                return error.errno not in _GONE
        return True

    def _pack(self, path: bytes) -> int:
        descriptor = self._packs.get(path)
        if descriptor is None:
            descriptor = self._packs[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._packs) > FILES_OPEN_MAX:
                os.close(self._packs.popitem(last=False)[1])
        return descriptor


if __name__ == "__main__":
    Process(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])).run()
