"""This module stays while another's server serves a mount, for a service whose mount joined that."""

import signal
import time
from pathlib import Path

from torrentfs.daemon.control_client import daemon_pid
from torrentfs.daemon.ending import end
from torrentfs.errors import MountError

LOOK_INTERVAL_S = 0.5


def stay(mountpoint: Path, cache: Path) -> None:
    """Return when the mount at *mountpoint* (resolved) has ended; end it at a signal that ends daemons.

    Raises: MountError: it cannot be ended; or it ended with the server of *cache*, which somebody else ended.
    """
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: asked.append(number))
    while daemon_pid(mountpoint) is not None:
        if asked:
            end(mountpoint, force=True)
            return
        time.sleep(LOOK_INTERVAL_S)
    if daemon_pid(cache) is None:
        # For a service manager: this mount is still wanted, and can have a server of its own.
        raise MountError(f"the server of {cache} has ended, and {mountpoint} with it")
