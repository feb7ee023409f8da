"""This module cuts a tar stream into frames and writes packs, compressing in threads while the next is read.

Where a pack ends depends on the bytes alone, never on which thread was faster: packs are named by their hash.
"""

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from torrentfs.repository import durable
from torrentfs.repository.metainfo import Hasher, Kind, Metainfo
from torrentfs.repository.pack import (
    FRAME_LENGTH,
    PACK_LENGTH_MAX,
    TABLE_OVERHEAD,
    TABLE_RECORD,
    encode_frame,
    encode_table,
    frame_bound,
)
from torrentfs.repository.publisher import tar
from torrentfs.repository.publisher.nodes import Run

WINDOW = 16
"""Frames that are compressed or waiting at most. A constant: where a pack ends is decided by it."""
PART_LENGTH_MIN = 16 * 1024 * 1024
"""Room in a pack that a part of a large file is still put into."""
_HEADER_RESERVE = 1024 * 1024
"""Room that is kept for headers and the map of a sparse file, when a large file is put into a pack."""


class Packer:
    """Writes the packs of one revision into a directory; they get their names as they end."""

    def __init__(self, directory: Path, threads: int, pack_length_max: int = PACK_LENGTH_MAX) -> None:
        self._directory = directory
        self._pack_length_max = pack_length_max
        self._pool = ThreadPoolExecutor(threads, "compress")
        self._pending: deque[tuple[Future[bytes], int]] = deque()
        self._pending_bound = 0
        self._syncs: list[Future[None]] = []
        self._parts: list[bytes] = []
        self._fill = 0
        self._file: IO[bytes] | None = None
        self._temporary = directory / f".{os.getpid()}.pack.new"
        self._hasher = Hasher()
        self._written = 0
        self._closed_count = 0
        self._pack_frames: list[tuple[int, int]] = []
        self.packs: list[Metainfo] = []
        self.frame_pack = array("H")
        self.frame_offset = array("Q")
        self.frame_stored = array("I")

    def add(self, header: bytes, data: bytes = b"") -> Run:
        """Append a small member, which never crosses frames; return where its data are."""
        tail = tar.padding(len(data)) if data else b""
        length = len(header) + len(data) + len(tail)
        if self._fill + length > FRAME_LENGTH:
            self._close_frame()
        if self._room() < frame_bound(length):
            self._end_pack()
        self._open()
        run = Run(self._closed_count, 1, self._fill + len(header), len(data))
        self._parts += (header, data, tail) if data else (header,)
        self._fill += length
        return run

    def add_large(
        self,
        header: bytes,
        length: int,
        blocks: Iterator[bytes],
        part_header: Callable[[int], bytes],
    ) -> tuple[list[Run], bool]:
        """Append a member of *length* bytes, whose data start a frame; *blocks* are of FRAME_LENGTH each.

        Return where its data are, and whether it is whole. One that fits no pack is split into members of
        their own, whose headers *part_header*(length) makes.
        """
        need = len(header) + length + _overhead(length)
        if self._room() < need <= self._empty_room():
            self._end_pack()
        if need <= self._room():
            return [self._member(header, length, blocks)], True
        runs: list[Run] = []
        while length:
            room = self._room()
            if room < min(PART_LENGTH_MIN, self._empty_room()):
                self._end_pack()
                room = self._empty_room()
            whole = (room - _overhead(room)) // FRAME_LENGTH * FRAME_LENGTH
            part = min(length, max(whole, FRAME_LENGTH))
            runs.append(self._member(part_header(part), part, blocks))
            length -= part
        return runs, False

    def finish(self) -> list[Metainfo]:
        """End the last pack, and wait until all are on disk."""
        if self._file is not None:
            self._end_pack()
        for sync in self._syncs:
            sync.result()
        self._pool.shutdown()
        if self.packs:
            durable.sync(self._directory)
        return self.packs

    def abandon(self) -> None:
        """Give up, if not finished; packs that have ended stay, as litter."""
        self._pool.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _member(self, header: bytes, length: int, blocks: Iterator[bytes]) -> Run:
        self._append_split(header)
        self._close_frame()
        first, rest = self._closed_count, length
        while rest:
            block = next(blocks)
            rest -= len(block)
            self._parts.append(block)
            self._fill += len(block)
            if self._fill == FRAME_LENGTH:
                self._close_frame()
        tail = tar.padding(length)
        if tail:
            self._parts.append(tail)
            self._fill += len(tail)
        return Run(first, -(-length // FRAME_LENGTH), 0, length)

    def _append_split(self, header: bytes) -> None:
        """Append headers; a sparse file's map may take more than a frame."""
        self._open()
        if self._fill + len(header) > FRAME_LENGTH:
            self._close_frame()
        for start in range(0, len(header), FRAME_LENGTH):
            part = header[start : start + FRAME_LENGTH]
            self._parts.append(part)
            self._fill += len(part)
            if self._fill == FRAME_LENGTH:
                self._close_frame()

    def _room(self) -> int:
        """Return how many bytes the pack is sure to have left."""
        if self._file is None:
            return self._empty_room()
        frames = len(self._pack_frames) + len(self._pending) + 4
        used = self._written + self._pending_bound + frame_bound(self._fill) + frame_bound(len(tar.END))
        return self._pack_length_max - used - TABLE_OVERHEAD - frames * TABLE_RECORD

    def _empty_room(self) -> int:
        return self._pack_length_max - frame_bound(len(tar.END)) - TABLE_OVERHEAD - 4 * TABLE_RECORD

    def _open(self) -> None:
        if self._file is None:
            self._file = self._temporary.open("wb", buffering=0)

    def _close_frame(self) -> None:
        if not self._fill:
            return
        self._pending.append((self._pool.submit(_encode, self._parts), self._fill))
        self._pending_bound += frame_bound(self._fill)
        self._closed_count += 1
        self._parts = []
        self._fill = 0
        if len(self._pending) > WINDOW:
            self._drain()

    def _drain(self) -> None:
        """Write the oldest frame."""
        future, length = self._pending.popleft()
        frame = future.result()
        self._pending_bound -= frame_bound(length)
        self.frame_pack.append(len(self.packs))
        self.frame_offset.append(self._written)
        self.frame_stored.append(len(frame))
        self._pack_frames.append((len(frame), length))
        self._write(frame)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hasher.update(data)
        self._written += len(data)

    def _end_pack(self) -> None:
        if self._file is None:
            return
        self._append_end()
        while self._pending:
            self._drain()
        self._write(encode_table(self._pack_frames))
        metainfo = self._hasher.finish(Kind.PACK.suffix)
        self._syncs.append(self._pool.submit(_settle, self._file, self._temporary, self._directory, metainfo))
        self.packs.append(metainfo)
        self._file = None
        self._temporary = self._directory / f".{os.getpid()}.{len(self.packs)}.pack.new"
        self._hasher, self._written, self._pack_frames = Hasher(), 0, []

    def _append_end(self) -> None:
        """Append the end of the archive."""
        if self._fill + len(tar.END) > FRAME_LENGTH:
            self._close_frame()
        self._parts.append(tar.END)
        self._fill += len(tar.END)
        self._close_frame()


def _overhead(length: int) -> int:
    """Return what *length* bytes in frames of their own take at most beyond themselves."""
    frames = -(-length // FRAME_LENGTH) + 1
    return frames * (frame_bound(FRAME_LENGTH) - FRAME_LENGTH + TABLE_RECORD) + _HEADER_RESERVE


def _encode(parts: Sequence[bytes]) -> bytes:
    return encode_frame(parts[0] if len(parts) == 1 else b"".join(parts))


def _settle(file: IO[bytes], temporary: Path, directory: Path, metainfo: Metainfo) -> None:
    """Bring a pack to disk, name it, and write its metainfo beside it."""
    with file:
        os.fsync(file.fileno())
    public = directory.parent
    durable.write({public / Kind.PACK.torrent_path(metainfo.info_hash): metainfo.torrent()})
    temporary.replace(public / Kind.PACK.url_path(metainfo.info_hash))
