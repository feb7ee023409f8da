"""This module writes down which manifest stands for which ordinal, before a node first answers with it.

An inode holds an ordinal and an entry number; after a restart, or when the catalog has moved on, the ledger
still says which manifest that was. It is an append-only file of fixed records, the last one for an ordinal
counts (re-packing gives a revision another manifest with the same entries), and a torn end is cut off.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from torrentfs.errors import CacheError
from torrentfs.repository.metainfo import InfoHash, Kind, TorrentRef

RECORD = struct.Struct(">Q32sQ")
"""Ordinal, info-hash and length of the manifest; xxh3 (8 bytes) of these follows."""
CHECK_LENGTH = 8
RECORD_LENGTH = RECORD.size + CHECK_LENGTH
RECORDS_MAX = 4_000_000


class FileLedger:
    """The ledger of one repository on one node; implements tree.Ledger."""

    def __init__(self, descriptor: int) -> None:
        """Read the ledger in *descriptor*; `open_ledger` is the way here."""
        self._descriptor = descriptor
        self._manifests: dict[int, TorrentRef] = {}
        self._length = 0
        self._load()

    def find(self, ordinal: int) -> TorrentRef | None:
        """Return the manifest that stands for *ordinal*, if this node ever answered with it."""
        return self._manifests.get(ordinal)

    def record(self, refs: Mapping[int, TorrentRef]) -> None:
        """Write down *refs* for their ordinals, on disk when this returns; what is there costs nothing.

        Raises: CacheError: the disk refuses.
        """
        news = {ordinal: ref for ordinal, ref in refs.items() if self._manifests.get(ordinal) != ref}
        if not news:
            return
        bodies = [RECORD.pack(ordinal, ref.info_hash, ref.length) for ordinal, ref in news.items()]
        records = b"".join(body + _check(body) for body in bodies)
        try:
            # At our own end, not the file's: what a failed write left there is overwritten.
            if os.pwrite(self._descriptor, records, self._length) != len(records):
                raise CacheError("cannot write the ledger: No space left on device")
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise CacheError(f"cannot write the ledger: {error.strerror}") from error
        self._length += len(records)
        self._manifests.update(news)

    def _load(self) -> None:
        """Read all records up to the first that is torn or damaged, and cut the file there."""
        data = os.pread(self._descriptor, RECORDS_MAX * RECORD_LENGTH, 0)
        for start in range(0, len(data) - RECORD_LENGTH + 1, RECORD_LENGTH):
            body = data[start : start + RECORD.size]
            if data[start + RECORD.size : start + RECORD_LENGTH] != _check(body):
                break
            ordinal, info_hash, length = RECORD.unpack(body)
            self._manifests[ordinal] = TorrentRef(InfoHash(info_hash), length, Kind.MANIFEST)
            self._length = start + RECORD_LENGTH
        os.ftruncate(self._descriptor, self._length)


def _check(body: bytes) -> bytes:
    return xxhash.xxh3_64_digest(body)


@contextmanager
def open_ledger(file: Path) -> Iterator[FileLedger]:
    """Open the ledger *file*, made if need be.

    Raises: CacheError.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CacheError(f"{file}: {error.strerror}") from error
    try:
        yield FileLedger(descriptor)
    finally:
        os.close(descriptor)
