"""This module numbers inodes, so that a number means the same file on every node and after every restart.

FUSE's root is 1. An entry of a revision is its ordinal and its entry number, both signed facts. A name above
the packages has bit 62 and a hash of its path. Numbers stay below 2**63: some programs read them as signed.
"""

from typing import Final, NewType

import xxhash

Inode = NewType("Inode", int)

ROOT: Final = Inode(1)
ENTRY_BITS: Final = 24
ENTRY_MASK: Final = (1 << ENTRY_BITS) - 1
UPPER_BIT: Final = 1 << 62
UPPER_MASK: Final = (1 << 61) - 1


def of_entry(ordinal: int, number: int) -> Inode:
    """Number entry *number* of revision *ordinal*, which is at least 1."""
    return Inode(ordinal << ENTRY_BITS | number)


def of_path(path: str) -> Inode:
    """Number a directory or alias above the packages by its path from the root ("" is the root)."""
    if not path:
        return ROOT
    return Inode(UPPER_BIT | xxhash.xxh3_64_intdigest(path.encode()) & UPPER_MASK)


def is_upper(inode: Inode) -> bool:
    """Tell whether *inode* lies above the packages."""
    return inode >= UPPER_BIT or inode == ROOT
