"""This module makes notifications: what the server tells the kernel unasked, whole messages, `unique` 0.

Writing one may block until a request is answered, so never write it where requests are answered. ENOENT says
that the kernel does not know the inode or name; EINVAL, that it does not know such a notification.
"""

import struct
from collections.abc import Sequence
from typing import Final

from torrentfs.errors import ProtocolError
from torrentfs.fuse.protocol.codes import SIZE_MAX, NotifyCode
from torrentfs.fuse.protocol.replies import OUT_HEADER, check_name, pack

INVAL_INODE_OUT: Final = struct.Struct("=Qqq")
"""ino, off, len."""
INVAL_ENTRY_OUT: Final = struct.Struct("=QII")
"""parent, namelen, flags; the name follows, with a NUL that namelen does not count."""
STORE_OUT: Final = struct.Struct("=QQI4x")
"""nodeid, offset, size; the data follow."""
PRUNE_OUT: Final = struct.Struct("=I12x")
"""count; as many inodes follow, u64 each."""


def inval_inode(inode: int, offset: int, length: int) -> bytes:
    """Make the kernel forget an inode's attributes and *length* bytes at *offset* (0: to the end).

    A negative *offset* means the attributes alone.
    """
    return _notification(NotifyCode.INVAL_INODE, pack(INVAL_INODE_OUT, inode, offset, length))


def inval_entry(parent: int, name: bytes) -> bytes:
    """Make the kernel forget a name.

    Raises:
        ProtocolError: it is none.
    """
    check_name(name)
    return _notification(NotifyCode.INVAL_ENTRY, pack(INVAL_ENTRY_OUT, parent, len(name), 0) + name + b"\0")


def store(inode: int, offset: int, length: int) -> bytes:
    """Make the head of *length* bytes for the page cache; writev(2) must take it and the data together.

    Raises:
        ProtocolError: the offset is none of a file's, or the length none of a message's.
    """
    if offset > SIZE_MAX:
        raise ProtocolError(f"{offset} is beyond where any file ends")
    return _notification(NotifyCode.STORE, pack(STORE_OUT, inode, offset, length), length)


def resend() -> bytes:
    """Make the kernel send again what it sent and has no answer to (7.40)."""
    return _notification(NotifyCode.RESEND, b"")


def prune(inodes: Sequence[int]) -> bytes:
    """Make the kernel drop those of *inodes* that nobody uses (7.45)."""
    body = pack(PRUNE_OUT, len(inodes)) + pack(struct.Struct(f"={len(inodes)}Q"), *inodes)
    return _notification(NotifyCode.PRUNE, body)


def _notification(code: NotifyCode, body: bytes, following: int = 0) -> bytes:
    return pack(OUT_HEADER, OUT_HEADER.size + len(body) + following, code, 0) + body
