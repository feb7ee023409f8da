"""This module is what a server has its keeper hold: for each mount a few descriptors, by name.

    KEY.config     the request, see `request`
    KEY.control    the listening control socket
    KEY.catalog    the catalog that the kernel was shown, see `repository.catalog`
    KEY.journal    the requests in flight, see `fuse.journal`
    KEY.fuse       /dev/fuse
    node.control   the listening control socket of the cache

KEY is `runtime.key_of` the mountpoint.
"""

import os
from collections.abc import Mapping

from torrentfs.daemon.keeper import HELD_MAX
from torrentfs.daemon.keeping import Keeping
from torrentfs.daemon.request import CONFIG, NODE_CONTROL

CONTROL, CATALOG, JOURNAL, FUSE = "control", "catalog", "journal", "fuse"
KINDS = (CONFIG, CONTROL, CATALOG, JOURNAL, FUSE)
MOUNTS_MAX = (HELD_MAX - 1) // len(KINDS)


class Holdings:
    """Descriptors by name, the keeper's and ours."""

    def __init__(self, keeping: Keeping, held: Mapping[str, int]) -> None:
        """Take over *held*, which the keeper has too."""
        self._keeping = keeping
        self._held = dict(held)

    @property
    def mounts(self) -> list[str]:
        """The keys of all mounts, in the order in which they came."""
        return [name.removesuffix(f".{CONFIG}") for name in self._held if name.endswith(f".{CONFIG}")]

    @property
    def unfinished(self) -> set[str]:
        """The keys under which something is held, and that are no mount."""
        return {name.rpartition(".")[0] for name in self._held} - {
            NODE_CONTROL.rpartition(".")[0],
            *self.mounts,
        }

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> int:
        """Return a descriptor, which stays ours here."""
        return self._held[name]

    def dup(self, name: str) -> int:
        """Return a descriptor that is the caller's to close."""
        return os.dup(self._held[name])

    def put(self, name: str, descriptor: int) -> None:
        """Hold *descriptor*, which is ours from now on, in place of one of that name."""
        former = self._held.get(name)
        self._held[name] = descriptor
        self._keeping.hold(name, descriptor)
        if former is not None:
            os.close(former)

    def drop(self, name: str) -> None:
        """Let go of a descriptor, if it is held."""
        if name in self._held:
            os.close(self._held.pop(name))
            self._keeping.drop(name)

    def drop_mount(self, key: str) -> None:
        """Let go of all that is held for a mount; first of what makes it one."""
        for kind in KINDS:
            self.drop(f"{key}.{kind}")
