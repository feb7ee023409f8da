"""This module keeps a cache directory: whose it is, where data lies, which pieces of it may be believed.

The swarm writes the data; this module reads it. Which source a missing piece comes from, and when, is
decided elsewhere.

    lock               flock of the one daemon that uses the cache; holds its pid
    state.sqlite       claims, see `state`
    packs/             <info-hash>.tar.zst, sparse
    manifests/         <info-hash>.manifest, sparse
    metainfo/          <info-hash>.torrent
"""

import fcntl
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from torrentfs.errors import CacheError
from torrentfs.node.state import DIGEST_LENGTH, State
from torrentfs.repository.metainfo import TORRENT_LENGTH_MAX, InfoHash, Metainfo, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

MISSING, CLAIMED, CHECKED = 0, 1, 2
"""Of a piece: not here; here as an earlier start says; here, and its checksum was right since this start."""


class Held:
    """What the cache holds of one torrent. `states` has one byte a piece; `lost` the pieces that turned
    out bad.
    """

    __slots__ = (
        "cached",
        "digests",
        "lost",
        "number",
        "piece_count",
        "piece_length",
        "ref",
        "states",
    )

    def __init__(self, ref: TorrentRef, piece_length: int, number: int, cached: int = 0) -> None:
        self.ref = ref
        self.piece_length = piece_length
        self.piece_count = -(-ref.length // piece_length)
        self.number = number
        self.cached = cached
        self.states = bytearray(self.piece_count)
        self.digests = bytearray()
        self.lost: list[PieceIndex] = []

    @property
    def complete(self) -> bool:
        """Tell whether every piece is here."""
        return self.cached == self.ref.length

    def span(self, piece: PieceIndex) -> int:
        """Return the length of a piece in bytes."""
        return min(self.piece_length, self.ref.length - piece * self.piece_length)

    def pieces(self, offset: int, length: int) -> list[PieceIndex]:
        """Return the pieces that a range touches."""
        first, last = offset // self.piece_length, (offset + length - 1) // self.piece_length
        return [PieceIndex(piece) for piece in range(first, last + 1)]

    def missing(self, offset: int, length: int) -> list[PieceIndex]:
        """Return the pieces of a range that are not here."""
        return [piece for piece in self.pieces(offset, length) if not self.states[piece]]

    def have(self) -> list[bool]:
        """Return, for each piece, whether it is here."""
        return [state != MISSING for state in self.states]


class Store:
    """One cache directory, for one process. Everything is called from one thread, but for `checkpoint`."""

    def __init__(self, directory: Path, *, open_files_max: int) -> None:
        """Take the cache into use.

        Raises:
            CacheError: another daemon uses it, or the disk refuses.
        """
        self.directory = directory
        self.mismatches = 0
        self._open_files_max = open_files_max
        self._files: OrderedDict[InfoHash, int] = OrderedDict()
        self._held: dict[InfoHash, Held] = {}
        self._unread: set[InfoHash] = set()
        self._used: set[Held] = set()
        try:
            _lay_out(directory)
            self._lock = _lock(directory / "lock")
        except OSError as error:
            raise CacheError(f"cannot use the cache {directory}: {error.strerror or error}") from error
        try:
            self._state = State(directory / "state.sqlite")
        except BaseException:
            os.close(self._lock)
            raise
        for row in self._state.rows:
            self._held[row.ref.info_hash] = Held(row.ref, row.piece_length, row.number, row.cached)
            self._unread.add(row.ref.info_hash)

    def path(self, ref: TorrentRef) -> Path:
        """Return where a torrent's data lies."""
        return self.directory / ref.kind.url_path(ref.info_hash)

    def all(self) -> Sequence[Held]:
        """Return every torrent that the cache knows; their `states` may not have been read yet."""
        return list(self._held.values())

    def get(self, info_hash: InfoHash) -> Held | None:
        """Return what is held of a torrent, or None of one never seen."""
        held = self._held.get(info_hash)
        if held is not None and info_hash in self._unread:
            self._read_states(held)
        return held

    def add(self, ref: TorrentRef, piece_length: int) -> Held:
        """Return what is held of a torrent, and know it from now on.

        Raises:
            CacheError: the disk refuses.
        """
        held = self.get(ref.info_hash)
        if held is None:
            held = Held(ref, piece_length, self._state.add(ref, piece_length))
            held.digests = bytearray(DIGEST_LENGTH * held.piece_count)
            self._held[ref.info_hash] = held
        return held

    def read(self, held: Held, offset: int, length: int) -> bytes | None:
        """Return a range, or None when a piece of it is not here (any more): ask `Held.missing` which.

        Raises:
            CacheError: the disk refuses.
        """
        if not self.check(held, offset, length):
            return None
        data = self._pread(held, offset, length)
        if len(data) != length:
            self.drop(held, held.pieces(offset, length))
            return None
        self._used.add(held)
        return data

    def check(self, held: Held, offset: int, length: int) -> bool:
        """Tell whether all pieces of a range are here and, once a start, what they were when claimed.

        Raises:
            CacheError: the disk refuses.
        """
        states, piece_length = held.states, held.piece_length
        for piece in range(offset // piece_length, (offset + length - 1) // piece_length + 1):
            if states[piece] != CHECKED and not self._check(held, PieceIndex(piece)):
                return False
        return True

    def claim(self, held: Held, pieces: Iterable[PieceIndex]) -> None:
        """Write down pieces that the swarm has verified and written; only then may readers have them.

        Costs 60 µs a piece of 256 KiB and 50 µs a call: no thread.

        Raises:
            CacheError: the disk refuses; none of them is claimed.
        """
        self._forget_deleted(held)
        fresh = [(piece, self._digest(held, piece)) for piece in pieces if held.states[piece] == MISSING]
        if not fresh:
            return
        if any(not digest for _, digest in fresh):
            raise CacheError(f"cannot read {self.path(held.ref)}: it is shorter than what was written to it")
        self._state.claim(held.number, fresh)
        for piece, digest in fresh:
            held.states[piece] = CHECKED
            held.digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH] = digest
            held.cached += held.span(piece)

    def drop(self, held: Held, pieces: Iterable[PieceIndex]) -> None:
        """Forget pieces that turned out bad, and count them; `Held.lost` tells whoever must tell
        the swarm.
        """
        bad = [piece for piece in pieces if held.states[piece] != MISSING]
        if not bad:
            return
        _LOG.warning("%s: pieces %s are damaged on disk: they are fetched again", self.path(held.ref), bad)
        for piece in bad:
            held.states[piece] = MISSING
            held.cached -= held.span(piece)
        held.lost += bad
        self.mismatches += len(bad)
        self._state.drop(held.number, bad)

    def metainfo(self, info_hash: InfoHash) -> bytes | None:
        """Return the kept ``.torrent``, unchecked; None when there is none.

        Raises:
            CacheError: the disk refuses.
        """
        try:
            with self._metainfo_path(info_hash).open("rb") as file:
                return file.read(TORRENT_LENGTH_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {error.filename}: {error.strerror}") from error

    def keep_metainfo(self, metainfo: Metainfo) -> None:
        """Keep a checked ``.torrent``; a half-written one is found out by whoever checks it.

        Raises:
            CacheError: the disk refuses.
        """
        path = self._metainfo_path(metainfo.info_hash)
        part = path.with_suffix(".part")
        try:
            part.write_bytes(metainfo.torrent())
            part.replace(path)
        except OSError as error:
            raise CacheError(f"cannot write {path}: {error.strerror}") from error

    def flush_uses(self) -> None:
        """Write down which torrents were read since the last call."""
        used, self._used = self._used, set()
        if used:
            now_s = int(time.time())
            self._state.used([(held.number, now_s) for held in used])

    def checkpoint(self) -> None:
        """Let the state's log not grow. Waits for the disk: call it from a thread."""
        self._state.checkpoint()

    def close(self) -> None:
        """Leave the cache to the next daemon."""
        try:
            self.flush_uses()
        except CacheError as error:  # what was used when is all that is lost
            _LOG.warning("%s", error)
        try:
            self._state.close()
        finally:
            for file in self._files.values():
                os.close(file)
            self._files.clear()
            os.close(self._lock)

    def _metainfo_path(self, info_hash: InfoHash) -> Path:
        return self.directory / "metainfo" / f"{info_hash.hex()}.torrent"

    def _read_states(self, held: Held) -> None:
        """Read the claims of an earlier start: 4 ms for a pack of 1 GiB, at its first use."""
        held.digests = bytearray(DIGEST_LENGTH * held.piece_count)
        for piece, digest in self._state.pieces(held.number):
            if piece < held.piece_count:
                held.states[piece] = CLAIMED
                held.digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH] = digest
        held.cached = sum(held.span(PieceIndex(p)) for p in range(held.piece_count) if held.states[p])
        self._unread.discard(held.ref.info_hash)

    def _forget_deleted(self, held: Held) -> None:
        """Let go of a file that was deleted under us: the swarm writes into a new one, of which our
        descriptor would show nothing but holes.
        """
        file = self._files.get(held.ref.info_hash)
        if file is not None and os.fstat(file).st_nlink == 0:
            os.close(self._files.pop(held.ref.info_hash))
            self.drop(held, map(PieceIndex, range(held.piece_count)))

    def _check(self, held: Held, piece: PieceIndex) -> bool:
        """Tell whether a piece is here and what it was when it was claimed."""
        if held.states[piece] == MISSING:
            return False
        if self._digest(held, piece) != held.digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH]:
            self.drop(held, [piece])
            return False
        held.states[piece] = CHECKED
        return True

    def _digest(self, held: Held, piece: PieceIndex) -> bytes:
        """Return the checksum of a piece on disk, b"" if it is not all there."""
        data = self._pread(held, piece * held.piece_length, held.span(piece))
        return xxhash.xxh3_128_digest(data) if len(data) == held.span(piece) else b""

    def _pread(self, held: Held, offset: int, length: int) -> bytes:
        """Read what there is, b"" of a file that is gone."""
        try:
            return os.pread(self._file(held.ref), length, offset)
        except FileNotFoundError:
            return b""
        except OSError as error:
            if (file := self._files.pop(held.ref.info_hash, None)) is not None:
                os.close(file)  # the next read opens it anew: an administrator may have mended something
            raise CacheError(f"cannot read {self.path(held.ref)}: {error.strerror}") from error

    def _file(self, ref: TorrentRef) -> int:
        file = self._files.get(ref.info_hash)
        if file is not None:
            self._files.move_to_end(ref.info_hash)
            return file
        file = os.open(self.path(ref), os.O_RDONLY | os.O_CLOEXEC)
        self._files[ref.info_hash] = file
        if len(self._files) > self._open_files_max:
            os.close(self._files.popitem(last=False)[1])
        return file


def _lay_out(directory: Path) -> None:
    if (directory / "metadata" / "timestamp.json").exists():
        # The origin's packs lie under the same names: a cache there would write into them.
        raise CacheError(f"{directory} is a published repository, not a cache: name another directory")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in ("packs", "manifests", "metainfo"):
        (directory / name).mkdir(mode=0o755, exist_ok=True)


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "?"
        os.close(lock)
        raise CacheError(f"the cache {path.parent} is in use by process {holder}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
