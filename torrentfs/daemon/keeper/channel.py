"""This module sends and receives messages with descriptors, and never waits; what they say, others know."""

import _socket
import os
import sys

from torrentfs.daemon.keeper.lines import log

MESSAGE_MAX = 65_536
TEXT_MAX = MESSAGE_MAX // 4
"""Characters, of up to four bytes."""
WAITING_MAX = 300
"""More than a server is told at its start: what is held (256) and a few words."""


class Descriptor:
    """An open descriptor, closed when nothing refers to it any more: none is lost, whatever fails."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Channel:
    """A socket for messages, each with one descriptor at most. Those that it has no room for wait here."""

    def __init__(self, socket: _socket.socket, *, is_heard: bool = True) -> None:
        self.socket = socket
        self.is_heard = is_heard  # messages may come
        self.waiting: list[tuple[bytes, Descriptor | None]] = []

    def __del__(self) -> None:
        self.socket.close()

    def say(self, text: str, descriptor: Descriptor | None = None) -> None:
        """Send *text*, now or when there is room."""
        if len(self.waiting) >= WAITING_MAX:
            return log(f"{text} cannot be passed on: nothing is read there")
        self.waiting.append((text[:TEXT_MAX].encode(errors="replace"), descriptor))
        return self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        try:
            while self.waiting:
                data, descriptor = self.waiting[0]
                rights = [descriptor.number.to_bytes(4, sys.byteorder)] if descriptor else []
                beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, right) for right in rights]
                self.socket.sendmsg([data], beside, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
                del self.waiting[0]
        except BlockingIOError:
            pass
        except OSError:
            self.waiting.clear()  # nobody is there; if that was a server, its death is seen elsewhere

    def receive(self) -> tuple[str, str, Descriptor | None] | None:
        """Return the next message's word, its rest and its descriptor; None: there is none now."""
        flags = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
        try:
            # Room for exactly one descriptor: the kernel closes all others.
            data, beside, _, _ = self.socket.recvmsg(MESSAGE_MAX, _socket.CMSG_LEN(4), flags)
        except BlockingIOError:
            return None
        except OSError:
            data, beside = b"", []
        rights = [right for _, kind, right in beside if kind == _socket.SCM_RIGHTS]
        descriptor = Descriptor(int.from_bytes(rights[0][:4], sys.byteorder)) if rights else None
        if not data and not descriptor:
            self.is_heard = False
            return None
        word, _, rest = data.decode(errors="replace").partition(" ")
        return word, rest, descriptor
