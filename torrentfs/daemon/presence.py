"""This module notes which device a served mount is and who keeps it, for when nobody answers."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torrentfs.daemon.runtime import DEVICE_SUFFIX, device_path, sockets
from torrentfs.errors import ControlError
from torrentfs.fuse import kernel

LENGTH_MAX = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Presence:
    """A mount's *device* (major:minor; empty: not known), and its *keeper*'s process; 0: it has none.

    *connection* tells it from others that had that number before, or have it since, see `kernel`.
    """

    device: str
    keeper: int = 0
    connection: int = 0

    @property
    def is_there(self) -> bool:
        """Whether the mount is somewhere still, as far as is known."""
        return kernel.is_still(self.device, self.connection)


def note(mountpoint: Path, device: str, keeper: int) -> None:
    """Write down *device* and *keeper* of the mount at *mountpoint* (resolved), which is there if it is new.

    The mount is worth more than the note: what prevents it is logged.
    """
    known = noted(mountpoint)
    # A predecessor knew: by now the mount may have gone, and another have the number.
    connection = known.connection if known and known.device == device else kernel.connection_of(device)
    try:
        path = device_path(mountpoint)
        made = path.with_suffix(".new")
        made.write_text(f"{device} {keeper} {connection}\n")
        made.replace(path)
    except (OSError, ControlError) as error:
        log.warning("%s: who serves it cannot be noted: %s", mountpoint, error)


def noted(mountpoint: Path) -> Presence | None:
    """Return what was noted for *mountpoint* (resolved); None if nothing is."""
    try:
        return _read(device_path(mountpoint))
    except (OSError, ValueError, ControlError):
        return None


def kept_by(keeper: int) -> list[Path]:
    """Return the control sockets of the mounts whose keeper is the process *keeper*."""
    found = []
    for path in sockets():
        with suppress(OSError, ValueError):
            if _read(path.with_suffix(DEVICE_SUFFIX)).keeper == keeper:
                found.append(path)
    return found


def _read(path: Path) -> Presence:
    with path.open() as file:
        device, keeper, connection = file.read(LENGTH_MAX).strip("\n").split(" ")
    return Presence(device, int(keeper), int(connection))


def forget(mountpoint: Path) -> None:
    """Take the note away.

    Raises: OSError, ControlError.
    """
    device_path(mountpoint).unlink(missing_ok=True)
