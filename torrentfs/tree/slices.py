"""This module cuts a read of a file into slices of frames and holes."""

from collections.abc import Sequence

import msgspec

from torrentfs.errors import FormatError
from torrentfs.repository.manifest import HOLE, Entry, Extent
from torrentfs.repository.metainfo import TorrentRef


class Slice(msgspec.Struct, frozen=True, gc=False):
    """*length* bytes at *skip* of the decoded frame [offset, offset + stored) of a pack; zeros if no ref."""

    ref: TorrentRef | None
    offset: int
    stored: int
    skip: int
    length: int


def cut(
    found: Sequence[tuple[int, Extent]], packs: Sequence[TorrentRef], start: int, end: int
) -> tuple[Slice, ...]:
    """Cut the extents that cover the bytes [start, end) of a file, each with its file offset, to just these.

    Raises:
        FormatError: they leave a gap, overlap or point at no pack.
    """
    slices = []
    position = start
    for offset, extent in found:
        first = position - offset
        last = min(extent.length, end - offset)
        if not 0 <= first < last:
            raise FormatError(f"extents do not follow one another at byte {position}")
        slices.append(_slice(extent, packs, first, last - first))
        position = offset + last
    if position != end:
        raise FormatError(f"extents end at byte {position} of a file that has more")
    return tuple(slices)


def whole(entry: Entry, packs: Sequence[TorrentRef]) -> tuple[Slice, ...]:
    """Return the slice of a file that is one extent, read from its start to its end: the commonest read."""
    return (_slice(entry.extents[0], packs, 0, entry.size),)


def _slice(extent: Extent, packs: Sequence[TorrentRef], first: int, length: int) -> Slice:
    if extent.pack == HOLE:
        return Slice(None, 0, 0, 0, length)
    if not 0 <= extent.pack < len(packs):
        raise FormatError(f"extent in pack {extent.pack} of {len(packs)}")
    return Slice(packs[extent.pack], extent.offset, extent.stored, extent.skip + first, length)
