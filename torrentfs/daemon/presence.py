"""This module notes which device a served mount is and who keeps it, for when nobody answers."""

from dataclasses import dataclass
from pathlib import Path

from torrentfs.daemon.runtime import device_path

LENGTH_MAX = 100


@dataclass(frozen=True, slots=True)
class Presence:
    """A mount's *device* (major:minor; empty: not known), and its *keeper*'s process; 0: it has none."""

    device: str
    keeper: int = 0


def note(mountpoint: Path, presence: Presence) -> None:
    """Write down *presence* of the mount at *mountpoint* (resolved).

    Raises: OSError.
    """
    path = device_path(mountpoint)
    made = path.with_suffix(".new")
    made.write_text(f"{presence.device} {presence.keeper}\n")
    made.replace(path)


def noted(mountpoint: Path) -> Presence | None:
    """Return what was noted for *mountpoint* (resolved); None if nothing is."""
    try:
        with device_path(mountpoint).open() as file:
            device, _, keeper = file.read(LENGTH_MAX).strip("\n").partition(" ")
        return Presence(device, int(keeper or 0))
    except (FileNotFoundError, ValueError):
        return None


def forget(mountpoint: Path) -> None:
    """Take the note away."""
    device_path(mountpoint).unlink(missing_ok=True)
