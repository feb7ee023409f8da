"""This module tests where holes are: by a file's bytes, whatever the disk says beyond there being some."""

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.repository.manifest_format import HOLE
from torrentfs.repository.pack import FRAME_LENGTH
from torrentfs.repository.publisher import content
from torrentfs.repository.publisher.holes import UNIT_LENGTH, data_segments
from torrentfs.repository.publisher.nodes import Content, Run


@dataclass
class Memory:
    """A file in memory, with the ranges that a disk would say are data."""

    data: bytes
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= len(self.data)
        return self.data[offset : offset + length]


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    units = draw(st.lists(st.booleans(), min_size=1, max_size=200))
    chance = random.Random(1)
    data = b"".join(chance.randbytes(UNIT_LENGTH) if unit else bytes(UNIT_LENGTH) for unit in units)
    data = data[: max(len(data) - draw(st.integers(0, UNIT_LENGTH - 1)), 1)]
    ranges = []
    for number, unit in enumerate(units):
        # A disk may keep zeros as data, and may know of holes in smaller steps than ours.
        if unit or draw(st.booleans()):
            start = number * UNIT_LENGTH
            ranges.append((start, min(UNIT_LENGTH, len(data) - start)))
    return Memory(data, ranges)


@settings(max_examples=60, deadline=None)
@given(memory=memories())
def test_the_same_bytes_have_the_same_holes_and_lose_nothing(memory: Memory) -> None:
    size = len(memory.data)
    other = Memory(memory.data, [(0, size - 1), (size - 1, 1)] if size > 1 else [])

    segments = data_segments(memory, size)

    if size > 1 and memory.ranges != [(0, size)]:
        assert data_segments(other, size) == segments
    stored = b"".join(content.data_blocks(memory, size, segments))
    assert len(stored) == content.data_length(size, segments)
    rebuilt = bytearray(size)
    position = 0
    for offset, length in [(0, size)] if segments is None else segments:
        rebuilt[offset : offset + length] = stored[position : position + length]
        position += length
    assert rebuilt == memory.data


@settings(max_examples=60, deadline=None)
@given(memory=memories(), skip=st.integers(0, 1000))
def test_extents_cover_a_file_without_gaps(memory: Memory, skip: int) -> None:
    size = len(memory.data)
    segments = data_segments(memory, size)
    stored = b"".join(content.data_blocks(memory, size, segments))
    small = len(stored) <= FRAME_LENGTH - skip
    run = Run(3, 1, skip, len(stored)) if small else Run(3, -(-len(stored) // FRAME_LENGTH), 0, len(stored))
    frames = bytes(run.skip) + stored

    new = Content(b"", size, segments, (run,))
    extents = list(content.extents(new, lambda frame: (0, frame - 3, 1), lambda old: old))

    parts = [
        bytes(extent.length)
        if extent.pack == HOLE
        else frames[extent.offset * FRAME_LENGTH :][extent.skip : extent.skip + extent.length]
        for extent in extents
    ]
    assert b"".join(parts) == memory.data
    assert all(extent.length > 0 for extent in extents)
