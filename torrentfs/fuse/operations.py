"""This module answers requests in the kernel's own format from a `Filesystem`: no descriptor, no clock.

Each operation takes the inode and the body of a request and returns the parts of a reply's body, or raises:
`TreeError` for an errno, `NotCached` for bytes that are needed first. It is an attempt that may be repeated.
"""

import errno
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from torrentfs.errors import TooSmall
from torrentfs.fuse import protocol
from torrentfs.fuse.filesystem import (
    BLOCK_SIZE,
    FIXED_TIMEOUT_S,
    NAME_LENGTH_MAX,
    UPPER_TIMEOUT_S,
    Filesystem,
)
from torrentfs.fuse.protocol import Opcode
from torrentfs.repository.metainfo import NotCached
from torrentfs.tree import Attributes, Inode, Slice

Parts: TypeAlias = Sequence[bytes | memoryview]
Operation: TypeAlias = Callable[[Inode, memoryview], Parts]

REPLY_MAX: Final = 1 << 20
"""The longest listing or attribute that is made at once, whatever the kernel has room for."""

FIXED_ERRORS: Final[dict[int, int]] = {
    # Answered so once, the kernel never asks again: it opens and closes files itself and keeps their pages,
    # and caches listings (linux/fuse.h, FUSE_NO_OPEN_SUPPORT of 7.23 and FUSE_NO_OPENDIR_SUPPORT of 7.29).
    Opcode.OPEN: errno.ENOSYS,
    Opcode.OPENDIR: errno.ENOSYS,
    Opcode.STATX: errno.ENOSYS,
    # A start of Python asks 127 times whether a file is a terminal.
    Opcode.IOCTL: errno.ENOTTY,
}
"""Operations that are refused alike for every inode; any other that is not known is ENOSYS."""
SILENT: Final[frozenset[int]] = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY})
"""Requests that have no reply. Inodes are signed facts: nothing here counts who knows one."""


class Operations:
    """The requests that a read-only tree has answers to; `table` finds them by opcode."""

    def __init__(self, filesystem: Filesystem, was_read: Callable[[Inode, Sequence[Slice]], None]) -> None:
        """Tell *was_read* of every read that is answered at once: the slices that it got."""
        self._filesystem = filesystem
        self._was_read = was_read
        self._uid, self._gid = filesystem.tree.owner
        self._lookup = filesystem.lookup
        self._attributes = filesystem.attributes
        self._plan = filesystem.plan
        self._parts = filesystem.parts
        self._absent_for_good = (protocol.negative_entry_out(FIXED_TIMEOUT_S),)
        self._absent = (protocol.negative_entry_out(UPPER_TIMEOUT_S),)
        self.table: dict[int, Operation] = {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: self.getattr,
            Opcode.READLINK: self.readlink,
            Opcode.READ: self.read,
            Opcode.READDIR: self.readdir,
            Opcode.READDIRPLUS: self.readdirplus,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.STATFS: self.statfs,
            Opcode.DESTROY: self.destroy,
        }
        self.names = {opcode: Opcode(opcode).name.lower() for opcode in self.table}

    def lookup(self, parent: Inode, body: memoryview) -> Parts:
        """Find a name; one that is not there is an answer that the kernel keeps."""
        found = self._lookup(parent, protocol.name_in(body))
        if found is not None:
            return (self._entry(found),)
        return self._absent_for_good if self._filesystem.is_fixed(parent) else self._absent

    def getattr(self, inode: Inode, body: memoryview) -> Parts:
        """Describe an inode."""
        found = self._attributes(inode)
        timeout_s = FIXED_TIMEOUT_S if found.fixed else UPPER_TIMEOUT_S
        return (protocol.attr_out(self._attr(found), timeout_s),)

    def readlink(self, inode: Inode, body: memoryview) -> Parts:
        """Return a symbolic link's target."""
        return (self._filesystem.readlink(inode),)

    def read(self, inode: Inode, body: memoryview) -> Parts:
        """Return a range of a file."""
        _, offset, size = protocol.read_in(body)
        slices = self._plan(inode, offset, size)
        parts = self._parts(slices)
        self._was_read(inode, slices)
        return parts

    def readdir(self, inode: Inode, body: memoryview) -> Parts:
        """List names, as many as there is room for."""
        return self._listing(
            inode,
            body,
            lambda found, name, position: protocol.dirent(found.inode, position, found.mode, name),
        )

    def readdirplus(self, inode: Inode, body: memoryview) -> Parts:
        """List names with what a lookup of each would say: `ls -l` and `find` need no lookups then."""
        return self._listing(
            inode,
            body,
            lambda found, name, position: protocol.direntplus(
                self._entry(found), found.inode, position, found.mode, name
            ),
        )

    def getxattr(self, inode: Inode, body: memoryview) -> Parts:
        """Return an extended attribute, or its length."""
        size, name = protocol.getxattr_in(body)
        return _sized(self._filesystem.xattr(inode, name), size)

    def listxattr(self, inode: Inode, body: memoryview) -> Parts:
        """Return the names of all extended attributes, or their length."""
        size = protocol.listxattr_in(body)
        return _sized(b"".join(name + b"\0" for name in self._filesystem.xattr_names(inode)), size)

    def statfs(self, inode: Inode, body: memoryview) -> Parts:
        """Say what `df` shows: the bytes and entries of all that paths show, and no room."""
        totals = self._filesystem.tree.totals
        blocks = -(-totals.size // BLOCK_SIZE)
        return (protocol.statfs_out(blocks, totals.entries, BLOCK_SIZE, NAME_LENGTH_MAX),)

    def destroy(self, inode: Inode, body: memoryview) -> Parts:
        """Say goodbye at an unmount."""
        return ()

    def _listing(
        self, inode: Inode, body: memoryview, record: Callable[[Attributes, bytes, int], bytes]
    ) -> Parts:
        _, start, room = protocol.read_in(body)
        room = min(room, REPLY_MAX)
        records: list[bytes] = []
        try:
            for position, name, found in self._filesystem.readdir(inode, start):
                made = record(found, name, position)
                room -= len(made)
                if room < 0:
                    if not records:  # an empty answer would be the end of the directory
                        raise TooSmall(f"{len(made)} bytes of a listing are too many")
                    break
                records.append(made)
        except NotCached:
            # What there is already is an answer: the kernel comes again for the rest.
            if not records:
                raise
        return (b"".join(records),)

    def _attr(self, found: Attributes) -> bytes:
        return protocol.attr(
            found.inode,
            found.size,
            found.blocks,
            found.mtime_ns,
            found.mode,
            found.nlink,
            self._uid,
            self._gid,
        )

    def _entry(self, found: Attributes) -> bytes:
        return protocol.entry_out(
            self._attr(found),
            found.inode,
            FIXED_TIMEOUT_S if found.fixed_name else UPPER_TIMEOUT_S,
            FIXED_TIMEOUT_S if found.fixed else UPPER_TIMEOUT_S,
        )


def _sized(value: bytes, size: int) -> Parts:
    """Return an attribute as getxattr(2) wants it: just its length if *size* is 0."""
    if size == 0:
        return (protocol.xattr_size_out(len(value)),)
    if len(value) > size:
        raise TooSmall(f"{len(value)} bytes into {size}")
    return (value,)
