"""This module builds a tree of an archive's members, and refuses those that would leave it or lie. No I/O."""

import stat
from dataclasses import dataclass
from pathlib import Path

from torrentfs.errors import PublishError
from torrentfs.repository.manifest_format import (
    MTIME_NS_LIMIT,
    NAME_LENGTH_MAX,
    TARGET_LENGTH_MAX,
    XATTR_NAME_LENGTH_MAX,
    XATTRS_LENGTH_MAX,
    xattrs_length,
)
from torrentfs.repository.publisher.nodes import DEPTH_MAX, Node, walk

ENTRY_COUNT_MAX = (1 << 24) - 1
PATH_LENGTH_MAX = 64 * 1024
IMPLIED_MODE = stat.S_IFDIR | 0o755
"""Of a directory that an archive does not hold itself; its time is 0, for there is none to take."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a file's contents are in the spool: its ranges, one after the other from *offset*."""

    offset: int
    ranges: list[tuple[int, int]]


class ArchiveTree:
    """Takes members in the order of the archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: dict[bytes, Node] = {b"": Node(b"", IMPLIED_MODE, 0, children=[])}
        self._implied = {b""}

    def add(self, name: bytes, node: Node) -> None:
        """Take a member that *name* says the place of.

        Raises:
            PublishError: its place is outside, taken, or below something that is no directory.
        """
        place = self._place(name)
        self._check(name, node)
        if node.is_directory and place in self._implied:
            self._implied.discard(place)
            known = self._names[place]
            known.mode, known.mtime_ns, known.xattrs = node.mode, node.mtime_ns, node.xattrs
            return
        if place in self._names:
            raise self._refuse(name, "is in the archive twice")
        self._insert(name, place, node)

    def link(self, name: bytes, target: bytes) -> None:
        """Take a hard link to an earlier member.

        Raises:
            PublishError: there is no such file, or as with `add`.
        """
        place, leader = self._place(name), self._names.get(self._place(target))
        if leader is None or leader.is_directory:
            raise self._refuse(name, "is a hard link to what is no earlier file of the archive")
        if place in self._names:
            raise self._refuse(name, "is in the archive twice")
        leader = leader.leader or leader
        node = Node(b"", leader.mode, leader.mtime_ns, leader.size, leader.target, leader.xattrs)
        node.leader, node.origin = leader, leader.origin
        leader.nlink += 1
        self._insert(name, place, node)

    def finish(self) -> Node:
        """Return the root of the whole tree, its names sorted."""
        root = self._names[b""]
        self._names.clear()
        leaders: dict[int, Node] = {}
        directories = [root]
        while directories:
            children = directories.pop().children or []
            children.sort(key=lambda node: node.name)
            directories += [child for child in children if child.is_directory]
        for _, node in walk(root):
            group = node.leader or node
            if group.nlink > 1:
                _settle_link(node, leaders.setdefault(id(group), node), group.nlink)
        return root

    def refuse(self, name: bytes, why: str) -> PublishError:
        """Return the error that names a member."""
        return self._refuse(name, why)

    def _place(self, name: bytes) -> bytes:
        if len(name) > PATH_LENGTH_MAX or b"\0" in name:
            raise self._refuse(name[:256], "has a name that cannot be")
        if name.startswith(b"/"):
            raise self._refuse(name, "has an absolute name: it would leave the package")
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise self._refuse(name, "has '..' in its name: it would leave the package")
        if len(parts) > DEPTH_MAX or any(len(part) > NAME_LENGTH_MAX for part in parts):
            raise self._refuse(name[:256], "has a name that is too long or too deep")
        return b"/".join(parts)

    def _insert(self, name: bytes, place: bytes, node: Node) -> None:
        if len(self._names) >= ENTRY_COUNT_MAX:
            raise PublishError(f"{self.path}: an archive of more than {ENTRY_COUNT_MAX} members")
        parent, _, node.name = place.rpartition(b"/")
        children = self._directory(name, parent).children
        assert children is not None
        children.append(node)
        self._names[place] = node

    def _directory(self, name: bytes, place: bytes) -> Node:
        """Return a directory, and make those above that the archive has not mentioned yet."""
        missing = []
        while (found := self._names.get(place)) is None:
            missing.append(place)
            place = place.rpartition(b"/")[0]
        if not found.is_directory:
            # A link is one of these: whatever follows it, nothing is ever written through it.
            raise self._refuse(name, "lies below something that is no directory")
        for place in reversed(missing):
            child = Node(place.rpartition(b"/")[2], IMPLIED_MODE, 0, children=[])
            assert found.children is not None
            found.children.append(child)
            self._names[place] = found = child
            self._implied.add(place)
        return found

    def _check(self, name: bytes, node: Node) -> None:
        if stat.S_ISLNK(node.mode) and (not 0 < node.size <= TARGET_LENGTH_MAX or b"\0" in node.target):
            raise self._refuse(name, "is a symbolic link whose target cannot be")
        if not -MTIME_NS_LIMIT <= node.mtime_ns < MTIME_NS_LIMIT:
            raise self._refuse(name, "has an absurd time")
        if any(not 0 < len(key) <= XATTR_NAME_LENGTH_MAX or b"\0" in key for key, _ in node.xattrs):
            raise self._refuse(name, "has an extended attribute with a name that cannot be")
        if len({key for key, _ in node.xattrs}) != len(node.xattrs):
            raise self._refuse(name, "has an extended attribute twice")
        if xattrs_length(node.xattrs) > XATTRS_LENGTH_MAX:
            raise self._refuse(name, f"has more than {XATTRS_LENGTH_MAX} bytes of extended attributes")

    def _refuse(self, name: bytes, why: str) -> PublishError:
        shown = name.decode("utf-8", "backslashreplace")
        return PublishError(f"{self.path}: {shown!a} {why}")


def _settle_link(node: Node, leader: Node, nlink: int) -> None:
    """Make the first of a group in path order its leader, whatever the archive's order was."""
    node.nlink = nlink
    node.leader = None if leader is node else leader
