"""This module gives a daemon as many files and sockets as the system allows."""

import resource
from contextlib import suppress

import msgspec

from torrentfs.config import SwarmSettings

FILES_MAX = 1 << 16
"""Open files and sockets, should the system allow that many: 16 a mount, and peers."""


def raise_files() -> int:
    """Have as many open files and sockets as we may, and return how many that are."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES_MAX if most == resource.RLIM_INFINITY else min(most, FILES_MAX)
    if now != resource.RLIM_INFINITY and now < files:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return files


def with_room(settings: SwarmSettings) -> SwarmSettings:
    """Return *settings* with as many connections as we may have: a seeder has a node's for each torrent."""
    return msgspec.structs.replace(
        settings, connections_max=max(settings.connections_max, raise_files() // 2)
    )
