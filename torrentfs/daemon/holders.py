"""This module finds who still holds a mount that is unmounted here, and says it in the same words everywhere.

A container has mounts of its own: what was mounted when it began stays mounted there. A bind mount holds a
tree too. The daemon serves them until the last has gone. Nothing here asks the mount itself anything.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from torrentfs.daemon.mountpoint import FILESYSTEM_TYPE, is_mounted, mounts
from torrentfs.daemon.presence import noted
from torrentfs.errors import MountError

HOLDERS_MAX = 5
"""How many are named; there may be a hundred containers."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Whether the mount *device* (major:minor) is where it belongs; if not, *held_by* says who has it."""

    mounted: bool
    device: str
    held_by: tuple[str, ...] = ()


def hold(mountpoint: Path, device: str) -> Hold:
    """Return how the mount with *device* (major:minor) is held that belongs at *mountpoint* (resolved).

    Without a *device*, which a daemon may not have found, nobody can be named.
    """
    if not device:
        return Hold(is_mounted(mountpoint), device)
    if any(record.device == device and record.mountpoint == str(mountpoint) for record in mounts()):
        return Hold(mounted=True, device=device)
    return Hold(mounted=False, device=device, held_by=tuple(holders(device)))


def holders(device: str) -> list[str]:
    """Return the bind mounts of *device* here, and a process of each other mount namespace that has it."""
    found = [f"the mount at {path}" for path in mounted_at(device)]
    namespaces = {_namespace("self")}
    left_out = 0
    for process in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            namespace = _namespace(str(process))
            if namespace in namespaces:
                continue
            namespaces.add(namespace)
            if not mounted_at(device, str(process)):
                continue
            name = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
        except OSError:  # it has ended, or is another user's
            continue
        if len(found) < HOLDERS_MAX:
            found.append(f"{name} ({process}) in a mount namespace of its own")
        else:
            left_out += 1
    return [*found, f"{left_out} more"] if left_out else found


def mounted_at(device: str, process: str = "self") -> list[str]:
    """Return where *process* sees the torrentfs mount *device*, in the order of mounting.

    Raises: OSError: the process has ended, or is not ours to look at.
    """
    return [
        record.mountpoint
        for record in mounts(process)
        if record.device == device and record.kind == FILESYSTEM_TYPE
    ]


def _namespace(process: str) -> str:
    return os.readlink(f"/proc/{process}/ns/mnt")  # noqa: PTH115 - it is a name, not a path


def known_hold(mountpoint: Path) -> Hold | None:
    """Return how the mount is held that the daemon of *mountpoint* (resolved) noted; None if it noted none.

    That daemon is not asked: it may hang.
    """
    known = noted(mountpoint)
    if known and not known.is_there:
        return Hold(mounted=False, device="")
    return hold(mountpoint, known.device) if known else None


def goes_on(mountpoint: Path, pid: int, held_by: tuple[str, ...]) -> MountError:
    """Return what to say of a daemon that serves on although *mountpoint* is unmounted here."""
    reason = f"is held by {', '.join(held_by)}" if held_by else "has not ended yet"
    return MountError(
        f"{mountpoint} is unmounted here, but its daemon, process {pid}, {reason}; "
        f"torrentfs umount --force {mountpoint} ends it"
    )
