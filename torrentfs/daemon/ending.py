"""This module ends a mount from outside: it unmounts and waits until the daemon has gone."""

import os
import select
from pathlib import Path

from torrentfs.daemon.control_client import daemon_pid
from torrentfs.daemon.mountpoint import is_mounted, resolve, unmount
from torrentfs.errors import MountError

END_DEADLINE_S = 30.0
"""How long a daemon may take to write down its state and say goodbye to its peers."""


def end(mountpoint: Path) -> None:
    """Unmount *mountpoint* and return when its daemon has ended.

    Raises: MountError: it is not mounted, or in use, or the daemon hangs.
    """
    place = resolve(mountpoint)
    pid = daemon_pid(place)
    if not is_mounted(place):
        raise MountError(f"{mountpoint} is not a mount of torrentfs; torrentfs stats lists yours")
    if pid is None:
        # Killed, or another user's: umount says so if that is not ours to end.
        unmount(place)
        return
    daemon = _open_process(pid)
    if daemon is None:
        unmount(place)
        return
    try:
        unmount(place)
        if not select.select([daemon], [], [], END_DEADLINE_S)[0]:
            raise MountError(
                f"{mountpoint} is unmounted, but process {pid} goes on after {END_DEADLINE_S:g} s: kill it"
            )
    finally:
        os.close(daemon)


def _open_process(pid: int) -> int | None:
    """Return a descriptor that becomes readable when *pid* ends (pidfd_open(2)); None if it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
