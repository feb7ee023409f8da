"""This module decides where a daemon's control socket lies; these are all that knows a user's daemons."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from torrentfs.errors import ControlError

SOCKET_SUFFIX = ".sock"
DEVICE_SUFFIX = ".device"
SOCKETS_MAX = 1000
"""How many sockets are looked at, should somebody fill the directory."""


def runtime_directory() -> Path:
    """Return the directory of this user's control sockets, made if need be.

    /run/torrentfs for root, else $XDG_RUNTIME_DIR/torrentfs, else one below the temporary directory.

    Raises: ControlError: it belongs to somebody else, who could then answer in a daemon's place.
    """
    directory = _choose()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise ControlError(f"{directory}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ControlError(
            f"{directory} must be a directory that only its owner, this user, may write: remove it"
        )
    return directory


def _choose() -> Path:
    override = os.environ.get("TORRENTFS_RUNTIME_DIR")
    if override:
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run/torrentfs")
    user = os.environ.get("XDG_RUNTIME_DIR")
    return Path(user, "torrentfs") if user else Path(tempfile.gettempdir(), f"torrentfs-{os.geteuid()}")


def socket_path(place: Path) -> Path:
    """Return the control socket of *place*, a mountpoint or repository.

    Its name is hashed: a socket's ends at 107 bytes.
    """
    return runtime_directory() / f"{key_of(place)}{SOCKET_SUFFIX}"


def key_of(mountpoint: Path) -> str:
    """Return the name of *mountpoint* (resolved) in file names, and for a keeper."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]


def device_path(mountpoint: Path) -> Path:
    """Return the file with what is noted of *mountpoint* while it is served, see `presence`."""
    return socket_path(mountpoint).with_suffix(DEVICE_SUFFIX)


def sockets() -> list[Path]:
    """Return all control sockets of this user, dead ones too."""
    return sorted(runtime_directory().glob(f"*{SOCKET_SUFFIX}"))[:SOCKETS_MAX]
