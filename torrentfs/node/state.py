"""This module remembers in SQLite which pieces a cache holds, with a checksum each; the pieces lie elsewhere.

Write-ahead log, no fsync on commit: SIGKILL loses nothing, a power cut may lose the last claims (the cache
forgets) or keep claims whose data is gone (the checksum tells at the first read). One thread at a time, but
for `checkpoint`.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torrentfs.errors import CacheError
from torrentfs.repository.metainfo import InfoHash, Kind, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

STATE_VERSION = 2
BLOCK = 512
"""What st_blocks counts in (inode(7))."""
DIGEST_LENGTH = 16
"""xxh3_128."""

_SCHEMA = f"""
CREATE TABLE torrents (
    number INTEGER PRIMARY KEY,
    info_hash BLOB NOT NULL UNIQUE CHECK (length(info_hash) = 32),
    kind TEXT NOT NULL CHECK (kind IN ('pack', 'manifest')),
    length INTEGER NOT NULL CHECK (length > 0),
    piece_length INTEGER NOT NULL CHECK (piece_length > 0),
    used INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE pieces (
    torrent INTEGER NOT NULL,
    piece INTEGER NOT NULL CHECK (piece >= 0),
    digest BLOB NOT NULL CHECK (length(digest) = {DIGEST_LENGTH}),
    PRIMARY KEY (torrent, piece)
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
_PINS = f"""
CREATE TABLE pins (
    label TEXT NOT NULL,
    info_hash BLOB NOT NULL CHECK (length(info_hash) = 32),
    PRIMARY KEY (label, info_hash)
) WITHOUT ROWID;
PRAGMA user_version = {STATE_VERSION};
"""
"""What version 2 has besides."""


@dataclass(frozen=True, slots=True)
class TorrentRow:
    """A torrent that the cache knows: *number* is its key here, *cached* the bytes of the pieces it holds,
    *used_s* when it was last read, in Unix seconds.
    """

    number: int
    ref: TorrentRef
    piece_length: int
    cached: int
    used_s: int


class State:
    """The claims of one cache."""

    def __init__(self, path: Path) -> None:
        """Open or make the database; a damaged one is put aside and forgotten, for the cache may forget.

        Raises:
            CacheError: the file cannot be used, or a newer release made it.
        """
        self._path = path
        try:
            try:
                self._connection, self.rows = _open(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                _LOG.warning("the state of the cache is damaged (%s): starting with an empty one", error)
                _put_aside(path)
                self._connection, self.rows = _open(path)
        except (sqlite3.Error, OSError) as error:
            raise CacheError(f"cannot use {path}: {error}") from error

    @property
    def length(self) -> int:
        """Bytes of the disk that the database and its log take."""
        length = 0
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                length += BLOCK * Path(f"{self._path}{suffix}").stat().st_blocks
        return length

    def pieces(self, number: int) -> list[tuple[PieceIndex, bytes]]:
        """Return the pieces held of a torrent, with their checksums."""
        query = "SELECT piece, digest FROM pieces WHERE torrent = ?"
        with self._translated():
            return self._connection.execute(query, (number,)).fetchall()

    def add(self, ref: TorrentRef, piece_length: int) -> int:
        """Write down a torrent and return its number."""
        query = "INSERT INTO torrents (info_hash, kind, length, piece_length) VALUES (?, ?, ?, ?)"
        with self._translated():
            cursor = self._connection.execute(
                query, (ref.info_hash, ref.kind.value, ref.length, piece_length)
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def claim(self, number: int, pieces: Iterable[tuple[PieceIndex, bytes]]) -> None:
        """Write down pieces with their checksums, in one transaction."""
        rows = [(number, piece, digest) for piece, digest in pieces]
        self._transact("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?)", rows)

    def drop(self, number: int, pieces: Iterable[PieceIndex]) -> None:
        """Forget pieces."""
        self._transact(
            "DELETE FROM pieces WHERE torrent = ? AND piece = ?", [(number, piece) for piece in pieces]
        )

    def used(self, uses: Iterable[tuple[int, int]]) -> None:
        """Write down when torrents were last read: (number, Unix seconds)."""
        self._transact(
            "UPDATE torrents SET used = ? WHERE number = ?", [(when, number) for number, when in uses]
        )

    def remove(self, number: int) -> None:
        """Forget a torrent and its pieces, in one transaction."""
        with self._translated(), self._transaction():
            for query in ("DELETE FROM pieces WHERE torrent = ?", "DELETE FROM torrents WHERE number = ?"):
                self._connection.execute(query, (number,))

    def pins(self) -> list[tuple[str, InfoHash]]:
        """Return what is pinned, and under which label."""
        with self._translated():
            return self._connection.execute("SELECT label, info_hash FROM pins").fetchall()

    def pin(self, label: str, info_hashes: Iterable[InfoHash]) -> None:
        """Pin torrents under *label*, in place of what was."""
        with self._translated(), self._transaction():
            self._connection.execute("DELETE FROM pins WHERE label = ?", (label,))
            rows = [(label, info_hash) for info_hash in info_hashes]
            self._connection.executemany("INSERT OR IGNORE INTO pins VALUES (?, ?)", rows)

    def checkpoint(self) -> None:
        """Move the log into the database. Waits for the disk, hence for a thread; claims go on meanwhile."""
        with self._translated(), contextlib.closing(_connect(self._path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the database, whose log goes into it."""
        with self._translated():
            self._connection.close()

    def _transact(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._translated(), self._transaction():
            self._connection.executemany(query, rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CacheError(f"cannot use {self._path}: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    # Our own transactions; autocommit in between. The checkpoint of a busy log would fsync within a claim:
    # off.
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def _open(path: Path) -> tuple[sqlite3.Connection, list[TorrentRow]]:
    connection = _connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version in {0, 1}:
            schema = _PINS if version == 1 else _SCHEMA + _PINS
            connection.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
        elif version != STATE_VERSION:
            raise CacheError(
                f"{path} is of version {version}, this release reads {STATE_VERSION}: use another cache"
            )
        return connection, _rows(connection)
    except BaseException:
        connection.close()
        raise


def _rows(connection: sqlite3.Connection) -> list[TorrentRow]:
    """Read every torrent with what it holds: 400,000 pieces (100 GB) take 30 ms, and damage shows."""
    counts: Callable[[int], tuple[int, int]] = {
        number: (count, last)
        for number, count, last in connection.execute(
            "SELECT torrent, count(digest), max(piece) FROM pieces GROUP BY torrent"
        )
    }.get  # type: ignore[assignment]
    query = "SELECT number, info_hash, kind, length, piece_length, used FROM torrents"
    rows = []
    for number, info_hash, kind, length, piece_length, used_s in connection.execute(query):
        count, last = counts(number) or (0, -1)
        overhang = max(0, (last + 1) * piece_length - length)
        ref = TorrentRef(InfoHash(info_hash), length, Kind(kind))
        rows.append(TorrentRow(number, ref, piece_length, count * piece_length - overhang, used_s))
    return rows


def _put_aside(path: Path) -> None:
    path.rename(path.with_suffix(".damaged"))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
