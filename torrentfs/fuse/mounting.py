"""This module makes a mount without libfuse and gives its /dev/fuse descriptor: mount(2), or fusermount3.

What is said over the descriptor, and ending the mount, is not done here.
"""

import array
import ctypes
import os
import platform
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from torrentfs.errors import MountError

DEVICE: Final = "/dev/fuse"
TYPE: Final = "fuse.torrentfs"
KERNEL_MIN: Final = (5, 4)
"""The first whose FUSE is 7.31."""
FUSERMOUNT_DEADLINE_S: Final = 10.0
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4  # sys/mount.h


def is_supported() -> str:
    """Return "" if this machine's kernel has what the native front needs, else what is missing."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} is not Linux"
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    if release and (int(release[1]), int(release[2])) < KERNEL_MIN:
        return f"Linux {release[0]} speaks an older FUSE protocol than 7.31 (Linux 5.4)"
    return ""


def mount(mountpoint: Path, *, source: str) -> int:
    """Mount at *mountpoint*, read-only, nosuid, nodev, and return the descriptor to serve it by.

    *source* is what the kernel's table of mounts shows. Root's mounts are for all users.

    Raises:
        MountError: it cannot be mounted; nothing is left behind.
    """
    return _by_root(mountpoint, source) if os.geteuid() == 0 else by_fusermount(mountpoint, source)


def _by_root(mountpoint: Path, source: str) -> int:
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MountError(f"{DEVICE}: {error.strerror}: modprobe fuse, or see docs/admin.md") from None
    # rootmode is octal (fuse(4)): a directory.
    options = f"fd={descriptor},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    place = os.fsencode(mountpoint)
    if libc.mount(source.encode(), place, TYPE.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        reason = os.strerror(ctypes.get_errno())
        os.close(descriptor)
        raise MountError(f"{mountpoint} cannot be mounted: {reason}")
    return descriptor


def by_fusermount(mountpoint: Path, source: str) -> int:
    """Do as `mount` through fusermount3, which may mount for plain users, over what it calls _FUSE_COMMFD.

    Raises:
        MountError.
    """
    ours, its = socket.socketpair()
    options = f"ro,nosuid,nodev,default_permissions,subtype=torrentfs,fsname={source}"
    command = ["fusermount3", "-o", options, "--", str(mountpoint)]
    with ours, its:
        ours.settimeout(FUSERMOUNT_DEADLINE_S)
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "_FUSE_COMMFD": str(its.fileno())},
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FUSERMOUNT_DEADLINE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MountError(f"{mountpoint} cannot be mounted: {error}") from None
        its.close()
        descriptor = _received(ours)
    if done.returncode != 0 or descriptor is None:
        if descriptor is not None:
            os.close(descriptor)
        raise MountError(f"{mountpoint} cannot be mounted: {done.stderr.strip() or 'fusermount3 failed'}")
    os.set_blocking(descriptor, False)
    return descriptor


def plain(name: str) -> str:
    """Return a name without what has a meaning in a list of mount options."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) or "torrentfs"


def _received(connection: socket.socket) -> int | None:
    """Return the descriptor that came over *connection* (unix(7), SCM_RIGHTS), if one did."""
    descriptors = array.array("i")
    with suppress(OSError):
        _, messages, _, _ = connection.recvmsg(
            1, socket.CMSG_SPACE(descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in messages:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors[0] if descriptors else None
