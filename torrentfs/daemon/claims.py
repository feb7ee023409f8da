"""This module claims a place, a mountpoint, cache or repository, for one daemon: who listens there serves it.

Questions to the listening socket are answered in `control`. A claim may outlive its process: a keeper holds
the socket, and the next server takes it up.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torrentfs.daemon import holders, presence
from torrentfs.daemon.control_client import daemon_pid
from torrentfs.daemon.mountpoint import is_mounted
from torrentfs.daemon.runtime import socket_path
from torrentfs.errors import CacheError, ControlError, MountError, TorrentfsError

BACKLOG = 64
CLAIM_DEADLINE_S = 10.0
"""How long others may keep the directory of sockets: they do so for milliseconds."""
CLAIM_INTERVAL_S = 0.05

log = logging.getLogger(__name__)

Refusal = Callable[[Path, int], TorrentfsError]
"""Makes an error of a place and the process that has it."""


def is_mounted_already(mountpoint: Path, pid: int) -> TorrentfsError:
    held = None if is_mounted(mountpoint) else holders.known_hold(mountpoint)
    if held is not None and not held.mounted:
        return holders.goes_on(mountpoint, pid, held.held_by)
    return MountError(
        f"{mountpoint} is mounted already, by process {pid}; torrentfs umount {mountpoint} ends it"
    )


def is_used_already(cache: Path, pid: int) -> TorrentfsError:
    return CacheError(f"the cache {cache} is used by another daemon, process {pid}")


def take(place: Path, refusal: Refusal = is_mounted_already) -> socket.socket:
    """Return a socket that listens for questions about *place* (resolved): no other daemon may then.

    Raises: what *refusal* makes of the process that does already; ControlError.
    """
    try:
        return _taken(place, refusal)
    except OSError as error:
        raise ControlError(f"{socket_path(place)}: {error.strerror}") from None


def _taken(place: Path, refusal: Refusal) -> socket.socket:
    path = socket_path(place)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Between seeing that a socket is dead and replacing it nobody else may do the same.
        _lock(directory, path.parent)
        pid = daemon_pid(place)
        if pid is None:
            path.unlink(missing_ok=True)
            presence.forget(place)
            listener.bind(os.fsencode(path))
            listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    if pid is not None:
        listener.close()
        # Unlocked: to find the reason takes a look at all processes.
        raise refusal(place, pid)
    return listener


def resume(descriptor: int) -> socket.socket:
    """Return the socket in *descriptor*, ours from now on, that another process listened at; now we do."""
    listener = socket.socket(fileno=descriptor)
    # Again: who asks the kernel for the other end's process gets who called this last (unix(7), SO_PEERCRED).
    listener.listen(BACKLOG)
    return listener


def release(place: Path) -> None:
    """Take away what shows a claim, if it is there still; its sockets are the caller's to close."""
    try:
        presence.forget(place)
        socket_path(place).unlink(missing_ok=True)
    except (OSError, ControlError) as error:
        log.warning("%s: %s", place, error)


@contextmanager
def claim(place: Path, refusal: Refusal = is_mounted_already) -> Iterator[socket.socket]:
    """Have *place* until the end of the block.

    Raises: as `take`.
    """
    with take(place, refusal) as listener:
        try:
            yield listener
        finally:
            release(place)


def _lock(directory: int, path: Path) -> None:
    """Lock the open *directory*.

    Raises: ControlError: another process keeps it locked.
    """
    deadline = time.monotonic() + CLAIM_DEADLINE_S
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ControlError(
                    f"{path} is locked by another process (fuser -v {path} names it)"
                ) from None
        time.sleep(CLAIM_INTERVAL_S)
