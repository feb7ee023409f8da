"""This module holds what a manifest's reader and writer share: its records, layouts and limits.

``docs/pack-format.md`` specifies the format. Nothing is read or written here.
"""

import struct
from collections.abc import Iterable

import msgspec

MAGIC = b"TFSMANIF"
VERSION = 1
HEADER = struct.Struct("<8sHHI")
"""Magic, version, number of sections, reserved (0)."""
SECTION = struct.Struct("<8sQQI")
"""Name, offset, length, flags."""
FLAG_REQUIRED = 1
"""A reader that does not know this section must refuse the manifest."""
SECTION_COUNT_MAX = 64

PACK_RECORD = struct.Struct("<32sQI")
"""Info-hash, length, piece length."""
PACK_COUNT_MAX = 1 << 14

INDEX_HEADER = struct.Struct("<II")
"""Number of entries, number of blocks."""
BLOCK_RECORD = struct.Struct("<QIII")
"""Offset in the entries, stored length, raw length, number of the first entry."""
ENTRY_COUNT_MAX = (1 << 24) - 1
BLOCK_COUNT_MAX = 1 << 20
BLOCK_LENGTH_MAX = 64 * 1024
"""Raw bytes of a block of entries, or of a page of extents."""
BLOCK_LENGTH = 32 * 1024
"""Raw bytes at which a writer ends a block: half of it is decoded in vain when one name is looked up."""
BLOCK_STORED_MAX = BLOCK_LENGTH_MAX + 1024

PAGE_RECORD = struct.Struct("<QQII")
"""Offset in the file, offset in the extents, stored length, raw length."""
PAGE_EXTENT_COUNT = 1024
PAGE_COUNT_MAX = 1 << 20
"""Pages of one file: 1024 extents of 256 KiB each make 256 TiB."""
INLINE_EXTENT_COUNT_MAX = 8

HASH_LENGTH = 32
NAME_LENGTH_MAX = 255
TARGET_LENGTH_MAX = 4095
XATTR_NAME_LENGTH_MAX = 255
XATTRS_LENGTH_MAX = 48 * 1024
"""Names and values of one entry's extended attributes, and `XATTR_OVERHEAD` each: an entry fits a block."""
XATTR_OVERHEAD = 8
"""What MessagePack adds to a name and its value at most, rounded up."""
FILE_LENGTH_MAX = (1 << 63) - 1
MTIME_NS_LIMIT = 1 << 63
"""Times are from minus this to below it: until the year 2262."""
HOLE = -1


class Extent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """*length* bytes of a file: ``decoded[skip:skip+length]`` of the frame at [offset, offset+stored).

    *pack* is an index into the manifest's packs; -1 is a hole of *length*, whose other fields are 0.
    """

    pack: int
    offset: int
    stored: int
    skip: int
    length: int


class EntryName(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The first field of an entry alone: decoding stops there."""

    name: bytes


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A directory, file or symbolic link; *mode* is its st_mode, *leader* the entry whose inode it is."""

    name: bytes
    mode: int
    mtime_ns: int
    size: int
    parent: int
    nlink: int
    leader: int
    first_child: int = 0
    child_count: int = 0
    target: bytes = b""
    xattrs: list[tuple[bytes, bytes]] = []
    extents: list[Extent] = []
    first_page: int = 0
    page_count: int = 0
    hole_length: int = 0


def xattrs_length(xattrs: Iterable[tuple[bytes, bytes]]) -> int:
    """Return how many bytes of an entry extended attributes take at most."""
    return sum(len(name) + len(value) + XATTR_OVERHEAD for name, value in xattrs)
