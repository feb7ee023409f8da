"""This module decides where a sparse file's holes are: by its bytes, as file systems differ in theirs.

A file without any hole on disk is taken as it is, however many zeros it holds.
"""

from collections.abc import Iterable, Iterator

from torrentfs.errors import PublishError
from torrentfs.repository.publisher.nodes import Reader

UNIT_LENGTH = 4096
"""A hole is a run of aligned units of zeros; the last unit of a file may be short."""
SEGMENT_COUNT_MAX = 1 << 20

_ZEROS = bytes(UNIT_LENGTH)
_SCAN_LENGTH = 1024 * 1024


def data_segments(reader: Reader, size: int) -> list[tuple[int, int]] | None:
    """Return the (offset, length) between a file's holes; None if it has none.

    Raises:
        PublishError: more than `SEGMENT_COUNT_MAX` of them.
    """
    if reader.ranges == [(0, size)]:
        return None
    segments: list[tuple[int, int]] = []
    start = end = 0
    for offset, length in _nonzero_units(reader, size):
        if offset != end and end > start:
            segments.append((start, end - start))
        if offset != end:
            start = offset
        end = offset + length
        if len(segments) > SEGMENT_COUNT_MAX:
            raise PublishError(f"a file with more than {SEGMENT_COUNT_MAX} holes")
    if end > start:
        segments.append((start, end - start))
    return None if segments == [(0, size)] else segments


def _nonzero_units(reader: Reader, size: int) -> Iterator[tuple[int, int]]:
    for start, end in _aligned(reader.ranges, size):
        for offset in range(start, end, _SCAN_LENGTH):
            block = reader.read(offset, min(_SCAN_LENGTH, end - offset))
            for position in range(0, len(block), UNIT_LENGTH):
                unit = block[position : position + UNIT_LENGTH]
                if unit != _ZEROS and any(unit):
                    yield offset + position, len(unit)


def _aligned(ranges: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Widen ranges to whole units and join those that then touch; yield (start, end)."""
    start = end = -1
    for offset, length in ranges:
        low = offset - offset % UNIT_LENGTH
        high = min(offset + length + -(offset + length) % UNIT_LENGTH, size)
        if low > end:
            if end > start:
                yield start, end
            start = low
        end = max(end, high)
    if end > start:
        yield start, end
