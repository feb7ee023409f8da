"""This module reads manifests, a block at a time: only what is visited is fetched and decoded.

It reads through a function that it is given, which may raise `NotCached`; the call is then simply repeated.
"""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import msgspec

from torrentfs.errors import FormatError, VersionError
from torrentfs.repository.manifest_check import EntryLimits, check_entry, check_extent
from torrentfs.repository.manifest_format import (
    BLOCK_COUNT_MAX,
    BLOCK_LENGTH_MAX,
    BLOCK_RECORD,
    BLOCK_STORED_MAX,
    ENTRY_COUNT_MAX,
    FLAG_REQUIRED,
    HASH_LENGTH,
    HEADER,
    HOLE,
    INDEX_HEADER,
    MAGIC,
    PACK_COUNT_MAX,
    PACK_RECORD,
    PAGE_RECORD,
    SECTION,
    SECTION_COUNT_MAX,
    VERSION,
    Entry,
    EntryName,
    Extent,
)
from torrentfs.repository.metainfo import InfoHash, Kind, TorrentRef
from torrentfs.repository.pack import PACK_LENGTH_LIMIT, decode_frame

__all__ = ["HOLE", "Block", "BlockCache", "Entry", "Extent", "Manifest"]

V = TypeVar("V")
_RUNS_MAX = 1024
"""Directories whose runs of children are remembered: a lookup then decodes one entry, not two."""
_REQUIRED = ("packs", "index", "entries", "sha256")
_KNOWN = frozenset((*_REQUIRED, "xindex", "extents"))
_decode_name = msgspec.msgpack.Decoder(EntryName).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_decode_extents = msgspec.msgpack.Decoder(list[Extent]).decode


@dataclass(frozen=True, slots=True)
class Block:
    """Decoded entries [first, end), kept as bytes: objects take ten times the memory."""

    first: int
    end: int
    raw: bytes
    bounds: "array[int]"
    names: list[bytes]
    checked: bytearray

    def entry(self, number: int, limits: EntryLimits) -> Entry:
        """Return an entry of this block, checked when it is first asked for.

        A start asks for one entry in ten of its blocks: checking all 450 of a block took 4 to 6 ms.
        """
        position = number - self.first
        try:
            entry = _decode_entry(self.raw[self.bounds[position] : self.bounds[position + 1]])
        except msgspec.DecodeError as error:
            raise FormatError(f"damaged entry {number}: {error}") from error
        if not self.checked[position]:
            check_entry(entry, number, limits)
            self.checked[position] = 1
        return entry


@dataclass(frozen=True, slots=True)
class Page:
    """Decoded extents of a large file, and the file offset at which each starts."""

    starts: list[int]
    extents: list[Extent]


