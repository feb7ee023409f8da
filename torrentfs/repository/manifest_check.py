"""This module checks the entries of a manifest: what a hostile one could say is refused here."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass

from torrentfs.errors import FormatError
from torrentfs.repository.manifest_format import (
    FILE_LENGTH_MAX,
    HOLE,
    INLINE_EXTENT_COUNT_MAX,
    MTIME_NS_LIMIT,
    NAME_LENGTH_MAX,
    PAGE_COUNT_MAX,
    TARGET_LENGTH_MAX,
    XATTR_NAME_LENGTH_MAX,
    XATTRS_LENGTH_MAX,
    Entry,
    Extent,
)
from torrentfs.repository.pack import FRAME_LENGTH_MAX, FRAME_STORED_MAX

_BAD_NAMES = (b"", b".", b"..")


@dataclass(frozen=True, slots=True)
class EntryLimits:
    """What an entry's numbers must stay within: the manifest's own tables."""

    entry_count: int
    pack_lengths: Sequence[int]
    page_count: int


def check_entry(entry: Entry, number: int, limits: EntryLimits) -> None:
    """Check an entry by itself; the order of names is the reader's to check as it walks them.

    Raises:
        FormatError: names the entry and what is wrong with it.
    """
    fault = (
        _name_fault(entry, number)
        or _number_fault(entry, number, limits.entry_count)
        or _content_fault(entry, limits.page_count)
    )
    if fault:
        raise FormatError(f"entry {number} {fault}")
    for extent in entry.extents:
        check_extent(extent, limits.pack_lengths)


def check_extent(extent: Extent, pack_lengths: Sequence[int]) -> None:
    """Check that an extent lies inside its pack and frame.

    Raises:
        FormatError: it does not.
    """
    pack, offset, stored, skip, length = extent.pack, extent.offset, extent.stored, extent.skip, extent.length
    if pack == HOLE:
        right = offset == stored == skip == 0 and 0 < length <= FILE_LENGTH_MAX
    else:
        right = (
            0 <= pack < len(pack_lengths)
            and 0 < stored <= FRAME_STORED_MAX
            and 0 <= offset <= pack_lengths[pack] - stored
            and skip >= 0
            and 0 < length <= FRAME_LENGTH_MAX - skip
        )
    if not right:
        raise FormatError(f"extent out of bounds: {extent}")


def _name_fault(entry: Entry, number: int) -> str:
    name = entry.name
    if number == 0:
        return "is the root, but has a name" if name else ""
    if name in _BAD_NAMES or len(name) > NAME_LENGTH_MAX or b"/" in name or b"\0" in name:
        return f"has a name that cannot be: {name[:64]!r}"
    return ""


def _number_fault(entry: Entry, number: int, entry_count: int) -> str:
    if not 0 <= entry.parent < max(number, 1) or not 0 <= entry.leader <= number:
        return "is not below its parent"
    if not 1 <= entry.nlink <= entry_count + 1 or not 0 <= entry.mode <= 0o177777:
        return "has an absurd mode or number of links"
    if not 0 <= entry.size <= FILE_LENGTH_MAX or not -MTIME_NS_LIMIT <= entry.mtime_ns < MTIME_NS_LIMIT:
        return "has an absurd size or time"
    if entry.child_count and not number < entry.first_child <= entry_count - entry.child_count:
        return "has children before itself or after the last entry"  # the former would be a cycle
    return ""


def _content_fault(entry: Entry, page_count: int) -> str:
    kind = stat.S_IFMT(entry.mode)
    if entry.child_count < 0 or entry.first_child < 0 or (kind != stat.S_IFDIR and entry.child_count):
        return "has children, but is no directory"
    if kind == stat.S_IFREG:
        return _file_fault(entry, page_count) or _xattr_fault(entry)
    if entry.extents or entry.page_count or entry.hole_length:
        return "has content, but is no file"
    if kind == stat.S_IFLNK:
        target = entry.target
        if not 0 < len(target) <= TARGET_LENGTH_MAX or b"\0" in target or entry.size != len(target):
            return "has a link target that cannot be"
    elif kind != stat.S_IFDIR or entry.target or entry.size:
        return f"is of a type that is not published: mode {entry.mode:o}"
    return _xattr_fault(entry)


def _file_fault(entry: Entry, page_count: int) -> str:
    if entry.target or not 0 <= entry.hole_length <= entry.size:
        return "is a file with a target or too many holes"
    if entry.page_count:
        if entry.extents or not 0 < entry.page_count <= PAGE_COUNT_MAX:
            return "has both pages and extents"
        if not 0 <= entry.first_page <= page_count - entry.page_count:
            return "has pages out of bounds"
        return ""
    if (
        len(entry.extents) > INLINE_EXTENT_COUNT_MAX
        or sum([extent.length for extent in entry.extents]) != entry.size
    ):
        return "has extents that do not add up to its size"
    return ""


def _xattr_fault(entry: Entry) -> str:
    if not entry.xattrs:
        return ""
    names = [name for name, _ in entry.xattrs]
    length = sum(len(name) + len(value) for name, value in entry.xattrs)
    if len(set(names)) != len(names) or length > XATTRS_LENGTH_MAX:
        return "has an extended attribute twice, or too much of them"
    if any(not 0 < len(name) <= XATTR_NAME_LENGTH_MAX or b"\0" in name for name in names):
        return "has an extended attribute with a name that cannot be"
    return ""
