"""This module reads tar and zip archives as sources, as if somebody hostile had made them.

Nothing is unpacked: names go into the tree in memory, contents into one unnamed file on disk, within limits.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from torrentfs.errors import PublishError
from torrentfs.repository.publisher.archive_tree import ArchiveTree, Stored
from torrentfs.repository.publisher.nodes import Node, Source

EXPANSION_MAX = 1000
"""Bytes that a byte of archive may become: text takes 20, zeros in gzip 1,032."""
EXPANSION_FREE = 1024**3
"""Bytes that any archive may become."""
WINDOW_LENGTH_MAX = 128 * 1024 * 1024
"""Memory that a zstd archive may ask for, as with ``zstd --long=27``."""

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip")


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file's contents are to be published rather than itself."""
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def open_archive(path: Path) -> Source:
    """Read an archive, whole.

    Raises:
        PublishError: it is damaged, or holds what cannot be published or must not be believed.
    """
    tree = ArchiveTree(path)
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - it is the source's from here on
    try:
        with path.open("rb") as file:
            budget = max(EXPANSION_FREE, EXPANSION_MAX * path.stat().st_size)
            if path.name.lower().endswith(".zip"):
                from torrentfs.repository.publisher.archive_zip import read_zip  # noqa: PLC0415 - seldom needed

                read_zip(file, tree, _Spool(spool, path, budget))
            else:
                from torrentfs.repository.publisher.archive_tar import read_tar  # noqa: PLC0415 - seldom needed

                with contextlib.closing(_expand(file, path)) as expanded:
                    read_tar(Bounded(expanded, path, budget), tree, _Spool(spool, path, budget))
        return ArchiveSource(tree.finish(), spool, path)
    except OSError as error:
        spool.close()
        raise PublishError(f"{path}: {error.strerror or error}") from error
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        spool.close()
        raise PublishError(f"{path}: damaged archive: {error}") from error
    except BaseException:
        spool.close()
        raise


class ArchiveSource:
    """The tree of an archive, with all contents in one unnamed file."""

    def __init__(self, root: Node, spool: IO[bytes], path: Path) -> None:
        self.root = root
        self._spool = spool
        self._path = path

    def read(self, node: Node, path: bytes) -> bytes | None:
        """Return all of a small file."""
        stored = _stored(node)
        if stored.ranges != [(0, node.size)]:
            return None
        return self._pread(stored.offset, node.size)

    @contextlib.contextmanager
    def open(self, node: Node, path: bytes) -> Iterator["SpoolReader"]:
        """Open a file."""
        yield SpoolReader(self._pread, _stored(node))

    def check(self) -> None:
        """The spool is ours: it does not change."""

    def close(self) -> None:
        """Give up the contents."""
        self._spool.close()

    def _pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._spool.fileno(), length, offset)
        while len(data) < length:
            more = os.pread(self._spool.fileno(), length - len(data), offset + len(data))
            if not more:
                raise PublishError(f"{self._path}: the temporary copy of its contents is damaged")
            data += more
        return data


class SpoolReader:
    """A file in the spool, where only its ranges are stored, one after the other."""

    def __init__(self, pread: Any, stored: Stored) -> None:
        self._pread = pread
        self._offset = stored.offset
        self.ranges = stored.ranges

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes, holes as zeros."""
        parts: list[bytes] = []
        position, start, end = self._offset, offset, offset + length
        for first, count in self.ranges:
            low, high = max(first, start), min(first + count, end)
            if low < high:
                parts += (bytes(low - start), self._pread(position + low - first, high - low))
                start = high
            position += count
        parts.append(bytes(end - start))
        return b"".join(parts)


class _Spool:
    """Where contents are written, within a budget of bytes."""

    def __init__(self, file: IO[bytes], path: Path, budget: int) -> None:
        self._file = file
        self._path = path
        self._budget = budget
        self.offset = 0

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            PublishError: more than the archive's size can explain.
        """
        self.offset += len(data)
        if self.offset > self._budget:
            raise bomb(self._path, self._budget)
        self._file.write(data)

    def flush(self) -> None:
        """Make what was written readable."""
        self._file.flush()


class Bounded:
    """What an archive expands to, read forwards only; neither one read nor the whole may be absurd."""

    READ_LENGTH_MAX = 1024 * 1024
    HEADER_LENGTH_MAX = 32 * 1024 * 1024

    def __init__(self, file: IO[bytes], path: Path, budget: int) -> None:
        self._file = file
        self._path = path
        self._budget = budget
        self._position = 0
        self._header_room = self.HEADER_LENGTH_MAX

    def read(self, length: int) -> bytes:
        """Read up to *length* bytes of headers.

        Raises:
            PublishError: a header, or part of one, is absurdly long; or as with `take`.
        """
        self._header_room -= length
        if not 0 <= length <= self.READ_LENGTH_MAX or self._header_room < 0:
            raise PublishError(f"{self._path}: an archive with a header of an absurd length")
        return self.take(length)

    def end_header(self) -> None:
        """Tell that a member's headers are complete."""
        self._header_room = self.HEADER_LENGTH_MAX

    def take(self, length: int) -> bytes:
        """Read up to *length* bytes; fewer only at the end.

        Raises:
            PublishError: the archive expands absurdly.
        """
        parts = []
        while length and (part := self._file.read(length)):
            parts.append(part)
            length -= len(part)
        data = b"".join(parts)
        self._position += len(data)
        if self._position > self._budget + self.READ_LENGTH_MAX:
            raise bomb(self._path, self._budget)
        return data

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seek(self, position: int) -> int:
        """Skip forwards."""
        if position < self._position:
            raise PublishError(f"{self._path}: an archive whose members overlap")
        while self._position < position:
            if not self.take(min(position - self._position, self.READ_LENGTH_MAX)):
                raise PublishError(f"{self._path}: damaged archive: it ends inside a member")
        return self._position


def bomb(path: Path, budget: int) -> PublishError:
    """Say that an archive expands too much."""
    return PublishError(
        f"{path}: expands to more than {budget} bytes; unpack it and publish the directory if that is right"
    )


def _expand(file: IO[bytes], path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(("gz", "tgz")):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if name.endswith("bz2"):
        return bz2.BZ2File(file)
    if name.endswith("xz"):
        return lzma.LZMAFile(file)
    if name.endswith("zst"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_LENGTH_MAX)
        return cast(IO[bytes], decompressor.stream_reader(file, read_across_frames=True, closefd=False))
    return file


def _stored(node: Node) -> Stored:
    assert isinstance(node.origin, Stored)
    assert stat.S_ISREG(node.mode)
    return node.origin
