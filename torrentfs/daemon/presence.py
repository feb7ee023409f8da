"""This module notes which device a served mount is and who keeps it, for when nobody answers."""

from dataclasses import dataclass
from pathlib import Path

from torrentfs.daemon.runtime import device_path
from torrentfs.fuse import kernel

LENGTH_MAX = 100


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

    Raises: OSError.
    """
    known, path = noted(mountpoint), device_path(mountpoint)
    # A predecessor knew: by now the mount may have gone, and another have the number.
    connection = known.connection if known and known.device == device else kernel.connection_of(device)
    made = path.with_suffix(".new")
    made.write_text(f"{device} {keeper} {connection}\n")
    made.replace(path)


def noted(mountpoint: Path) -> Presence | None:
    """Return what was noted for *mountpoint* (resolved); None if nothing is."""
    try:
        with device_path(mountpoint).open() as file:
            device, keeper, connection = file.read(LENGTH_MAX).strip("\n").split(" ")
        return Presence(device, int(keeper), int(connection))
    except (FileNotFoundError, ValueError):
        return None


def forget(mountpoint: Path) -> None:
    """Take the note away."""
    device_path(mountpoint).unlink(missing_ok=True)
