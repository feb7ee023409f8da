"""This module reads the members of a tar archive into a tree and a spool. Decompression is `archive`'s."""

import stat
import tarfile
from decimal import Decimal, InvalidOperation
from typing import Any, Self, cast

from torrentfs.errors import PublishError
from torrentfs.repository.manifest_format import FILE_LENGTH_MAX
from torrentfs.repository.publisher.archive_stream import Bounded, Spool
from torrentfs.repository.publisher.archive_tree import ArchiveTree, Stored
from torrentfs.repository.publisher.nodes import Node

SEGMENT_COUNT_MAX = 1 << 20
_XATTR = "SCHILY.xattr."
_COPY_LENGTH = 1024 * 1024
_SECONDS_LIMIT = 1 << 34
"""Enough for `MTIME_NS_LIMIT`, which the tree checks, and short enough to be multiplied."""

# What `TarInfo.fromtarfile` raises; typeshed does not know them.
_Nothing = tarfile.EmptyHeaderError  # type: ignore[attr-defined]
_Cut = tarfile.TruncatedHeaderError  # type: ignore[attr-defined]
_Invalid = tarfile.InvalidHeaderError  # type: ignore[attr-defined]
_ReadError = tarfile.ReadError


class _Member(tarfile.TarInfo):
    """A header. Tar takes one that is cut or damaged for the end; here only a block of zeros is."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:  # the parameter's name is the library's
        try:
            return super().fromtarfile(tarfile)
        except (_Nothing, _Cut) as error:
            raise _ReadError("it ends early") from error
        except _Invalid as error:
            raise _ReadError(f"the header at byte {tarfile.offset} is none: {error}") from error


def read_tar(file: Bounded, tree: ArchiveTree, spool: Spool) -> None:
    """Read an uncompressed tar stream, up to its end-of-archive.

    Raises:
        PublishError: it is damaged, or holds what cannot be published.
    """
    try:
        with tarfile.open(
            fileobj=cast(Any, file),
            mode="r:",
            tarinfo=_Member,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive:
            while (member := archive.next()) is not None:
                file.end_header()
                _add(member, file, tree, spool)
                archive.members.clear()  # type: ignore[attr-defined] # a million members are not kept twice
    except (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, RecursionError) as error:
        raise PublishError(f"{tree.path}: damaged archive: {error}") from error
    spool.flush()


def _add(member: tarfile.TarInfo, file: Bounded, tree: ArchiveTree, spool: Spool) -> None:
    name = _bytes(member.name)
    mode = member.mode & 0o7777
    mtime_ns, xattrs = _mtime_ns(member, tree, name), _xattrs(member)
    if member.islnk():
        tree.link(name, _bytes(member.linkname))
    elif member.isdir():
        tree.add(name, Node(b"", stat.S_IFDIR | mode, mtime_ns, xattrs=xattrs, children=[]))
    elif member.issym():
        target = _bytes(member.linkname)
        tree.add(name, Node(b"", stat.S_IFLNK | 0o777, mtime_ns, len(target), target, xattrs))
    elif member.isreg():
        node = Node(b"", stat.S_IFREG | mode, mtime_ns, member.size, xattrs=xattrs)
        node.origin = Stored(spool.offset, _ranges(member, tree, name))
        tree.add(name, node)
        _copy(member, node.origin, file, spool)
    else:
        raise tree.refuse(name, "is a device, fifo or of an unknown type, which cannot be published")


def _ranges(member: tarfile.TarInfo, tree: ArchiveTree, name: bytes) -> list[tuple[int, int]]:
    """Return the checked (offset, length) of a sparse file's data; else of all."""
    if not 0 <= member.size <= FILE_LENGTH_MAX:
        raise tree.refuse(name, "has an absurd size")
    sparse = cast(list[tuple[int, int]] | None, member.sparse)  # typeshed says int
    if sparse is None:
        return [(0, member.size)]
    ranges = [(offset, length) for offset, length in sparse if length]
    end = 0
    for offset, length in ranges:
        if offset < end or length < 0 or offset + length > member.size:
            raise tree.refuse(name, "is a sparse file whose map cannot be")
        end = offset + length
    if len(ranges) > SEGMENT_COUNT_MAX:
        raise tree.refuse(name, f"has more than {SEGMENT_COUNT_MAX} holes")
    return ranges


def _copy(member: tarfile.TarInfo, stored: Stored, file: Bounded, spool: Spool) -> None:
    if not member.size:
        return
    file.seek(member.offset_data)
    left = sum(length for _, length in stored.ranges)
    while left:
        data = file.take(min(left, _COPY_LENGTH))
        if not data:
            raise tarfile.ReadError("it ends early")
        spool.write(data)
        left -= len(data)


def _mtime_ns(member: tarfile.TarInfo, tree: ArchiveTree, name: bytes) -> int:
    """Return the time with all its digits, which a float cannot hold."""
    text = member.pax_headers.get("mtime", str(member.mtime))
    try:
        seconds = Decimal(text)
        if not abs(seconds) < _SECONDS_LIMIT:
            raise tree.refuse(name, "has an absurd time")
        return int(seconds * 10**9 // 1)
    except InvalidOperation as error:
        raise tree.refuse(name, "has an absurd time") from error


def _xattrs(member: tarfile.TarInfo) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for keyword, value in member.pax_headers.items():
        name = keyword.removeprefix(_XATTR)
        if name != keyword and name.startswith("user."):
            found.append((_bytes(name).replace(b"%3D", b"=").replace(b"%25", b"%"), _bytes(value)))
    return tuple(sorted(found))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
