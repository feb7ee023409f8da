"""This module wakes a trio task from threads that must not run Python: through one byte in a socket pair."""

import contextlib
import socket

import trio


class Wakeup:
    """A doorbell; *descriptor* is for the ringing thread to write to."""

    def __init__(self) -> None:
        self._ringer, self._bell = socket.socketpair()
        self._ringer.setblocking(False)
        self._bell.setblocking(False)
        self.descriptor = self._ringer.fileno()

    def ring(self) -> None:
        """Wake the task."""
        with contextlib.suppress(BlockingIOError):  # full of bytes that wake just as well
            self._ringer.send(b"\0")

    async def wait(self) -> None:
        """Wait for a ring since the last return."""
        await trio.lowlevel.wait_readable(self._bell)
        with contextlib.suppress(BlockingIOError):
            while len(self._bell.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Take the doorbell off; nobody may ring any more."""
        self._ringer.close()
        self._bell.close()
