"""This module turns files into blocks for the packer, hashes, and extents for manifests."""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence

from torrentfs.repository.manifest_format import HOLE, Extent
from torrentfs.repository.pack import FRAME_LENGTH
from torrentfs.repository.publisher.nodes import Content, Reader, Run

SPARSE_PREFIX = b"torrentfs sparse file 1\n"
"""Before what is hashed of a file with holes: half a terabyte of zeros would take minutes."""


class Hash:
    """SHA-256 of a file's bytes; of one with holes, of its size, its segments, and the bytes in them."""

    def __init__(self, size: int, segments: list[tuple[int, int]] | None) -> None:
        self._hash = hashlib.sha256()
        if segments is not None:
            self._hash.update(SPARSE_PREFIX + struct.pack("<QQ", size, len(segments)))
            for segment in segments:
                self._hash.update(struct.pack("<QQ", *segment))

    def over(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass blocks on, and hash them."""
        for block in blocks:
            self._hash.update(block)
            yield block

    def digest(self) -> bytes:
        """Return the hash of what has passed."""
        return self._hash.digest()


def digest(data: bytes) -> bytes:
    """Return the hash of a file without holes."""
    return hashlib.sha256(data).digest()


def data_length(size: int, segments: list[tuple[int, int]] | None) -> int:
    """Return how many bytes are stored."""
    return size if segments is None else sum(length for _, length in segments)


def data_blocks(reader: Reader, size: int, segments: list[tuple[int, int]] | None) -> Iterator[bytes]:
    """Iterate over what is stored of a file, FRAME_LENGTH bytes at a time."""
    parts: list[bytes] = []
    room = FRAME_LENGTH
    for start, length in [(0, size)] if segments is None else segments:
        offset, end = start, start + length
        while offset < end:
            part = reader.read(offset, min(room, end - offset))
            offset += len(part)
            room -= len(part)
            parts.append(part)
            if not room:
                yield parts[0] if len(parts) == 1 else b"".join(parts)
                parts, room = [], FRAME_LENGTH
    if parts:
        yield b"".join(parts)


def extents(
    content: Content,
    locate: Callable[[int], tuple[int, int, int]],
    moved: Callable[[Extent], Extent],
) -> Iterator[Extent]:
    """Iterate over the extents of new content; *locate* maps a frame's number to (pack, offset, stored), and
    *moved* an extent of an earlier pack, by its id, to one of the manifest.
    """
    if content.segments is None:
        for run in content.runs:
            if isinstance(run, Extent):
                yield moved(run)
                continue
            for frame, skip, length in _spans((run,)):
                yield Extent(*locate(frame), skip, length)
        return
    spans = _spans([run for run in content.runs if isinstance(run, Run)])
    position = frame = skip = left = 0
    for offset, length in content.segments:
        if offset > position:
            yield _hole(offset - position)
        position = offset + length
        while length:
            if not left:
                frame, skip, left = next(spans)
            take = min(left, length)
            yield Extent(*locate(frame), skip, take)
            skip, left, length = skip + take, left - take, length - take  # noqa: PLW2901 - what is left of it
    if position < content.size:
        yield _hole(content.size - position)


def _hole(length: int) -> Extent:
    return Extent(HOLE, 0, 0, 0, length)


def _spans(runs: Sequence[Run]) -> Iterator[tuple[int, int, int]]:
    """Split runs into (frame, skip, length)."""
    for run in runs:
        skip, rest = run.skip, run.length
        for frame in range(run.first, run.first + run.count):
            length = min(rest, FRAME_LENGTH - skip)
            yield frame, skip, length
            skip, rest = 0, rest - length
