"""This module sets what the kernel lets only root set of a FUSE mount, and finds which mount is ours.

Nothing here looks at the mount itself: a process that does so to its own mount waits for itself.
"""

import os
import subprocess
from pathlib import Path

from torrentfs.errors import MountError

MOUNTINFO = Path("/proc/self/mountinfo")
CONNECTIONS = Path("/sys/fs/fuse/connections")
BACKING_DEVICES = Path("/sys/class/bdi")
MOUNT_TIMEOUT_S = 5.0
NO_CONNECTION = -1


def device_of(mountpoint: Path) -> str:
    """Return the ``major:minor`` of what is mounted on top at *mountpoint* (proc(5), mountinfo).

    Raises:
        MountError: nothing is.
    """
    wanted = _escape(os.fsencode(os.path.realpath(mountpoint.parent) / Path(mountpoint.name)))
    found = ""
    for line in MOUNTINFO.read_bytes().splitlines():
        fields = line.split(b" ")
        if fields[4] == wanted:
            found = fields[2].decode()
    if not found:
        raise MountError(f"nothing is mounted at {mountpoint}")
    return found


def open_control() -> None:
    """Mount the kernel's FUSE control files where they belong, if systemd has not: in a container, say.

    Raises:
        OSError: it is root's to do.
        subprocess.SubprocessError: it did not work.
    """
    if not os.path.ismount(CONNECTIONS):
        subprocess.run(
            ["mount", "-t", "fusectl", "fusectl", CONNECTIONS],
            check=True,
            capture_output=True,
            timeout=MOUNT_TIMEOUT_S,
        )


def tune(device: str, *, background_max: int, read_ahead_kib: int) -> None:
    """Read ahead *read_ahead_kib*, and let more requests be in the background than 12.

    With 12, some 20 readers that wait hold up the first read of any other file.

    Raises:
        OSError: it is root's to set.
    """
    connection = CONNECTIONS / device.rpartition(":")[2]
    (BACKING_DEVICES / device / "read_ahead_kb").write_text(str(read_ahead_kib))
    (connection / "max_background").write_text(str(background_max))
    # Above this the kernel takes the backing device for congested and drops readahead.
    (connection / "congestion_threshold").write_text(str(max(background_max * 3 // 4, 1)))


def connection_of(device: str) -> int:
    """Return what no other mount has, or had, that the kernel gave the number *device*; 0: it cannot be told.

    A number is given again as soon as its mount has gone, often to whatever is mounted next; the inode of
    a connection's control file is not.
    """
    if not os.path.ismount(CONNECTIONS):
        return 0
    try:
        return (CONNECTIONS / device.rpartition(":")[2]).stat().st_ino
    except OSError:
        return NO_CONNECTION


def is_still(device: str, connection: int) -> bool:
    """Tell whether *device* is what `connection_of` told *connection* of, as far as is known."""
    now = connection_of(device)
    return connection <= 0 or now in (0, connection)


def abort(device: str) -> None:
    """Cut the connection of a mount: all that waits on it gets an error at once.

    Raises:
        OSError: it is gone, or not ours to cut.
    """
    (CONNECTIONS / device.rpartition(":")[2] / "abort").write_text("1")


def detach(mountpoint: Path) -> None:
    """Take a mount out of the tree at once; who still uses it keeps it, or an error if it is dead.

    Raises:
        OSError, subprocess.SubprocessError: it did not work.
    """
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, "--", mountpoint], check=True, capture_output=True, timeout=MOUNT_TIMEOUT_S)


def _escape(path: bytes) -> bytes:
    for special in (b"\\", b" ", b"\t", b"\n"):
        path = path.replace(special, b"\\%03o" % special[0])
    return path
