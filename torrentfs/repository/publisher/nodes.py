"""This module defines the tree that a source becomes before it is published, and what reading it takes."""

import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torrentfs.repository.manifest_format import Extent

DEPTH_MAX = 1024
"""Directories inside each other."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes in *count* frames from number *first*; all but the last are full, the first starts at *skip*."""

    first: int
    count: int
    skip: int
    length: int


@dataclass(slots=True, eq=False)
class Content:
    """The bytes of one or more files, stored once: in *runs* of new frames and extents of earlier packs (by
    their ids in the index), or at the index's row *row*.

    *segments* are the (offset, length) between holes, None without any; *path* is where tar shows it whole.
    """

    digest: bytes
    size: int
    segments: list[tuple[int, int]] | None = None
    runs: tuple[Run | Extent, ...] = ()
    row: int = 0
    path: bytes = b""


@dataclass(slots=True, eq=False)
class Node:
    """A directory, file or symbolic link that is to be published.

    *leader* is the first of a group of hard links in path order, None in the leader itself; *nlink* how many
    of the group are in the tree. *origin* is what the source itself needs to know.
    """

    name: bytes
    mode: int
    mtime_ns: int
    size: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    children: "list[Node] | None" = None
    leader: "Node | None" = None
    nlink: int = 1
    origin: object = None
    content: Content | None = None
    number: int = 0
    first_child: int = 0

    @property
    def is_directory(self) -> bool:
        """Whether it may have children."""
        return self.children is not None

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)


class Reader(Protocol):
    """An open file of a source."""

    ranges: list[tuple[int, int]]
    """The (offset, length) that may hold something else than zeros: the rest are holes."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes, or raise PublishError."""


class Source(Protocol):
    """A tree that can be published, and the bytes of its files. Paths are relative to the root, b""."""

    root: Node

    def read(self, node: Node, path: bytes) -> bytes | None:
        """Return all of a small file; None if it may have holes, so that it has to be opened."""

    def open(self, node: Node, path: bytes) -> AbstractContextManager[Reader]:
        """Open a file; leaving it raises PublishError if it has changed since the tree was read."""

    def check(self) -> None:
        """Raise PublishError if the tree has changed since it was read."""

    def close(self) -> None:
        """Give up what reading needed."""


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Iterate over (path, node) in path order, each directory before what it holds."""
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if node.children:
            prefix = path + b"/" if path else b""
            stack += [(prefix + child.name, child) for child in reversed(node.children)]
