"""This module is where tasks run: ext4 (whatever holds the material) and a node's mount, in a given state.

cold: nothing cached anywhere, on a mount the node's cache is empty. warm: the node's cache is full, the
kernel's caches are dropped, the mount is fresh. hot: once more on the same mount.
"""

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from contrib.bench.kernel import Usage, drop_caches, usage
from contrib.bench.tasks import Corner
from contrib.grid import Node

SETTLE_S = 0.5


class State(enum.Enum):
    """How near the bytes are when a task starts."""

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"


class Place(Protocol):
    """Somewhere to run tasks."""

    name: str
    states: Sequence[State]
    corner: Corner

    def prepare(self, state: State) -> None:
        """Bring the place into *state*; called in the order of `states`."""

    def usage(self) -> Usage | None:
        """Return what the process that serves this place uses, if there is one."""


@dataclass(slots=True)
class Disk:
    """The material where it lies."""

    corner: Corner
    name: str = "ext4"
    states: Sequence[State] = (State.COLD, State.HOT)

    def prepare(self, state: State) -> None:
        if state is State.COLD:
            drop_caches()

    def usage(self) -> Usage | None:
        return None


@dataclass(slots=True)
class Mount:
    """The material published, on a node of its own."""

    node: Node
    corner: Corner
    name: str = "mount"
    states: Sequence[State] = (State.COLD, State.WARM, State.HOT)
    mount_s: float = 0.0

    def prepare(self, state: State) -> None:
        if state is State.HOT:
            return
        self.node.umount()
        if state is State.COLD:
            self.node.forget()
        drop_caches()
        self.mount_s = self.node.mount()
        time.sleep(SETTLE_S)

    def usage(self) -> Usage | None:
        return usage(self.node.pid)

    def fetched_bytes(self) -> int:
        """Return the payload bytes that the node got since it was mounted."""
        moved = self.node.stats()["bytes"]
        return int(moved["from_peers"] + moved["from_mirrors"])


def mounted(corner: Corner, node: Node, tree_path: str, file_path: str) -> Corner:
    """Return *corner* as it appears on *node*'s mount."""
    return replace(
        corner,
        tree=replace(corner.tree, prefix=node.mountpoint / tree_path),
        file=node.mountpoint / file_path,
    )
