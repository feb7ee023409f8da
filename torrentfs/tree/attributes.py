"""This module says what `stat` shows of a name above the packages, a revision and a manifest's entry."""

import stat
from typing import Final

import msgspec

from torrentfs.repository.catalog import Revision
from torrentfs.repository.manifest import Entry
from torrentfs.tree.inode import ENTRY_BITS, Inode

DIRECTORY_SIZE: Final = 4096
DIRECTORY_BLOCKS: Final = 8
BLOCK: Final = 512
"""The unit of st_blocks, whatever st_blksize says (stat(2))."""

_FORMAT: Final = stat.S_IFMT(0o177777)


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """What the kernel wants to know of an inode; *size* in bytes, *blocks* of 512 bytes.

    *fixed*: these values never change. *fixed_name*: nor does the name that led to them. A revision's root is
    the first and not the second: its path may show another revision tomorrow.
    """

    inode: Inode
    mode: int
    nlink: int
    size: int
    blocks: int
    mtime_ns: int
    fixed: bool = True
    fixed_name: bool = True


def is_directory(shown: Attributes) -> bool:
    """Tell whether it is a directory."""
    return shown.mode & _FORMAT == stat.S_IFDIR


def of_entry(ordinal: int, number: int, entry: Entry) -> Attributes:
    """Describe entry *number* of a revision; hard links show the inode of the first of them."""
    kind = entry.mode & _FORMAT
    leader = number if kind == stat.S_IFDIR else entry.leader
    inode = Inode(ordinal << ENTRY_BITS | leader)
    if kind == stat.S_IFREG:
        blocks = (entry.size - entry.hole_length + BLOCK - 1) // BLOCK
        return Attributes(inode, entry.mode, entry.nlink, entry.size, blocks, entry.mtime_ns)
    if kind == stat.S_IFDIR:
        return Attributes(inode, entry.mode, entry.nlink, DIRECTORY_SIZE, DIRECTORY_BLOCKS, entry.mtime_ns)
    return Attributes(inode, entry.mode, entry.nlink, len(entry.target), 0, entry.mtime_ns)


def of_revision(revision: Revision) -> Attributes:
    """Describe a revision's root from the catalog alone, without its manifest."""
    inode = Inode(revision.ordinal << ENTRY_BITS)
    if stat.S_ISDIR(revision.mode):
        size, blocks = DIRECTORY_SIZE, DIRECTORY_BLOCKS
    else:
        size, blocks = revision.size, (revision.size - revision.hole_length + BLOCK - 1) // BLOCK
    return Attributes(
        inode, revision.mode, revision.nlink, size, blocks, revision.mtime_ns, fixed=True, fixed_name=False
    )


def of_upper_directory(inode: Inode, subdirectories: int, mtime_ns: int) -> Attributes:
    """Describe a directory above the packages, which changes as the catalog does."""
    return Attributes(
        inode,
        stat.S_IFDIR | 0o755,
        2 + subdirectories,
        DIRECTORY_SIZE,
        DIRECTORY_BLOCKS,
        mtime_ns,
        fixed=False,
        fixed_name=False,
    )


def of_alias(inode: Inode, target: bytes, mtime_ns: int) -> Attributes:
    """Describe an alias: a symbolic link above the packages."""
    return Attributes(inode, stat.S_IFLNK | 0o777, 1, len(target), 0, mtime_ns, fixed=False, fixed_name=False)
