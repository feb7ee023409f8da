"""This module takes the compression off an archive: gzip, bzip2, xz or zstd by its name, all frames of it."""

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Generator
from pathlib import Path
from typing import IO, cast

import zstandard

from torrentfs.errors import PublishError
from torrentfs.repository.publisher.archive_stream import Expanded

MEMORY_LENGTH_MAX = 128 * 1024 * 1024
"""What an archive may ask for to be unpacked, as with ``zstd --long=27``; ``xz -9`` takes 65 MiB."""

_CHUNK_LENGTH = 128 * 1024
_FRAME_HEADER_LENGTH_MIN = 8
"""Of a frame that holds anything: magic, descriptor, window or size, and a block's header."""
_FRAME_HEADER_LENGTH_MAX = 18
_SKIPPABLE_HEADER_LENGTH = 8
_BLOCK_HEADER_LENGTH = 3
_CHECKSUM_LENGTH = 4
_RLE = 1
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)


def expand(file: IO[bytes], path: Path) -> Expanded:
    """Return what *file* holds, decompressed as its name *path* says.

    Reading may raise EOFError, OSError, or an error of zlib, lzma or zstandard.

    Raises:
        PublishError: it does not consist of whole zstd frames.
    """
    name = path.name.lower()
    if name.endswith(("gz", "tgz")):
        return cast(Expanded, gzip.GzipFile(fileobj=file))
    if name.endswith("bz2"):
        return bz2.BZ2File(file)
    if name.endswith("xz"):
        return _Xz(file)
    if name.endswith("zst"):
        _check_frames(file, path)
        decompressor = zstandard.ZstdDecompressor(max_window_size=MEMORY_LENGTH_MAX)
        return cast(Expanded, decompressor.stream_reader(file, read_across_frames=True, closefd=False))
    return file


class _Xz:
    """The streams of an xz file, one after the other. `lzma.LZMAFile` has no limit of memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._parts = _xz_parts(file)
        self._part = io.BytesIO()

    def read(self, length: int) -> bytes:
        """Return up to *length* bytes; none at the end."""
        while not (data := self._part.read(length)):
            part = next(self._parts, None)
            if part is None:
                break
            self._part = io.BytesIO(part)
        return data

    def close(self) -> None:
        """The file is the caller's."""
        self._parts.close()


def _xz_parts(file: IO[bytes]) -> Generator[bytes]:
    """Yield what all streams of *file* hold.

    Raises:
        EOFError: the last one is cut.
        LZMAError: something is no stream, is damaged, or takes more than `MEMORY_LENGTH_MAX`.
    """
    data = file.read(_CHUNK_LENGTH)
    while data:
        stream = lzma.LZMADecompressor(memlimit=MEMORY_LENGTH_MAX)
        while not stream.eof:
            if stream.needs_input and not data:
                data = file.read(_CHUNK_LENGTH)
                if not data:
                    raise EOFError
            yield stream.decompress(data, _CHUNK_LENGTH)
            data = b""
        data = stream.unused_data.lstrip(b"\0")
        while not data and (padding := file.read(_CHUNK_LENGTH)):
            data = padding.lstrip(b"\0")


def _check_frames(file: IO[bytes], path: Path) -> None:
    """Check that *file* consists of whole zstd frames, by their headers alone (RFC 8878, 3.1), and rewind it.

    The library takes a frame that is cut for the end of the file, and what is no frame too.

    Raises:
        PublishError: one is cut, or something else is among them.
    """
    length, position = file.seek(0, os.SEEK_END), 0
    while position < length:
        try:
            position = _frame_end(file, position)
        except zstandard.ZstdError as error:
            raise PublishError(f"{path}: damaged archive: no zstd frame at byte {position}") from error
    if position > length:
        raise PublishError(f"{path}: damaged archive: it ends early")
    file.seek(0)


def _frame_end(file: IO[bytes], position: int) -> int:
    """Return where the frame at *position* ends; beyond the end of the file if that is cut."""
    file.seek(position)
    head = file.read(_FRAME_HEADER_LENGTH_MAX)
    if len(head) < _FRAME_HEADER_LENGTH_MIN:
        return position + _FRAME_HEADER_LENGTH_MIN
    if int.from_bytes(head[:4], "little") in _SKIPPABLE:
        return position + _SKIPPABLE_HEADER_LENGTH + int.from_bytes(head[4:8], "little")
    header_length = zstandard.frame_header_size(head)
    if len(head) < header_length:
        return position + header_length
    position += header_length
    last = False
    while not last:
        file.seek(position)
        header = file.read(_BLOCK_HEADER_LENGTH)
        block = int.from_bytes(header, "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        position += _BLOCK_HEADER_LENGTH + (1 if kind == _RLE else size)
        if len(header) < _BLOCK_HEADER_LENGTH:
            break
    return position + _CHECKSUM_LENGTH * zstandard.get_frame_parameters(head).has_checksum
