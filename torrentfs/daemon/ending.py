"""This module ends a mount from outside: it unmounts and waits until the daemon has gone, or makes it go."""

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from torrentfs.daemon.control_client import daemon_pid
from torrentfs.daemon.holders import goes_on, hold, known_hold, mounted_at
from torrentfs.daemon.mountpoint import device_at, is_dead, is_mounted, resolve, unmount
from torrentfs.errors import MountError
from torrentfs.fuse import kernel

END_DEADLINE_S = 30.0
"""How long a daemon may take to write down its state and say goodbye to its peers."""
HELD_PATIENCE_S = 2.0
"""How long who holds the mount elsewhere may take to go, before that is said."""
LOOK_INTERVAL_S = 0.25
FORCE_DEADLINE_S = 10.0
"""How long a daemon that is to go by force may take after SIGTERM, and then after SIGKILL."""


def end(mountpoint: Path, *, force: bool = False) -> None:
    """Unmount *mountpoint* and return when its daemon has ended.

    With *force* whoever uses or holds the mount gets errors; without it that is said.

    Raises: MountError: it is not mounted, or in use, or held elsewhere, or the daemon hangs.
    """
    place = resolve(mountpoint)
    pid = daemon_pid(place)
    mounted = is_mounted(place)
    if not mounted and pid is None:
        raise MountError(f"{mountpoint} is not a mount of torrentfs; torrentfs stats lists yours")
    device = device_at(place) if mounted else ""
    daemon = None if pid is None else _open_process(pid)
    if pid is None or daemon is None:
        # Killed, or another user's: umount says so if that is not ours to end.
        if mounted:
            unmount(place, lazy=force)
        return
    try:
        if force:
            _force(place, pid, daemon, device)
            return
        if mounted:
            unmount(place)
        _await_end(place, pid, daemon, device)
    finally:
        os.close(daemon)


def _await_end(place: Path, pid: int, daemon: int, device: str) -> None:
    """Return when *daemon* has ended of itself.

    Raises: MountError: it is held, or hangs.
    """
    start = time.monotonic()
    while not _has_ended(daemon, LOOK_INTERVAL_S):
        waited_s = time.monotonic() - start
        if waited_s < HELD_PATIENCE_S:
            continue
        held = hold(place, device) if device else known_hold(place)
        if waited_s > END_DEADLINE_S or (held is not None and held.held_by):
            raise goes_on(place, pid, held.held_by if held else ())


def _force(place: Path, pid: int, daemon: int, device: str) -> None:
    """End *daemon* whoever uses its mount, and take what is left of that away here.

    Raises: MountError: it cannot be ended.
    """
    if not device and (held := known_hold(place)):
        device = held.device
    left = mounted_at(device) if device else []
    signal.pidfd_send_signal(daemon, signal.SIGTERM)
    if not _has_ended(daemon, FORCE_DEADLINE_S):
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        # One that waits for its own mount does not even get SIGKILL before the connection is cut.
        if device:
            with contextlib.suppress(OSError):
                kernel.abort(device)
        if not _has_ended(daemon, FORCE_DEADLINE_S):
            raise MountError(f"process {pid} of {place} outlives SIGKILL: the kernel's log may say why")
    for path in reversed([str(place), *left]):
        if is_mounted(Path(path)) and is_dead(Path(path)):
            unmount(Path(path), lazy=True)


def _has_ended(daemon: int, patience_s: float) -> bool:
    """Tell whether the process of the descriptor *daemon* ends within *patience_s*."""
    return bool(select.select([daemon], [], [], patience_s)[0])


def _open_process(pid: int) -> int | None:
    """Return a descriptor that becomes readable when *pid* ends (pidfd_open(2)); None if it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
