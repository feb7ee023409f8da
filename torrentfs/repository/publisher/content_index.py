"""This module knows which contents the repository's packs hold already, by their SHA-256.

It is derived: caught up from the manifests of the catalog before it is asked, and rebuilt when in doubt.
"""

import contextlib
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from torrentfs.errors import FormatError, RepositoryError
from torrentfs.repository.catalog import Catalog, Revision
from torrentfs.repository.manifest import BlockCache, Manifest
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.manifest_format import HOLE, Extent
from torrentfs.repository.metainfo import InfoHash
from torrentfs.repository.publisher.manifest_writer import PackRow

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE manifest (info_hash BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pack (id INTEGER PRIMARY KEY, info_hash BLOB UNIQUE, length INTEGER, piece_length INTEGER);
CREATE TABLE content (
    id INTEGER PRIMARY KEY, sha256 BLOB, packs BLOB, size INTEGER, extents BLOB, UNIQUE (sha256, packs)
);
CREATE INDEX content_size ON content (size);
"""
_encode = msgspec.msgpack.Encoder().encode
_decode_extents = msgspec.msgpack.Decoder(list[Extent]).decode
_decode_packs = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a content lies already: a row of the index, and the ids of the packs that its extents are in."""

    row: int
    packs: tuple[int, ...]


@contextlib.contextmanager
def open_index(path: Path) -> Iterator["ContentIndex"]:
    """Open the index in the file *path*, made if need be.

    Raises:
        RepositoryError: the disk refuses; or it is damaged, and has been taken away.
    """
    try:
        with contextlib.closing(ContentIndex(path)) as index:
            yield index
    except sqlite3.OperationalError as error:
        raise RepositoryError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        _remove(path)
        raise RepositoryError(
            f"{path} was damaged ({error}) and has been removed: publish again, it is made anew"
        ) from error


class ContentIndex:
    """The contents of all packs that the catalog's revisions use, in the order of publication."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = _connect(path)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def catch_up(self, catalog: Catalog, public: Path) -> None:
        """Add what has been published since; start anew if something is known that is no longer there.

        Raises:
            RepositoryError: a manifest of the catalog cannot be read.
        """
        revisions = sorted(
            (revision for version in catalog.versions.values() for revision in version.revisions),
            key=lambda revision: revision.ordinal,
        )
        known = {row[0] for row in self._database.execute("SELECT info_hash FROM manifest")}
        if known - {revision.manifest for revision in revisions}:
            self._start_anew()
            known = set()
        for revision in revisions:
            if revision.manifest not in known:
                known.add(revision.manifest)
                self._add(revision, public)

    @property
    def empty(self) -> bool:
        """Whether there is no content at all."""
        return self._database.execute("SELECT 1 FROM content LIMIT 1").fetchone() is None

    def has_size(self, size: int) -> bool:
        """Tell whether some content is of this size; if not, hashing a file first is in vain."""
        row = self._database.execute("SELECT 1 FROM content WHERE size = ? LIMIT 1", (size,)).fetchone()
        return row is not None

    def places(self, sha256: bytes) -> list[Place]:
        """Return where a content is, the earliest publication first."""
        rows = self._database.execute("SELECT id, packs FROM content WHERE sha256 = ? ORDER BY id", (sha256,))
        return [Place(row, _decode_packs(packs)) for row, packs in rows]

    def pack(self, identity: int) -> PackRow:
        """Return a pack by its id."""
        query = "SELECT info_hash, length, piece_length FROM pack WHERE id = ?"
        return PackRow(*self._database.execute(query, (identity,)).fetchone())

    def identity(self, info_hash: InfoHash) -> int | None:
        """Return the id of a pack, None of one that no revision uses."""
        row = self._database.execute("SELECT id FROM pack WHERE info_hash = ?", (info_hash,)).fetchone()
        return int(row[0]) if row else None

    def extents(self, row: int) -> list[Extent]:
        """Return the extents of a content; their packs are ids."""
        return _decode_extents(
            self._database.execute("SELECT extents FROM content WHERE id = ?", (row,)).fetchone()[0]
        )

    def _add(self, revision: Revision, public: Path) -> None:
        try:
            with open_manifest(public, revision.ref, BlockCache(_BLOCKS)) as manifest, self._database:
                self._add_manifest(manifest)
                self._database.execute("INSERT INTO manifest VALUES (?)", (revision.manifest,))
        except (OSError, FormatError) as error:
            path = revision.ref.kind.url_path(revision.manifest)
            reason = error.strerror if isinstance(error, OSError) else error
            raise RepositoryError(f"{public / path}: {reason}: restore it from a mirror") from error

    def _add_manifest(self, manifest: Manifest) -> None:
        identities = [
            self._pack_id(PackRow(ref.info_hash, ref.length, piece_length))
            for ref, piece_length in zip(manifest.packs, manifest.piece_lengths, strict=True)
        ]
        self._database.executemany(
            "INSERT OR IGNORE INTO content (sha256, packs, size, extents) VALUES (?, ?, ?, ?)",
            _contents(manifest, identities),
        )

    def _pack_id(self, pack: PackRow) -> int:
        insert = "INSERT OR IGNORE INTO pack (info_hash, length, piece_length) VALUES (?, ?, ?)"
        self._database.execute(insert, (pack.info_hash, pack.length, pack.piece_length))
        identity = self.identity(pack.info_hash)
        assert identity is not None, "it was just put in"
        return identity

    def _start_anew(self) -> None:
        with self._database:
            for table in ("manifest", "pack", "content"):
                self._database.execute(f"DELETE FROM {table}")


def _contents(manifest: Manifest, identities: list[int]) -> Iterator[tuple[bytes, bytes, int, bytes]]:
    for number in range(manifest.entry_count):
        entry = manifest.entry(number)
        if not stat.S_ISREG(entry.mode) or not entry.size or entry.leader != number:
            continue
        extents = [
            extent if extent.pack == HOLE else msgspec.structs.replace(extent, pack=identities[extent.pack])
            for _, extent in manifest.extents(entry, 0, entry.size)
        ]
        packs = sorted({extent.pack for extent in extents} - {HOLE})
        yield manifest.sha256(number), _encode(packs), entry.size, _encode(extents)


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database; one that is damaged or of another release is made anew."""
    with contextlib.suppress(sqlite3.DatabaseError):
        database = sqlite3.connect(path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
            return database
        database.close()
    _remove(path)
    path.touch(0o600)
    database = sqlite3.connect(path)
    database.executescript(f"PRAGMA journal_mode = WAL; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};")
    return database


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