class BlockCache:
    """The blocks and pages used last, of any number of manifests."""

    def __init__(self, blocks_max: int = 64) -> None:
        self.blocks_max = max(blocks_max, 1)
        self._blocks: OrderedDict[tuple[bytes, int], Block] = OrderedDict()
        self._pages: OrderedDict[tuple[bytes, int], Page] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def block(self, info_hash: bytes, number: int) -> Block | None:
        """Return a block that is here, as the one used last."""
        return _touch(self._blocks, (info_hash, number))

    def page(self, info_hash: bytes, number: int) -> Page | None:
        """Return a page that is here, as the one used last."""
        return _touch(self._pages, (info_hash, number))

    def keep_block(self, info_hash: bytes, number: int, block: Block) -> None:
        """Keep a block in place of the one unused for longest."""
        self._blocks[info_hash, number] = block
        if len(self._blocks) > self.blocks_max:
            self._blocks.popitem(last=False)

    def keep_page(self, info_hash: bytes, number: int, page: Page) -> None:
        """Keep a page; there are a quarter as many as blocks, since a page takes four times the memory."""
        self._pages[info_hash, number] = page
        if len(self._pages) > max(self.blocks_max // 4, 1):
            self._pages.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _PageHint:
    """The page found last: a sequential reader wants it again, and finding it takes four reads."""

    first: int
    number: int
    end: int
    page: Page


@dataclass(frozen=True, slots=True)
class _Section:
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is read once: the tables at the front."""

    sections: dict[str, _Section]
    packs: tuple[TorrentRef, ...]
    limits: EntryLimits
    piece_lengths: tuple[int, ...]
    entry_count: int
    firsts: "array[int]"
    offsets: "array[int]"
    stored: "array[int]"
    raw: "array[int]"


class Manifest:
    """A revision: its packs and entries. Any method may raise `NotCached` (from *read*) or FormatError."""

    def __init__(
        self, ref: TorrentRef, read: Callable[[int, int], bytes], cache: BlockCache | None = None
    ) -> None:
        """Take *read*(offset, length), which returns exactly these bytes of it; nothing is read yet."""
        self.ref = ref
        self._read_bytes = read
        self._cache = cache if cache is not None else BlockCache()
        self._layout: _Layout | None = None
        self._last: Block | None = None
        self._page_hint: _PageHint | None = None
        self._runs: dict[int, tuple[int, int]] = {}

    @property
    def packs(self) -> tuple[TorrentRef, ...]:
        """The packs that extents point into."""
        return self._open().packs

    @property
    def piece_lengths(self) -> tuple[int, ...]:
        """The piece length of each pack in bytes."""
        return self._open().piece_lengths

    @property
    def entry_count(self) -> int:
        """The number of entries, at least 1: the root's number is 0."""
        return self._open().entry_count

    def entry(self, number: int) -> Entry:
        """Return an entry.

        Raises:
            IndexError: there is no such number.
        """
        block = self._block_of(number)
        return block.entry(number, self._open().limits)

    def lookup(self, directory: int, name: bytes) -> tuple[int, Entry] | None:
        """Find a name in a directory; None if it is not there, or *directory* is none."""
        start, end = self._runs.get(directory) or self._run(directory)
        if start == end:
            return None
        block = self._search(start, end, name)
        low, high = max(start - block.first, 0), min(end - block.first, len(block.names))
        position = bisect_left(block.names, name, low, high)
        if position == high or block.names[position] != name:
            return None
        number = block.first + position
        found = block.entry(number, self._open().limits)
        _check_parent(found, directory)
        return number, found

    def children(self, directory: int, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """Iterate over the entries of a directory from position *start*, in the order of their names."""
        first, end = self._runs.get(directory) or self._run(directory)
        previous: bytes | None = None
        number = first + start
        while number < end:
            block = self._block_of(number)
            limits = self._open().limits
            for number in range(number, min(end, block.end)):  # noqa: B020 - one counter over all blocks
                child = block.entry(number, limits)
                _check_parent(child, directory)
                if previous is not None and child.name <= previous:
                    raise FormatError(f"names out of order at entry {number}")
                previous = child.name
                yield number, child
            number += 1

    def extents(self, entry: Entry, offset: int, length: int) -> list[tuple[int, Extent]]:
        """Return the (file offset, extent) pairs that overlap [offset, offset + length), in order."""
        end = min(offset + length, entry.size)
        found: list[tuple[int, Extent]] = []
        if entry.page_count:
            self._paged(entry, offset, end, found)
            return found
        position = 0
        for extent in entry.extents:
            if position >= end:
                break
            if position + extent.length > offset:
                found.append((position, extent))
            position += extent.length
        return found

    def sha256(self, number: int) -> bytes:
        """Return the content hash of a file's entry; zeros for anything else."""
        layout = self._open()
        if not 0 <= number < layout.entry_count:
            raise IndexError(f"entry {number} of {layout.entry_count}")
        return self._read(layout.sections["sha256"].offset + HASH_LENGTH * number, HASH_LENGTH)

    def _run(self, directory: int) -> tuple[int, int]:
        """Return the entry numbers [start, end) of a directory's children, and remember them."""
        parent = self.entry(directory)
        if len(self._runs) >= _RUNS_MAX:
            self._runs.clear()
        run = self._runs[directory] = (parent.first_child, parent.first_child + parent.child_count)
        return run

    def _block_of(self, number: int) -> Block:
        last = self._last
        if last is not None and last.first <= number < last.end:
            return last
        layout = self._layout or self._open()
        if not 0 <= number < layout.entry_count:
            raise IndexError(f"entry {number} of {layout.entry_count}")
        block = self._last = self._block(bisect_right(layout.firsts, number) - 1)
        return block

    def _block(self, index: int) -> Block:
        """Return a block, decoded."""
        block = self._cache.block(self.ref.info_hash, index)
        if block is None:
            layout = self._open()
            frame = self._read(
                layout.sections["entries"].offset + layout.offsets[index], layout.stored[index]
            )
            first = layout.firsts[index]
            end = layout.firsts[index + 1] if index + 1 < len(layout.firsts) else layout.entry_count
            block = self._decode_block(frame, layout.raw[index], first, end)
            self._cache.keep_block(self.ref.info_hash, index, block)
        return block

    def _decode_block(self, frame: bytes, length: int, first: int, end: int) -> Block:
        raw = _decode(frame, length)
        count = end - first
        bounds = _bounds(raw, count)
        try:
            names = [_decode_name(raw[bounds[i] : bounds[i + 1]]).name for i in range(count)]
        except msgspec.DecodeError as error:
            raise FormatError(f"damaged entry in the block from {first}: {error}") from error
        return Block(first, end, raw, bounds, names, bytearray(count))

    def _search(self, start: int, end: int, name: bytes) -> Block:
        """Return the block of a run [start, end) of entries that holds *name*, if any does."""
        last = self._last
        if last is not None and last.first <= start and end <= last.end:
            return last
        firsts = self._open().firsts
        low, high = bisect_right(firsts, start) - 1, bisect_left(firsts, end) - 1
        while low < high:
            middle = (low + high + 1) // 2
            block = self._block(middle)
            if block.names[0] <= name:
                low = middle
            else:
                high = middle - 1
        block = self._last = self._block(low)
        return block

    def _paged(self, entry: Entry, offset: int, end: int, found: list[tuple[int, Extent]]) -> None:
        while offset < end:
            page = self._page_at(entry, offset)
            for position in range(bisect_right(page.starts, offset) - 1, len(page.starts)):
                if page.starts[position] >= end:
                    return
                found.append((page.starts[position], page.extents[position]))
            offset = page.starts[-1] + page.extents[-1].length

    def _page_at(self, entry: Entry, offset: int) -> Page:
        """Return the page of a large file that covers *offset*."""
        hint = self._page_hint
        if (
            hint is not None
            and hint.first == entry.first_page
            and hint.page.starts[0] <= offset < hint.end
            and entry.page_count > hint.number - hint.first
        ):
            return hint.page
        low, high = entry.first_page, entry.first_page + entry.page_count - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._page_record(middle)[0] <= offset:
                low = middle
            else:
                high = middle - 1
        start = self._page_record(low)[0] if low > entry.first_page else 0
        last = low == entry.first_page + entry.page_count - 1
        page = self._page(low)
        end = entry.size if last else self._page_record(low + 1)[0]
        if (
            page.starts[0] != start
            or page.starts[-1] + page.extents[-1].length != end
            or not start <= offset < end
        ):
            raise FormatError(f"page {low} does not hold the bytes that its index says")
        self._page_hint = _PageHint(entry.first_page, low, end, page)
        return page

    def _page_record(self, number: int) -> tuple[int, int, int, int]:
        section = self._open().sections["xindex"]
        record: tuple[int, int, int, int]
        record = PAGE_RECORD.unpack(self._read(section.offset + PAGE_RECORD.size * number, PAGE_RECORD.size))
        return record

    def _page(self, number: int) -> Page:
        page = self._cache.page(self.ref.info_hash, number)
        if page is None:
            page = self._decode_page(*self._page_record(number))
            self._cache.keep_page(self.ref.info_hash, number, page)
        return page

    def _decode_page(self, start: int, offset: int, stored: int, length: int) -> Page:
        layout = self._open()
        section = layout.sections.get("extents", _Section(0, 0))
        if stored > BLOCK_STORED_MAX or length > BLOCK_LENGTH_MAX or offset + stored > section.length:
            raise FormatError("page of extents out of bounds")
        try:
            extents = _decode_extents(_decode(self._read(section.offset + offset, stored), length))
        except msgspec.DecodeError as error:
            raise FormatError(f"damaged page of extents: {error}") from error
        if not extents:
            raise FormatError("page without extents")
        starts = []
        for extent in extents:
            check_extent(extent, layout.limits.pack_lengths)
            starts.append(start)
            start += extent.length
        return Page(starts, extents)

    def _read(self, offset: int, length: int) -> bytes:
        data = self._read_bytes(offset, length)
        if len(data) != length:
            raise FormatError(f"manifest ends at {offset + len(data)}")
        return data

    def _open(self) -> _Layout:
        if self._layout is None:
            self._layout = self._load()
        return self._layout

    def _load(self) -> _Layout:
        sections = self._sections()
        hashes, lengths, piece_lengths = self._packs(sections["packs"])
        index = sections["index"]
        if not INDEX_HEADER.size <= index.length <= INDEX_HEADER.size + BLOCK_COUNT_MAX * BLOCK_RECORD.size:
            raise FormatError("index of an absurd length")
        data = self._read(index.offset, index.length)
        entry_count, block_count = INDEX_HEADER.unpack_from(data)
        columns = _columns(data, entry_count, block_count, sections["entries"].length)
        if sections["sha256"].length != HASH_LENGTH * entry_count:
            raise FormatError("column of hashes that does not match the entries")
        packs = tuple(TorrentRef(InfoHash(h), n, Kind.PACK) for h, n in zip(hashes, lengths, strict=True))
        page_count = sections["xindex"].length // PAGE_RECORD.size if "xindex" in sections else 0
        limits = EntryLimits(entry_count, lengths, page_count)
        return _Layout(sections, packs, limits, piece_lengths, entry_count, *columns)

    def _sections(self) -> dict[str, _Section]:
        if self.ref.length < HEADER.size:
            raise FormatError("too short for a manifest")
        magic, version, count, _ = HEADER.unpack(self._read(0, HEADER.size))
        if magic != MAGIC:
            raise FormatError("not a manifest")
        if version != VERSION:
            raise VersionError(f"manifest of version {version}; this release reads version {VERSION}")
        table_end = HEADER.size + count * SECTION.size
        if count > SECTION_COUNT_MAX or table_end > self.ref.length:
            raise FormatError(f"manifest of {count} sections")
        table = self._read(HEADER.size, count * SECTION.size)
        sections: dict[str, _Section] = {}
        for padded, offset, length, flags in SECTION.iter_unpack(table):
            name = padded.rstrip(b"\0").decode("ascii", "replace")
            if name in sections or offset < table_end or offset + length > self.ref.length:
                raise FormatError(f"section {name!r} twice or out of bounds")
            if name not in _KNOWN and flags & FLAG_REQUIRED:
                raise VersionError(f"manifest with a section {name!r}, which this release cannot read")
            sections[name] = _Section(offset, length)
        for name in _REQUIRED:
            if name not in sections:
                raise FormatError(f"manifest without a section {name!r}")
        return sections

    def _packs(self, section: _Section) -> tuple[tuple[bytes, ...], tuple[int, ...], tuple[int, ...]]:
        count, rest = divmod(section.length, PACK_RECORD.size)
        if rest or count > PACK_COUNT_MAX:
            raise FormatError("table of packs of an absurd length")
        records = list(PACK_RECORD.iter_unpack(self._read(section.offset, section.length)))
        hashes = tuple(record[0] for record in records)
        if len(set(hashes)) != count or any(not 0 < record[1] <= PACK_LENGTH_LIMIT for record in records):
            raise FormatError("pack named twice or of an absurd length")
        return hashes, tuple(record[1] for record in records), tuple(record[2] for record in records)


def _touch(cache: "OrderedDict[tuple[bytes, int], V]", key: tuple[bytes, int]) -> V | None:
    value = cache.get(key)
    if value is not None:
        cache.move_to_end(key)
    return value


def _decode(frame: bytes, length: int) -> bytes:
    raw = decode_frame(frame, BLOCK_LENGTH_MAX)
    if len(raw) != length:
        raise FormatError("block of another length than its index says")
    return raw


def _bounds(raw: bytes, count: int) -> "array[int]":
    """Return where each record of a block starts, and its end: they tile it without gaps."""
    table_end = 4 * (count + 1)
    if len(raw) < table_end:
        raise FormatError("block too short for its entries")
    stored_count, *starts = struct.unpack_from(f"<{count + 1}I", raw)
    bounds = array("I", [*starts, len(raw)])
    if stored_count != count or bounds[0] != table_end or any(a >= b for a, b in pairwise(bounds)):
        raise FormatError("block whose records are out of order")
    return bounds


def _check_parent(entry: Entry, directory: int) -> None:
    if entry.parent != directory:
        raise FormatError(f"entry of directory {entry.parent} listed in directory {directory}")


def _columns(
    data: bytes, entry_count: int, block_count: int, entries_length: int
) -> "tuple[array[int], array[int], array[int], array[int]]":
    """Split the index into columns: first entries, offsets, stored and raw lengths."""
    if (
        not 0 < entry_count <= ENTRY_COUNT_MAX
        or len(data) != INDEX_HEADER.size + block_count * BLOCK_RECORD.size
    ):
        raise FormatError(f"index of {entry_count} entries in {block_count} blocks")
    firsts, offsets, stored, raw = array("I"), array("Q"), array("I"), array("I")
    before = -1
    for record in BLOCK_RECORD.iter_unpack(memoryview(data)[INDEX_HEADER.size :]):
        if record[3] <= before or record[1] > BLOCK_STORED_MAX or record[2] > BLOCK_LENGTH_MAX:
            raise FormatError("index whose blocks are out of order or too long")
        if record[0] + record[1] > entries_length:
            raise FormatError("block out of bounds")
        before = record[3]
        offsets.append(record[0])
        stored.append(record[1])
        raw.append(record[2])
        firsts.append(before)
    if not firsts or firsts[0] != 0 or before >= entry_count:
        raise FormatError("index whose blocks do not cover the entries")
    return firsts, offsets, stored, raw
