"""This module remembers in SQLite which pieces a cache holds, with a checksum each; the pieces lie elsewhere.

Write-ahead log, no fsync on commit. A claim is fresh until its data has reached the disk (`settle`). SIGKILL
loses nothing, for the kernel has what was written. After a power cut, which the kernel's boot ID tells of
(proc_sys_kernel(5)), fresh claims are forgotten; the others are true of the files, as nothing is taken from a
file before it is on disk that it is not claimed any more (`sync`). One thread at a time, but for what says
otherwise.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from torrentfs.errors import CacheError
from torrentfs.repository.metainfo import InfoHash, Kind, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

STATE_VERSION = 3
BLOCK = 512
"""What st_blocks counts in (inode(7))."""
DIGEST_LENGTH = 16
"""xxh3_128."""
LOG_LENGTH_MAX = 1024 * 1024
"""What the log keeps of the disk once it was moved into the database."""
SETTLE_ROWS = 256
"""So many claims are settled in one transaction: others that write meanwhile wait for some ms."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

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
_PINS = """
CREATE TABLE pins (
    label TEXT NOT NULL,
    info_hash BLOB NOT NULL CHECK (length(info_hash) = 32),
    PRIMARY KEY (label, info_hash)
) WITHOUT ROWID;
PRAGMA user_version = 2;
"""
"""What version 2 has besides."""
_FRESH = f"""
CREATE TABLE fresh (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    torrent INTEGER NOT NULL,
    piece INTEGER NOT NULL CHECK (piece >= 0),
    digest BLOB NOT NULL CHECK (length(digest) = {DIGEST_LENGTH}),
    UNIQUE (torrent, piece)
);
CREATE TABLE boot (id TEXT NOT NULL);
PRAGMA user_version = {STATE_VERSION};
"""
"""What version 3 has besides: claims whose data may not be on disk, and under which boot they were made."""
_STEPS = (_SCHEMA, _PINS, _FRESH)
"""What makes each version of the one before."""
_CLAIMS = ("pieces", "fresh")

