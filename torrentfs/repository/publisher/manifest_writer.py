"""This module writes manifests: numbers the entries, cuts them into blocks and puts the sections together.

Blocks are streamed to a temporary file, so that a million entries take no more memory than their nodes.
"""

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

import msgspec

from torrentfs.errors import FormatError, PublishError
from torrentfs.repository import durable
from torrentfs.repository.manifest_check import EntryLimits, check_entry
from torrentfs.repository.manifest_format import (
    BLOCK_LENGTH,
    BLOCK_LENGTH_MAX,
    BLOCK_RECORD,
    ENTRY_COUNT_MAX,
    FLAG_REQUIRED,
    HASH_LENGTH,
    HEADER,
    HOLE,
    INDEX_HEADER,
    INLINE_EXTENT_COUNT_MAX,
    MAGIC,
    PACK_RECORD,
    PAGE_EXTENT_COUNT,
    PAGE_RECORD,
    SECTION,
    VERSION,
    Entry,
    Extent,
)
from torrentfs.repository.metainfo import Hasher, InfoHash, Kind, Metainfo
from torrentfs.repository.pack import encode_frame
from torrentfs.repository.publisher.nodes import Node

_encode = msgspec.msgpack.Encoder().encode
_COPY_LENGTH = 1024 * 1024


class PackRow(msgspec.Struct, frozen=True):
    """What a manifest says of a pack; lengths in bytes."""

    info_hash: InfoHash
    length: int
    piece_length: int


def write_manifest(
    public: Path,
    root: Node,
    packs: list[PackRow],
    extents: Callable[[Node], Iterable[Extent]],
    digest: Callable[[Node], bytes],
) -> tuple[Metainfo, int]:
    """Write the manifest of a tree and its metainfo under *public*, and return it with the number of entries.

    *extents* and *digest* tell a file's content; what they say depends on the content alone.

    Raises:
        PublishError: an entry that no reader would take; it is named.
    """
    with ExitStack() as stack:
        entries, pages, hashes = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        blocks = _Blocks(entries)
        paging = _Pages(pages)
        count = 0
        groups: dict[int, int] = {}
        pack_lengths = [pack.length for pack in packs]
        for parent, node in _numbered(root):
            leader = node.number
            if node.nlink > 1 and not node.is_directory:
                leader = groups.setdefault(id(node.leader or node), node.number)
            entry = _entry(node, parent, leader)
            if node.is_file:
                entry = paging.fill(entry, leader, extents(node))
            _check(entry, node, EntryLimits(ENTRY_COUNT_MAX, pack_lengths, len(paging.records)))
            blocks.add(entry)
            hashes.write(digest(node) if node.is_file else bytes(HASH_LENGTH))
            count += 1
        blocks.close()
        front = (
            ("packs", b"".join(PACK_RECORD.pack(*msgspec.structs.astuple(pack)) for pack in packs)),
            ("index", INDEX_HEADER.pack(count, len(blocks.records)) + b"".join(blocks.records)),
            ("xindex", b"".join(paging.records)),
        )
        streams = (("entries", entries), ("extents", pages), ("sha256", hashes))
        return _assemble(public, front, streams), count


def _check(entry: Entry, node: Node, limits: EntryLimits) -> None:
    """Refuse what readers would: once committed, nothing could be published any more beside it."""
    try:
        check_entry(entry, node.number, limits)
    except FormatError as error:
        raise PublishError(f"{_shown(node.name)} cannot be published: {error}") from error


def _shown(name: bytes) -> str:
    return ascii(name.decode(errors="backslashreplace")) if name else "the root of the source"


def _numbered(root: Node) -> Iterator[tuple[int, Node]]:
    """Number all entries and iterate over them with their parents' numbers, in the order of their own."""
    root.number = 0
    if root.children is not None:
        root.first_child = 1
    yield 0, root
    # Two passes over each directory: a child's first_child is known when all runs before it are counted.
    for directory in _count_runs(root):
        for child in directory.children or ():
            yield directory.number, child


def _count_runs(root: Node) -> list[Node]:
    """Give every entry its number; return the directories in path order."""
    directories = []
    number = 1
    stack = [root] if root.is_directory else []
    while stack:
        directory = stack.pop()
        directories.append(directory)
        directory.first_child = number if directory.children else 0
        for child in directory.children or ():
            child.number = number
            number += 1
        stack += [child for child in reversed(directory.children or ()) if child.is_directory]
    return directories


def _entry(node: Node, parent: int, leader: int) -> Entry:
    children = node.children
    if children is None:
        first_child, child_count, nlink = 0, 0, node.nlink
    else:
        first_child, child_count = node.first_child, len(children)
        nlink = 2 + sum(child.is_directory for child in children)
    return Entry(
        name=node.name if node.number else b"",
        mode=node.mode,
        mtime_ns=node.mtime_ns,
        size=node.size,
        parent=parent,
        nlink=nlink,
        leader=leader,
        first_child=first_child,
        child_count=child_count,
        target=node.target,
        xattrs=list(node.xattrs),
    )


