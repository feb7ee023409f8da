"""This module is what an admin asked for: a mount's settings, and whence they came, to read them again later.

A keeper holds it as a file in memory, so that a server that died has it whatever became of the disk.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from torrentfs.config import MountConfiguration
from torrentfs.daemon.settings import complete
from torrentfs.errors import MountError, TrustError, UsageError
from torrentfs.fuse.mounting import is_supported

CONFIG = "config"
"""What a keeper holds a request as, after the mount's key and a dot."""
NODE_CONTROL = "node.control"
"""What it holds the control socket of a cache as."""
KEY_LENGTH = 16
FIXED = ("cache", "repository", "front")
"""What a mount keeps until it is ended."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mount: its complete settings, the options that were given, and the file that `--config` named."""

    configuration: MountConfiguration
    values: dict[str, Any]
    repository: str
    """Names what the cache knows of the repository, whatever URL that came from, by its root.json."""
    file: str = ""

    @property
    def mountpoint(self) -> Path:
        return Path(self.configuration.mountpoint)

    @property
    def cache(self) -> Path:
        return Path(self.configuration.cache).resolve()

    @property
    def front(self) -> str:
        """Who is to speak with the kernel, "native" or "pyfuse3"."""
        chosen = self.configuration.mount.fuse
        if chosen == "auto":
            return "pyfuse3" if is_supported() else "native"
        return chosen


def made(mountpoint: Path, file: Path | None, values: dict[str, Any]) -> Request:
    """Return the request for *mountpoint* with the settings of *file*, or of the one that is found.

    Raises: UsageError, TrustError.
    """
    named = os.path.abspath(file) if file else ""  # noqa: PTH100 - resolve() would follow links
    configuration = complete(mountpoint, file, values)
    try:
        digest = hashlib.sha256(Path(configuration.trust).read_bytes()).hexdigest()
    except OSError as error:
        raise TrustError(f"{configuration.trust}: {error.strerror}") from None
    return Request(configuration, values, digest[:KEY_LENGTH], named)


def again(request: Request) -> Request:
    """Return *request* with its settings as they are now.

    Raises: UsageError, TrustError.
    """
    file = Path(request.file) if request.file else None
    anew = made(request.mountpoint, file, request.values)
    changed = [name for name in FIXED if getattr(anew, name) != getattr(request, name)]
    if changed:
        raise UsageError(
            f"{request.mountpoint}: another {' and '.join(changed)} takes effect when it is mounted anew only"
        )
    return anew


def encode(request: Request) -> bytes:
    return msgspec.json.encode(request)


def decode(data: bytes) -> Request:
    """Return what `encode` made.

    Raises: UsageError: it is none, or of another version of this program.
    """
    try:
        return msgspec.json.decode(data, type=Request)
    except msgspec.DecodeError as error:
        raise UsageError(f"this version cannot read what a mount was asked with: {error}") from None


def decode_all(given: object) -> Sequence[Request]:
    """Return the requests in the list *given*, as JSON has it.

    Raises: UsageError.
    """
    try:
        return msgspec.convert(given, list[Request])
    except msgspec.ValidationError as error:
        raise UsageError(f"this version cannot read what a mount was asked with: {error}") from None


def offers(requests: Sequence[Request]) -> dict[str, str]:
    """Return *requests* for a server of another version, which need not understand them."""
    return {str(request.mountpoint): encode(request).decode() for request in requests}


def offers_of(given: object) -> dict[str, str]:
    """Return what `offers` made, by mountpoint.

    Raises: UsageError: it is something else.
    """
    try:
        return msgspec.convert(given, dict[str, str])
    except msgspec.ValidationError as error:
        raise UsageError(f"not what mounts are asked with: {error}") from None


def in_memory(name: str, data: bytes) -> int:
    """Return the descriptor of a file in memory (memfd_create(2)) that holds *data*, close-on-exec.

    Raises: MountError: there is no memory.
    """
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        with open(os.dup(descriptor), "wb") as file:  # noqa: PTH123 - it has no path
            file.write(data)
    except OSError as error:
        raise MountError(f"no memory for a mount's settings: {error.strerror}") from None
    return descriptor


def contents(descriptor: int) -> bytes:
    """Return what `in_memory` was given."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
