"""This module reads the members of a zip archive into a tree and a spool."""

import stat
import struct
import zipfile
import zlib
from calendar import timegm
from typing import IO

from torrentfs.errors import PublishError
from torrentfs.repository.manifest_format import TARGET_LENGTH_MAX
from torrentfs.repository.publisher.archive_stream import Spool
from torrentfs.repository.publisher.archive_tree import ENTRY_COUNT_MAX, ArchiveTree, Stored
from torrentfs.repository.publisher.nodes import Node

_COPY_LENGTH = 1024 * 1024
_TIMESTAMP = 0x5455
"""Extra field with the time in seconds since 1970: the plain one has two-second steps and no time zone."""
_UNIX = 3


def read_zip(file: IO[bytes], tree: ArchiveTree, spool: Spool) -> None:
    """Read a zip archive.

    Raises:
        PublishError: it is damaged, or holds what cannot be published.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if len(archive.filelist) > ENTRY_COUNT_MAX:
                raise PublishError(f"{tree.path}: an archive of more than {ENTRY_COUNT_MAX} members")
            for member in archive.filelist:
                _add(archive, member, tree, spool)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
        IndexError,
        KeyError,
        struct.error,
        zlib.error,
    ) as error:
        raise PublishError(f"{tree.path}: damaged or unreadable archive: {error}") from error
    spool.flush()


def _add(archive: zipfile.ZipFile, member: zipfile.ZipInfo, tree: ArchiveTree, spool: Spool) -> None:
    name = _name(member)
    mode = member.external_attr >> 16 if member.create_system == _UNIX else 0
    kind, bits, mtime_ns = stat.S_IFMT(mode), mode & 0o7777, _mtime_ns(member)
    if name.endswith(b"/") or kind == stat.S_IFDIR:
        tree.add(name, Node(b"", stat.S_IFDIR | (bits or 0o755), mtime_ns, children=[]))
    elif kind == stat.S_IFLNK:
        if member.file_size > TARGET_LENGTH_MAX:
            raise tree.refuse(name, "is a symbolic link whose target cannot be")
        with archive.open(member) as link:
            target = link.read(TARGET_LENGTH_MAX + 1)
        tree.add(name, Node(b"", stat.S_IFLNK | 0o777, mtime_ns, len(target), target))
    elif kind in (stat.S_IFREG, 0):
        start = spool.offset
        with archive.open(member) as content:
            while data := content.read(_COPY_LENGTH):
                spool.write(data)
        size = spool.offset - start
        node = Node(b"", stat.S_IFREG | (bits or 0o644), mtime_ns, size, origin=Stored(start, [(0, size)]))
        tree.add(name, node)
    else:
        raise tree.refuse(name, "is a device, fifo or of an unknown type, which cannot be published")


def _name(member: zipfile.ZipInfo) -> bytes:
    """Return the name as it is in the archive: UTF-8 if it says so, else the bytes whatever they mean."""
    return member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437", "surrogateescape")


def _mtime_ns(member: zipfile.ZipInfo) -> int:
    extra = member.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _TIMESTAMP and length >= 5 and len(extra) >= 9 and extra[4] & 1:
            return int(struct.unpack_from("<i", extra, 5)[0]) * 10**9
        extra = extra[4 + length :]
    # Without a time zone, any is as good; UTC is the same on every machine.
    return timegm((*member.date_time, 0, 0, 0)) * 10**9
