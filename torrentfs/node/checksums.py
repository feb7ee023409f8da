"""This module looks whether pieces on disk are what they should be. From any thread."""

import os
from collections.abc import Iterable
from pathlib import Path

import xxhash

from torrentfs.errors import CacheError
from torrentfs.node.held import Held
from torrentfs.repository.metainfo import Metainfo, PieceIndex


def checksum(held: Held, piece: PieceIndex, data: bytes) -> bytes:
    """Return the xxh3 checksum of a piece, b"" if *data* is not all of it."""
    return xxhash.xxh3_128_digest(data) if len(data) == held.span(piece) else b""


def digests(path: Path, held: Held, pieces: Iterable[PieceIndex]) -> list[bytes]:
    """Return the xxh3 checksums of *pieces* in the file *path*, b"" of what is not there.

    Raises:
        CacheError: the disk refuses.
    """
    found = []
    for piece, data in zip(pieces := list(pieces), _read(path, held, pieces), strict=True):
        found.append(xxhash.xxh3_128_digest(data) if len(data) == held.span(piece) else b"")
    return found


def right_pieces(
    path: Path, held: Held, metainfo: Metainfo, pieces: Iterable[PieceIndex]
) -> list[PieceIndex]:
    """Return those of *pieces* whose bytes in the file *path* match their signed hash.

    Raises:
        CacheError: the disk refuses.
    """
    pieces = list(pieces)
    return [
        piece
        for piece, data in zip(pieces, _read(path, held, pieces), strict=True)
        if metainfo.verify(piece, data)
    ]


def _read(path: Path, held: Held, pieces: Iterable[PieceIndex]) -> Iterable[bytes]:
    """Yield the bytes of *pieces*, fewer or none where the file ends before."""
    try:
        with path.open("rb", buffering=0) as file:
            for piece in pieces:
                yield os.pread(file.fileno(), held.span(piece), piece * held.piece_length)
    except FileNotFoundError:
        yield from (b"" for _ in pieces)
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}") from error
