"""This module knows mountpoints: where they are, whether they are mounted, and how to end a mount.

But for `is_dead` it never asks a mounted filesystem anything, so that a daemon that hangs does not take its
admin with it.
"""

import ctypes
import errno
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torrentfs.errors import MountError

FILESYSTEM_TYPE = "fuse.torrentfs"
UMOUNT_NOFOLLOW = 8
MNT_DETACH = 2
FUSERMOUNT_DEADLINE_S = 10.0
HOLDERS_MAX = 3
ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One line of mountinfo: what is mounted where, as the kernel says."""

    mountpoint: str
    kind: str
    device: str
    """major:minor: the same for all that shows the same filesystem, in other namespaces too."""


def resolve(mountpoint: Path) -> Path:
    """Return *mountpoint* without symbolic links, as the kernel names it; what is mounted is not touched."""
    path = mountpoint.absolute()
    path = path.parent.resolve() / path.name if path.name != ".." else path.resolve()
    try:
        # On a mounted directory this ends in EINVAL without a request to its daemon, unlike lstat.
        path.readlink()
    except OSError:
        return path
    return path.resolve()


def mounts(process: str = "self") -> list[MountRecord]:
    """Return what *process*, by default this one, sees mounted, in the order of mounting (proc(5)).

    Raises: OSError: it has ended, or is not ours to look at.
    """
    found = []
    for line in Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").split("\n"):
        before, _, after = line.partition(" - ")
        if after:
            fields = before.split(" ")
            found.append(MountRecord(_unescape(fields[4]), after.split(" ")[0], fields[2]))
    return found


def _unescape(text: str) -> str:
    for escape, character in ESCAPES.items():
        text = text.replace(escape, character)
    return text


def is_mounted(mountpoint: Path) -> bool:
    """Tell whether the uppermost mount at *mountpoint* (resolved) is one of torrentfs, alive or dead."""
    kinds = [record.kind for record in mounts() if record.mountpoint == str(mountpoint)]
    return bool(kinds) and kinds[-1] == FILESYSTEM_TYPE


def device_at(mountpoint: Path) -> str:
    """Return the major:minor of what is mounted on top at *mountpoint* (resolved); empty if nothing is."""
    found = [record.device for record in mounts() if record.mountpoint == str(mountpoint)]
    return found[-1] if found else ""


def is_dead(mountpoint: Path) -> bool:
    """Tell whether the mount's daemon is gone. Its own daemon must not ask: it would wait for itself."""
    try:
        # Not stat: the kernel answers that for a dead mount too, from what it remembers.
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Take the mount away; *lazy* even from under those who use it.

    Raises: MountError: says who keeps it busy.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        failed = libc.umount2(os.fsencode(mountpoint), flags) != 0
        reason = os.strerror(ctypes.get_errno())
        busy = ctypes.get_errno() == errno.EBUSY
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
        failed, reason = _fusermount(command)
        busy = "busy" in reason
    if failed and busy:
        raise MountError(f"{mountpoint} is in use{_holders(mountpoint)}; end them first, nothing was changed")
    if failed:
        raise MountError(f"cannot unmount {mountpoint}: {reason}")


def clear_dead_mount(mountpoint: Path) -> None:
    """Take away what killed daemons left; the caller has the claim, so none of its user's serves it.

    Raises: MountError: another user's daemon does.
    """
    while is_mounted(mountpoint):
        if not is_dead(mountpoint):
            raise MountError(f"{mountpoint} is mounted already; umount {mountpoint} ends it")
        unmount(mountpoint, lazy=True)


def _fusermount(command: list[str]) -> tuple[bool, str]:
    """Run fusermount3; return whether it failed and why."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FUSERMOUNT_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return True, str(error)
    return done.returncode != 0, done.stderr.strip()


def _holders(mountpoint: Path) -> str:
    """Return " by NAME (PID), …" of processes seen to use *mountpoint*; empty when none is seen."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if len(found) == HOLDERS_MAX:
            break
        other = process.name.isdigit() and process.name != str(os.getpid())
        if other and any(_is_below(link, mountpoint) for link in _links(process)):
            try:
                found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
            except OSError:
                continue  # it ended meanwhile
    return f" by {', '.join(found)}" if found else ""


def _links(process: Path) -> list[str]:
    """Return where a process' working directory, program and open files are."""
    links = [process / "cwd", process / "exe", process / "root"]
    found = []
    with suppress(PermissionError, FileNotFoundError):  # another user's process, or one that has ended
        links += (process / "fd").iterdir()
    for link in links:
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return found


def _is_below(path: str, mountpoint: Path) -> bool:
    return path == str(mountpoint) or path.startswith(f"{mountpoint}/")