class _Blocks:
    """Entries on their way into blocks."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offset = 0
        self._encoded: list[bytes] = []
        self._length = 0
        self._first = 0
        self.records: list[bytes] = []

    def add(self, entry: Entry) -> None:
        """Take the next entry."""
        encoded = _encode(entry)
        if len(encoded) + 8 > BLOCK_LENGTH_MAX:
            raise PublishError(
                f"{_shown(entry.name)}: its entry has {len(encoded)} bytes, which no reader takes"
            )
        if self._length + len(encoded) + 4 * (len(self._encoded) + 2) > BLOCK_LENGTH:
            self.close()
        self._encoded.append(encoded)
        self._length += len(encoded)

    def close(self) -> None:
        """End the block: a count, where each entry starts, the entries."""
        count = len(self._encoded)
        if not count:
            return
        starts = []
        position = 4 * (count + 1)
        for encoded in self._encoded:
            starts.append(position)
            position += len(encoded)
        raw = struct.pack(f"<{count + 1}I", count, *starts) + b"".join(self._encoded)
        frame = encode_frame(raw)
        self._file.write(frame)
        self.records.append(BLOCK_RECORD.pack(self._offset, len(frame), len(raw), self._first))
        self._offset += len(frame)
        self._first += count
        self._encoded, self._length = [], 0


class _Pages:
    """The extents of large files, on their way into pages; hard links share theirs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offset = 0
        self._shared: dict[int, tuple[int, int, int]] = {}
        self.records: list[bytes] = []

    def fill(self, entry: Entry, leader: int, extents: Iterable[Extent]) -> Entry:
        """Return the entry with its content: inline, or in pages."""
        remaining = iter(extents)
        inline = list(islice(remaining, INLINE_EXTENT_COUNT_MAX + 1))
        if len(inline) <= INLINE_EXTENT_COUNT_MAX:
            holes = sum([extent.length for extent in inline if extent.pack == HOLE])
            return msgspec.structs.replace(entry, extents=inline, hole_length=holes)
        shared = self._shared.get(leader)
        if shared is None:
            shared = self._write(inline, remaining)
            if entry.nlink > 1:
                self._shared[leader] = shared
        first_page, page_count, holes = shared
        return msgspec.structs.replace(entry, first_page=first_page, page_count=page_count, hole_length=holes)

    def _write(self, page: list[Extent], remaining: Iterator[Extent]) -> tuple[int, int, int]:
        first = len(self.records)
        position = holes = 0
        page += islice(remaining, PAGE_EXTENT_COUNT - len(page))
        while page:
            raw = _encode(page)
            frame = encode_frame(raw)
            self._file.write(frame)
            self.records.append(PAGE_RECORD.pack(position, self._offset, len(frame), len(raw)))
            self._offset += len(frame)
            position += sum([extent.length for extent in page])
            holes += sum([extent.length for extent in page if extent.pack == HOLE])
            page = list(islice(remaining, PAGE_EXTENT_COUNT))
        return first, len(self.records) - first, holes


def _assemble(
    public: Path, front: tuple[tuple[str, bytes], ...], streams: tuple[tuple[str, IO[bytes]], ...]
) -> Metainfo:
    """Write the file: header, tables, streams. What opens a manifest comes first and fits a piece."""
    table = []
    offset = HEADER.size + SECTION.size * (len(front) + len(streams))
    for name, length in [*((name, len(data)) for name, data in front), *((n, s.tell()) for n, s in streams)]:
        table.append(SECTION.pack(name.encode(), offset, length, FLAG_REQUIRED))
        offset += length
    hasher = Hasher()
    temporary = public / "manifests" / f".{os.getpid()}.manifest.new"
    try:
        with temporary.open("wb") as file:
            tee = _Tee(file, hasher)
            tee.write(HEADER.pack(MAGIC, VERSION, len(table), 0) + b"".join(table))
            for _, data in front:
                tee.write(data)
            for _, stream in streams:
                stream.seek(0)
                shutil.copyfileobj(stream, tee, _COPY_LENGTH)
            file.flush()
            os.fsync(file.fileno())
        metainfo = hasher.finish(Kind.MANIFEST.suffix)
        durable.write({public / Kind.MANIFEST.torrent_path(metainfo.info_hash): metainfo.torrent()})
        temporary.replace(public / Kind.MANIFEST.url_path(metainfo.info_hash))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    durable.sync(public / "manifests")
    return metainfo


class _Tee:
    """A file whose bytes are hashed on their way."""

    def __init__(self, file: IO[bytes], hasher: Hasher) -> None:
        self._file = file
        self._hasher = hasher

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self._hasher.update(data)
        return self._file.write(data)
