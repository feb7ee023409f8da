"""This module ends a mount from outside: it unmounts and waits until the daemon has gone, or makes it go."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from torrentfs.daemon import claims
from torrentfs.daemon.control_client import daemon_pid
from torrentfs.daemon.holders import goes_on, known_hold, mounted_at
from torrentfs.daemon.mountpoint import device_at, is_dead, is_mounted, resolve, unmount
from torrentfs.daemon.presence import Presence, kept_by, noted
from torrentfs.daemon.runtime import socket_path
from torrentfs.errors import MountError
from torrentfs.fuse import kernel

END_DEADLINE_S = 30.0
"""How long a daemon may take to write down its state and say goodbye to its peers."""
HELD_PATIENCE_S = 2.0
"""How long who holds the mount elsewhere may take to go, before that is said."""
LOOK_INTERVAL_S = 0.25
POLL_INTERVAL_S = 0.02
FORCE_DEADLINE_S = 10.0
"""How long a daemon that is to go by force may take after SIGTERM, and then after SIGKILL."""


def end(mountpoint: Path, *, force: bool = False) -> None:
    """Unmount *mountpoint* and return when its daemon has ended, or goes on for other mounts only.

    With *force* whoever uses or holds the mount gets errors; without it that is said.

    Raises: MountError: it is not mounted, or in use, or held elsewhere, or the daemon hangs.
    """
    place = resolve(mountpoint)
    mounted = is_mounted(place)
    with _daemon_of(place) as daemon:
        if daemon is None and not mounted:
            raise MountError(f"{mountpoint} is not a mount of torrentfs; torrentfs stats lists yours")
        if daemon is None:
            # Killed, or another user's: umount says so if that is not ours to end.
            if force:
                # A service manager may still hold it, and who waits there would wait on.
                _abort(Presence(device_at(place), connection=kernel.connection_of(device_at(place))))
            unmount(place, lazy=force)
        elif force:
            _force(daemon, device_at(place) if mounted else "")
        else:
            if mounted:
                unmount(place)
            _await_end(daemon)


class _Daemon:
    """Who serves a mount, watched by a descriptor that is readable when a process has ended (pidfd_open(2)).

    Nothing here is asked of it: it may hang.
    """

    def __init__(self, place: Path, server: int, keeper: int) -> None:
        self.place = place
        self.server = server
        self.keeper = keeper
        self._main = os.pidfd_open(keeper or server)

    def close(self) -> None:
        os.close(self._main)

    @property
    def is_shared(self) -> bool:
        """Whether it serves other mounts too."""
        return self.keeper > 0 and any(path != socket_path(self.place) for path in kept_by(self.keeper))

    def has_ended(self, patience_s: float) -> bool:
        """Tell whether it serves the mount no more within *patience_s*, nor runs if it served no other."""
        deadline = time.monotonic() + patience_s
        # It takes away its socket last of all.
        while not select.select([self._main], [], [], min(POLL_INTERVAL_S, patience_s))[0]:
            if not socket_path(self.place).exists() and self.is_shared:
                return True
            if time.monotonic() >= deadline:
                return False
        return True

    def tell(self, number: int) -> None:
        """Send its first process a signal."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._main, signal.Signals(number))

    def kill_server(self) -> None:
        """Kill the server that serves now; its keeper, which was told to end, has another end at once."""
        for pid in _children(self.keeper) if self.keeper else [self.server]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _daemon_of(place: Path) -> Iterator[_Daemon | None]:
    """Give who serves *place*; None if nobody does.

    Raises: MountError: that cannot be ended from here.
    """
    server = daemon_pid(place)
    if server is None:
        yield None
        return
    known = noted(place)
    candidates = [known.keeper if known else 0, _parent(server)]
    keeper = next((pid for pid in candidates if is_keeper(pid)), 0)
    if not keeper and server <= 0:
        raise MountError(f"{place} is served by a process of another PID namespace: end it there")
    try:
        daemon = _Daemon(place, server, keeper)
    except ProcessLookupError:
        yield None
        return
    try:
        yield daemon
    finally:
        daemon.close()


def _parent(pid: int) -> int:
    """Return the parent of process *pid*; 0 if that is not to be seen."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return 0


def _children(pid: int) -> list[int]:
    """Return the children of process *pid*, as far as they are to be seen."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_keeper(pid: int) -> bool:
    """Tell whether process *pid* is a keeper, as far as its command line says."""
    with contextlib.suppress(OSError):
        return pid > 0 and b"torrentfs.daemon.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _await_end(daemon: _Daemon) -> None:
    """Return when *daemon* has ended of itself.

    Raises: MountError: it is held, or hangs.
    """
    start = time.monotonic()
    while not daemon.has_ended(LOOK_INTERVAL_S):
        waited_s = time.monotonic() - start
        if waited_s < HELD_PATIENCE_S:
            continue
        held = known_hold(daemon.place)
        if waited_s > END_DEADLINE_S or (held is not None and held.held_by):
            raise goes_on(daemon.place, daemon.server, held.held_by if held else ())


def _force(daemon: _Daemon, device: str) -> None:
    """End *daemon* whoever uses its mount, and take what is left of that away here.

    Raises: MountError: it cannot be ended.
    """
    place = daemon.place
    if not device and (held := known_hold(place)):
        device = held.device
    left = mounted_at(device) if device else []
    mount = Presence(device, connection=kernel.connection_of(device))
    if not (_cut_off(daemon, mount) if daemon.is_shared else _end_all(daemon, mount)):
        raise MountError(f"process {daemon.server} of {place} outlives SIGKILL: the kernel's log may say why")
    for path in reversed([str(place), *left]):
        if is_mounted(Path(path)) and is_dead(Path(path)):
            unmount(Path(path), lazy=True)
    if daemon_pid(place) is None:
        claims.release(place)


def _cut_off(daemon: _Daemon, mount: Presence) -> bool:
    """Cut the connection of one mount, which its server takes for the end of that; tell whether it did."""
    _abort(mount)
    if daemon.has_ended(FORCE_DEADLINE_S):
        return True
    daemon.kill_server()
    return daemon.has_ended(FORCE_DEADLINE_S)


def _end_all(daemon: _Daemon, mount: Presence) -> bool:
    """End the processes of a daemon; tell whether they did."""
    daemon.tell(signal.SIGTERM)
    if daemon.has_ended(FORCE_DEADLINE_S):
        return True
    daemon.kill_server()
    # One that waits for its own mount does not even get SIGKILL before the connection is cut.
    _abort(mount)
    if daemon.has_ended(FORCE_DEADLINE_S):
        return True
    daemon.tell(signal.SIGKILL)
    daemon.kill_server()
    return daemon.has_ended(FORCE_DEADLINE_S)


def _abort(mount: Presence) -> None:
    with contextlib.suppress(OSError):
        # By now it may have gone, and another have its number.
        if mount.device and mount.is_there:
            kernel.abort(mount.device)