_ENVIRONMENT = frozenset(
    {
        *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    }
)
_Piece = Annotated[PieceIndex, Meta(ge=0, lt=1 << 32)]
_Digest = Annotated[bytes, Meta(min_length=DIGEST_LENGTH, max_length=DIGEST_LENGTH)]
_InfoHash = Annotated[InfoHash, Meta(min_length=32, max_length=32)]
_Length = Annotated[int, Meta(ge=1, lt=1 << 62)]
_Rows = TypeVar("_Rows")


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
        """Open or make the database. One that is damaged, or a newer release's, is put aside and forgotten:
        the cache may forget.

        Raises:
            CacheError: the file cannot be used.
        """
        self._path = path
        try:
            try:
                self._connection, self.rows, self.pins = _open(path)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if isinstance(error, sqlite3.DatabaseError) and not _is_damage(error, path):
                    raise
                _LOG.warning("the state of the cache cannot be read (%s): it is made anew", error)
                _put_aside(path)
                self._connection, self.rows, self.pins = _open(path)
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

    @property
    def is_log_long(self) -> bool:
        """Tell whether the log takes so much that a checkpoint is due."""
        with contextlib.suppress(OSError):
            return Path(f"{self._path}-wal").stat().st_size > LOG_LENGTH_MAX
        return False

    def pieces(self, number: int) -> list[tuple[PieceIndex, bytes]]:
        """Return the pieces held of a torrent, with their checksums."""
        query = "SELECT piece, digest FROM {} WHERE torrent = ?"
        with self._translated():
            rows = [
                row
                for table in _CLAIMS
                for row in self._connection.execute(query.format(table), (number,)).fetchall()
            ]
            return _checked(rows, list[tuple[_Piece, _Digest]])

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
        """Write down pieces with their checksums, in one transaction; their data need not be on disk yet."""
        rows = [(number, piece, digest) for piece, digest in pieces]
        self._transact(["INSERT OR REPLACE INTO fresh (torrent, piece, digest) VALUES (?, ?, ?)"], rows)

    def drop(self, number: int, pieces: Iterable[PieceIndex]) -> None:
        """Forget pieces."""
        queries = [f"DELETE FROM {table} WHERE torrent = ? AND piece = ?" for table in _CLAIMS]
        self._transact(queries, [(number, piece) for piece in pieces])

    def used(self, uses: Iterable[tuple[int, int]]) -> None:
        """Write down when torrents were last read: (number, Unix seconds)."""
        self._transact(
            ["UPDATE torrents SET used = ? WHERE number = ?"], [(when, number) for number, when in uses]
        )

    def remove(self, number: int) -> None:
        """Forget a torrent and its pieces, in one transaction."""
        with self._translated(), _transaction(self._connection):
            for table in _CLAIMS:
                self._connection.execute(f"DELETE FROM {table} WHERE torrent = ?", (number,))
            self._connection.execute("DELETE FROM torrents WHERE number = ?", (number,))

    def pin(self, label: str, info_hashes: Iterable[InfoHash]) -> None:
        """Pin torrents under *label*, in place of what was."""
        with self._translated(), _transaction(self._connection):
            self._connection.execute("DELETE FROM pins WHERE label = ?", (label,))
            rows = [(label, info_hash) for info_hash in info_hashes]
            self._connection.executemany("INSERT OR IGNORE INTO pins VALUES (?, ?)", rows)

    def sync(self) -> None:
        """Have all that was written down survive a power cut. Waits for the disk, hence for a thread."""
        with contextlib.suppress(FileNotFoundError):
            # Not the database itself: closing another descriptor of that would end SQLite's locks (fcntl(2)).
            log = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(log)
            except OSError as error:
                raise CacheError(f"cannot use {self._path}: {error.strerror}") from error
            finally:
                os.close(log)

    def settle(self, sync: Callable[[TorrentRef], None]) -> None:
        """Have claims survive a power cut, once *sync* has put their torrent's data on disk. Waits for the
        disk, hence for a thread; claims go on meanwhile.

        Claims are lost of a torrent whose data cannot be synced (OSError), as nobody knows what is on disk.
        """
        query = (
            "SELECT number, info_hash, length, kind, max(sequence) FROM fresh JOIN torrents"
            " ON torrent = number GROUP BY number"
        )
        with self._translated(), contextlib.closing(_connect(self._path)) as connection:
            for number, info_hash, length, kind, last in connection.execute(query).fetchall():
                try:
                    sync(TorrentRef(InfoHash(info_hash), length, Kind(kind)))
                except OSError as error:
                    if not isinstance(error, FileNotFoundError):
                        _LOG.warning("data of %s may be lost: %s", info_hash.hex(), error.strerror)
                    gone = (number, last)
                    connection.execute("DELETE FROM fresh WHERE torrent = ? AND sequence <= ?", gone)
                    continue
                while _settle_some(connection, number, last):
                    pass

    def checkpoint(self) -> None:
        """Move the log into the database. Waits for the disk, hence for a thread; claims go on meanwhile."""
        with self._translated(), contextlib.closing(_connect(self._path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the database, whose log goes into it."""
        with self._translated():
            self._connection.close()

    def _transact(self, queries: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
        with self._translated(), _transaction(self._connection):
            for query in queries:
                self._connection.executemany(query, rows)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise CacheError(f"cannot use {self._path}: {error}") from error


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _settle_some(connection: sqlite3.Connection, number: int, last: int) -> bool:
    """Move some fresh claims of a torrent, up to *last*, to the others; return whether there were any."""
    query = "SELECT sequence FROM fresh WHERE torrent = ? AND sequence <= ? ORDER BY sequence LIMIT ?"
    with _transaction(connection):
        rows = connection.execute(query, (number, last, SETTLE_ROWS)).fetchall()
        connection.executemany(
            "INSERT OR REPLACE INTO pieces SELECT torrent, piece, digest FROM fresh WHERE sequence = ?", rows
        )
        connection.executemany("DELETE FROM fresh WHERE sequence = ?", rows)
    return bool(rows)


def _connect(path: Path) -> sqlite3.Connection:
    # Our own transactions; autocommit in between. No fsync of a commit, which would hold up who writes next;
    # nor the checkpoint of a busy log within a claim.
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_LENGTH_MAX}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def _open(path: Path) -> tuple[sqlite3.Connection, list[TorrentRow], list[tuple[str, InfoHash]]]:
    """Return the database, its torrents, and what is pinned under which label."""
    connection = _connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= STATE_VERSION:
            raise sqlite3.DatabaseError(f"of version {version}, and this release reads {STATE_VERSION}")
        faults = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if faults != [("ok",)]:
            raise sqlite3.DatabaseError(str(faults[0][0]).replace("\n", " "))
        for step in _STEPS[version:]:
            connection.executescript(f"BEGIN IMMEDIATE; {step} COMMIT;")
        _forget_lost(connection)
        pins = connection.execute("SELECT label, info_hash FROM pins").fetchall()
        return connection, _rows(connection), _checked(pins, list[tuple[str, _InfoHash]])
    except BaseException:
        connection.close()
        raise


def _forget_lost(connection: sqlite3.Connection) -> None:
    """Forget claims whose data the kernel had not written yet when it ended."""
    boot = BOOT_ID.read_text().strip()
    is_same = connection.execute("SELECT id FROM boot").fetchall() == [(boot,)]
    with _transaction(connection):
        # Written in any case: a file that takes no more claims is found out here.
        connection.execute("DELETE FROM boot")
        connection.execute("INSERT INTO boot VALUES (?)", (boot,))
        if not is_same:
            connection.execute("DELETE FROM fresh")


def _rows(connection: sqlite3.Connection) -> list[TorrentRow]:
    """Read every torrent with what it holds: 400,000 pieces (100 GB) take 30 ms, and damage shows."""
    counts: dict[int, tuple[int, int]] = {}
    for table in _CLAIMS:
        query = f"SELECT torrent, count(digest), max(piece) FROM {table} GROUP BY torrent"
        found = connection.execute(query).fetchall()
        for number, count, last in _checked(found, list[tuple[int, int, int]]):
            count_before, last_before = counts.get(number, (0, -1))
            counts[number] = count_before + count, max(last, last_before)
    query = "SELECT number, info_hash, kind, length, piece_length, used FROM torrents"
    rows = []
    kinds = list[tuple[_Length, _InfoHash, Literal["pack", "manifest"], _Length, _Length, int]]
    for number, info_hash, kind, length, piece_length, used_s in _checked(
        connection.execute(query).fetchall(), kinds
    ):
        count, last = counts.get(number, (0, -1))
        overhang = max(0, (last + 1) * piece_length - length)
        ref = TorrentRef(InfoHash(info_hash), length, Kind(kind))
        rows.append(TorrentRow(number, ref, piece_length, count * piece_length - overhang, used_s))
    return rows


def _is_damage(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Tell whether the file is at fault, not the disk, nor who else uses it (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    # A flipped bit of its header makes a file read-only by itself.
    return code not in _ENVIRONMENT or (code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK))


def _checked(rows: list[Any], kind: type[_Rows]) -> _Rows:
    """Return *rows* if they are what was written: a flipped bit can make another type of a value.

    Raises: sqlite3.DatabaseError.
    """
    try:
        return msgspec.convert(rows, kind)
    except msgspec.ValidationError as error:
        raise sqlite3.DatabaseError(f"a damaged row: {error}") from error


def _put_aside(path: Path) -> None:
    path.rename(path.with_suffix(".damaged"))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
