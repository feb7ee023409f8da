"""This module reads tar and zip archives as sources, as if somebody hostile had made them.

Nothing is unpacked: names go into the tree in memory, contents into one unnamed file on disk, within limits.
"""

import contextlib
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from torrentfs.errors import PublishError
from torrentfs.repository.publisher.archive_compression import expand
from torrentfs.repository.publisher.archive_stream import Bounded, Spool
from torrentfs.repository.publisher.archive_tar import read_tar
from torrentfs.repository.publisher.archive_tree import ArchiveTree, Stored
from torrentfs.repository.publisher.archive_zip import read_zip
from torrentfs.repository.publisher.nodes import Node, Source

EXPANSION_MAX = 1000
"""Bytes that a byte of archive may become: text takes 20, zeros in gzip 1,032."""
EXPANSION_FREE = 1024**3
"""Bytes that any archive may become."""
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
                read_zip(file, tree, Spool(spool, path, budget))
            else:
                with contextlib.closing(expand(file, path)) as expanded:
                    bounded = Bounded(expanded, path, budget)
                    read_tar(bounded, tree, Spool(spool, path, budget))
                    bounded.finish()
        return ArchiveSource(tree.finish(), spool, path)
    except OSError as error:
        spool.close()
        # Without a number it is gzip's or bzip2's.
        what = error.strerror if error.errno else f"damaged archive: {error}"
        raise PublishError(f"{path}: {what}") from error
    except EOFError as error:
        spool.close()
        raise PublishError(f"{path}: damaged archive: it ends early") from error
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        spool.close()
        raise PublishError(f"{path}: damaged or unreadable archive: {error}") from error
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


def _stored(node: Node) -> Stored:
    assert isinstance(node.origin, Stored)
    assert stat.S_ISREG(node.mode)
    return node.origin
