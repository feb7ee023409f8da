"""This module is where tasks run: ext4 (whatever holds the material) and a node's mount, in a given state."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from contrib.bench.kernel import drop_caches
from contrib.bench.tasks import Corner, State
from contrib.grid import Node

SETTLE_S = 0.5


class Place(Protocol):
    """Somewhere to run tasks."""

    name: str
    states: Sequence[State]
    corner: Corner

    def prepare(self, state: State) -> None:
        """Bring the place into *state*; hot takes what ran before, or a run that is not measured."""


@dataclass(slots=True)
class Disk:
    """The material where it lies."""

    corner: Corner
    name: str = "ext4"
    states: Sequence[State] = (State.COLD, State.HOT)

    def prepare(self, state: State) -> None:
        if state is State.COLD:
            drop_caches()


@dataclass(slots=True)
class Mount:
    """The material published, on a node of its own."""

    node: Node
    corner: Corner
    name: str = "mount"
    states: Sequence[State] = (State.COLD, State.WARM, State.HOT)
    mount_s: float = 0.0

    def prepare(self, state: State) -> None:
        if state is State.HOT and self.node.pid:
            return
        self.node.umount()
        if state is State.COLD:
            self.node.forget()
        drop_caches()
        self.mount_s = self.node.mount()
        time.sleep(SETTLE_S)

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


def mount_options(fuse: str | None, settings: Sequence[str]) -> list[str]:
    """Return the options of `torrentfs mount` that were asked for."""
    front = ["--fuse", fuse] if fuse else []
    return front + [word for setting in settings for word in ("--set", setting)]
