"""This module keeps a cache: what it has of each torrent, and which pieces of that may be believed.

The swarm writes the data; this module reads it. Which source a missing piece comes from, and when, is
decided elsewhere.
"""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from torrentfs.errors import CacheError
from torrentfs.node import place
from torrentfs.node.checksums import checksum
from torrentfs.node.files import OpenFiles
from torrentfs.node.held import CHECKED, CLAIMED, IN_MEMORY, MISSING, ON_DISK, Held
from torrentfs.node.holes import punch
from torrentfs.node.memory import PiecesInMemory
from torrentfs.node.pins import Pins
from torrentfs.node.state import BLOCK, DIGEST_LENGTH, State, TorrentRow
from torrentfs.repository.metainfo import InfoHash, Kind, Metainfo, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

BLOCKS_ROUNDED = 4096
"""What a small file takes of the disk beyond its length, at most."""


class Store:
    """One cache directory, for one process. Everything is called from one thread, but for `checkpoint`."""

    def __init__(self, directory: Path, *, open_files_max: int, pieces_in_memory_max: int) -> None:
        """Take the cache into use.

        Raises:
            CacheError: another daemon uses it, or the disk refuses.
        """
        self.directory = directory
        self.mismatches = 0
        self.evicted_bytes = 0
        self.going = 0
        """Bytes that are neither claimed any more nor gone from the disk yet."""
        self.refetched_bytes = 0
        """Of what was evicted since this start and came again."""
        self.cached = 0
        """Bytes of all pieces that are here."""
        self.reads = 0
        """Reads and claims since this start: the clock of what was read when."""
        self._rest = 0
        """Bytes of the disk that all but pieces and state take: metainfo, and what the daemon keeps here."""
        self.in_memory = PiecesInMemory(pieces_in_memory_max)
        self.files = OpenFiles(self.path, open_files_max)
        self._held: dict[InfoHash, Held] = {}
        self._unread: set[InfoHash] = set()
        self._used: set[Held] = set()
        self._removed: list[Path] = []
        self._lock = -1
        self.overgrown: dict[InfoHash, int] = {}
        """Torrents whose files take more of the disk than is claimed of them, and how many bytes: pieces
        turned out bad, or a kill came between a piece and its claim, or between its eviction and its hole.
        """
        self.strays: dict[tuple[Kind, InfoHash], int] = {}
        """Data that the state does not know, and its bytes on disk: perhaps the state was lost."""
        self._open()

    def _open(self) -> None:
        """Raises: CacheError."""
        directory = self.directory
        try:
            place.lay_out(directory)
            self._lock = place.lock(directory)
        except OSError as error:
            raise CacheError(f"cannot use the cache {directory}: {error.strerror or error}") from error
        try:
            self._state = State(directory / "state.sqlite")
            self.pins = Pins(self._state)
            for row in self._state.rows:
                if not row.cached or self.path(row.ref).exists():
                    self._know(row)
                else:
                    self._forget_row(row)
            self._look_for_overgrown()
            self.strays = place.strays(directory, {self.path(held.ref) for held in self._held.values()})
            self._rest = place.measure(directory)
        except OSError as error:
            _LOG.warning("the cache %s may hold more than it knows: %s", directory, error)
        except BaseException:
            os.close(self._lock)
            self._lock = -1
            raise

    def _forget_row(self, row: TorrentRow) -> None:
        """Forget a torrent whose file is gone."""
        try:
            self._state.remove(row.number)
        except CacheError as error:
            _LOG.warning("%s is gone, and still claimed: %s", row.ref.info_hash.hex(), error)

    def _know(self, row: TorrentRow) -> None:
        """Take in what is claimed of a torrent."""
        held = self._held.get(row.ref.info_hash)
        if held is None or held.ref != row.ref or held.piece_length != row.piece_length:
            held = self._held[row.ref.info_hash] = Held(row.ref, row.piece_length, row.number)
        held.number, held.used_s = row.number, row.used_s
        self._unread.add(row.ref.info_hash)
        self._account(held, row.cached)

    @property
    def is_lost(self) -> bool:
        """Tell whether the cache's place has vanished since it was taken into use, or holds another one."""
        try:
            found, own = (self.directory / place.LOCK).stat(), os.fstat(self._lock)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)

    def heal(self) -> None:
        """Take into use what is at the cache's place now. `Held.lost` tells what the swarm must give up, also
        of what is claimed there; nothing must be leaving.

        Raises:
            CacheError: another daemon uses it, or the disk refuses: everything goes through memory.
        """
        self._leave()
        for held, piece in list(self.in_memory):
            self.in_memory.let_go(held, piece)
        for held in self._held.values():
            held.lost += [PieceIndex(piece) for piece, state in enumerate(held.states) if state in ON_DISK]
            held.states[:] = bytes(held.piece_count)
            held.number = 0
            held.spoiled.clear()
            self._account(held, -held.cached)
        self._unread.clear()
        self.overgrown.clear()
        self.going = 0
        before = list(self._held.values())
        self._open()
        for held in before:
            if held.ref.info_hash in self._unread:
                self._read_states(held)

    @property
    def is_log_long(self) -> bool:
        """Tell whether a `checkpoint` is due."""
        return self._state.is_log_long

    @property
    def used(self) -> int:
        """Bytes that the cache takes of its disk, whatever for."""
        return self.cached + self.going + self._rest + self._state.length + sum(self.strays.values())

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
        """Return what is held of a torrent, and know it from now on; a disk that refuses is asked again when
        there is something to claim.
        """
        held = self.get(ref.info_hash)
        if held is None:
            held = Held(ref, piece_length, self._number(ref, piece_length))
            held.digests = bytearray(DIGEST_LENGTH * held.piece_count)
            self._held[ref.info_hash] = held
        return held

    def forget(self, held: Held, pieces: Sequence[PieceIndex]) -> None:
        """Claim *pieces* no longer, so that their room can be given back (`give_back`); they are leaving.

        Raises:
            CacheError: the disk refuses; nothing has changed.
        """
        self._state.drop(held.number, pieces)
        for piece in pieces:
            held.states[piece] = MISSING
            self._account(held, -held.span(piece))
            self.evicted_bytes += held.span(piece)
            self.going += held.span(piece)
        held.leaving.update(pieces)
        held.evicted.update(pieces)

    def give_back(self, held: Held, pieces: Iterable[PieceIndex]) -> None:
        """Make holes of *pieces*, which are leaving. Waits for the disk: call it from a thread.

        Raises: OSError; CacheError: the disk refuses.
        """
        self._state.sync()
        file = os.open(self.path(held.ref), os.O_WRONLY | os.O_CLOEXEC)
        try:
            for piece in pieces:
                punch(file, piece * held.piece_length, held.span(piece))
        finally:
            os.close(file)

    def remove(self, held: Held) -> None:
        """Forget a whole torrent; `empty` deletes its data. Until then nobody may write there anew.

        Raises:
            CacheError: the disk refuses.
        """
        self._state.remove(held.number)
        self.evicted_bytes += held.cached
        self.going += held.cached
        self._account(held, -held.cached)
        for piece in list(held.in_memory):
            self.in_memory.let_go(held, piece)
        held.states[:] = bytes(held.piece_count)  # for who still looks at it: the checker, in a thread
        del self._held[held.ref.info_hash]
        self._unread.discard(held.ref.info_hash)
        self._used.discard(held)
        self.files.close(held.ref.info_hash)
        self._removed.append(self.path(held.ref))

    def empty(self) -> None:
        """Delete what was removed, now or by an earlier start. Waits for the disk: call it from a thread.

        Raises: OSError; CacheError: the disk refuses.
        """
        removed, self._removed = self._removed, []
        if removed:
            self._state.sync()
        for path in removed:
            with suppress(FileNotFoundError):
                place.put_aside(self.directory, path)
        place.empty(self.directory)

    def read(self, held: Held, offset: int, length: int) -> bytes | None:
        """Return a range, or None when a piece of it is not here (any more): ask `Held.missing` which.

        What the disk cannot read back is not here.
        """
        try:
            if held.in_memory:
                return self._read_mixed(held, offset, length)
            if not self.check(held, offset, length):
                return None
            data = self.files.pread(held.ref, length, offset)
        except CacheError as error:
            _LOG.warning("%s: it is fetched again", error)
            self._unclaim(held, held.pieces(offset, length))
            return None
        if len(data) != length:
            self.drop(held, held.pieces(offset, length))
            return None
        self.touch(held, offset, length)
        return data

    def _read_mixed(self, held: Held, offset: int, length: int) -> bytes | None:
        """Read a range of which pieces may be in memory."""
        data = bytearray()
        for piece in held.pieces(offset, length):
            start = max(offset - piece * held.piece_length, 0)
            end = min(offset + length - piece * held.piece_length, held.span(piece))
            if held.states[piece] == IN_MEMORY:
                data += memoryview(held.in_memory[piece])[start:end]
            elif held.states[piece] == CHECKED or self._check(held, piece):
                data += self.files.pread(held.ref, end - start, piece * held.piece_length + start)
            else:
                return None
        return bytes(data) if len(data) == length else None

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

    def judge(self, held: Held, digests: Iterable[tuple[PieceIndex, bytes]]) -> int:
        """Believe pieces whose checksums were found right, drop the others; return how many those were.

        Raises:
            CacheError: the disk refuses.
        """
        bad = 0
        for piece, digest in digests:
            if held.states[piece] not in ON_DISK:
                continue
            if digest == held.digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH]:
                held.states[piece] = CHECKED
            else:
                # Once more, as it may have gone while it was read, and come again.
                bad += not self._check(held, piece)
        return bad

    def discard(self, kind: Kind, info_hash: InfoHash) -> None:
        """Put aside data that nobody can check, for `empty`, unless somebody has begun to use it meanwhile.

        Raises:
            CacheError: the disk refuses.
        """
        path = self.directory / kind.url_path(info_hash)
        if info_hash in self._held:
            return
        try:
            place.put_aside(self.directory, path)
        except OSError as error:
            raise CacheError(f"cannot remove {path}: {error.strerror}") from error

    def claim(self, held: Held, pieces: Iterable[PieceIndex]) -> None:
        """Write down pieces that the swarm has verified and written; only then may readers have them.

        Costs 60 µs a piece of 256 KiB and 50 µs a call: no thread.

        Raises:
            CacheError: the disk refuses; none of them is claimed.
        """
        self._forget_deleted(held)
        for piece in pieces:
            self.in_memory.let_go(held, piece)
        fresh = [(piece, self._digest(held, piece)) for piece in pieces if held.states[piece] == MISSING]
        if not fresh:
            return
        if any(not digest for _, digest in fresh):
            raise CacheError(f"cannot read {self.path(held.ref)}: it is shorter than what was written to it")
        if not held.number:
            held.number = self._state.add(held.ref, held.piece_length)
        self._state.claim(held.number, fresh)
        self.reads += 1
        for piece, digest in fresh:
            held.states[piece] = CHECKED
            held.digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH] = digest
            held.touched[piece] = held.read_at = self.reads
            self._account(held, held.span(piece))
            if piece in held.spoiled:
                held.spoiled.discard(piece)
                self._outgrow(held, -held.span(piece))
            if piece in held.evicted:
                held.evicted.discard(piece)
                self.refetched_bytes += held.span(piece)

    def drop(self, held: Held, pieces: Iterable[PieceIndex]) -> None:
        """Forget pieces that turned out bad, and count them; `Held.lost` tells whoever must tell
        the swarm.
        """
        bad = [piece for piece in pieces if held.states[piece] in ON_DISK]
        if not bad:
            return
        _LOG.warning("%s: pieces %s are damaged on disk: they are fetched again", self.path(held.ref), bad)
        self.mismatches += len(bad)
        self._unclaim(held, bad)

    def _unclaim(self, held: Held, pieces: Iterable[PieceIndex]) -> None:
        """Forget pieces that cannot be used. A disk that refuses to note that shows them after a start."""
        bad = [piece for piece in pieces if held.states[piece] in ON_DISK]
        for piece in bad:
            held.states[piece] = MISSING
            self._account(held, -held.span(piece))
            self._outgrow(held, held.span(piece))
        held.lost += bad
        held.spoiled.update(bad)
        try:
            self._state.drop(held.number, bad)
        except CacheError as error:
            _LOG.warning("%s", error)

    def metainfo(self, info_hash: InfoHash) -> bytes | None:
        """Return the kept ``.torrent``, unchecked; None when there is none.

        Raises:
            CacheError: the disk refuses.
        """
        return place.read_metainfo(self.directory, info_hash)

    def has_metainfo(self, info_hash: InfoHash) -> bool:
        """Tell whether a ``.torrent`` is kept."""
        return place.metainfo_path(self.directory, info_hash).exists()

    def keep_metainfo(self, metainfo: Metainfo) -> None:
        """Keep a checked ``.torrent``; a half-written one is found out by whoever checks it. If the disk
        refuses it is fetched again.
        """
        try:
            self._rest += place.write_metainfo(self.directory, metainfo) + BLOCKS_ROUNDED
        except OSError as error:
            _LOG.warning("cannot keep metainfo in %s: %s", self.directory, error.strerror)

    def flush_uses(self) -> None:
        """Write down which torrents were read since the last call."""
        used, self._used = self._used, set()
        if used:
            now_s = int(time.time())
            for held in used:
                held.used_s = now_s
            self._state.used([(held.number, now_s) for held in used])

    def sync(self) -> None:
        """Have what was pinned, and what was forgotten, survive a power cut. Waits for the disk: call it from
        a thread.

        Raises:
            CacheError: the disk refuses.
        """
        self._state.sync()

    def checkpoint(self) -> None:
        """Have claims survive a power cut, the state's log not grow, and see what others' files take here
        (5 µs each). Waits for the disk: call it from a thread.

        Raises:
            CacheError: the disk refuses.
        """
        self._state.settle(self._sync_data)
        self._state.checkpoint()
        self._rest = place.measure(self.directory)

    def close(self) -> None:
        """Leave the cache to the next daemon."""
        try:
            self.flush_uses()
        except CacheError as error:  # what was used when is all that is lost
            _LOG.warning("%s", error)
        self._leave()

    def _leave(self) -> None:
        try:
            self._state.close()
        except CacheError as error:
            _LOG.warning("%s", error)
        self.files.close_all()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _read_states(self, held: Held) -> None:
        """Read the claims of an earlier start: 4 ms for a pack of 1 GiB, at its first use."""
        held.digests = bytearray(DIGEST_LENGTH * held.piece_count)
        try:
            claims = self._state.pieces(held.number)
        except CacheError as error:
            _LOG.warning("what the cache holds of %s is not used: %s", held.ref.info_hash.hex(), error)
            claims = []
        for piece, digest in claims:
            if piece < held.piece_count:
                held.states[piece] = CLAIMED
                held.digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH] = digest
        cached = sum(held.span(PieceIndex(p)) for p in range(held.piece_count) if held.states[p])
        self._account(held, cached - held.cached)
        self._unread.discard(held.ref.info_hash)

    def _number(self, ref: TorrentRef, piece_length: int) -> int:
        """Return a torrent's key in the state, 0 if that cannot be written."""
        try:
            return self._state.add(ref, piece_length)
        except CacheError as error:
            _LOG.warning("%s", error)
            return 0

    def _account(self, held: Held, change: int) -> None:
        held.cached += change
        self.cached += change

    def touch(self, held: Held, offset: int, length: int) -> None:
        """Take note that a range was read just now."""
        self._used.add(held)
        self.reads += 1
        held.read_at = self.reads
        piece_length = held.piece_length
        for piece in range(offset // piece_length, (offset + length - 1) // piece_length + 1):
            held.touched[piece] = self.reads

    def _sync_data(self, ref: TorrentRef) -> None:
        """Raises: OSError."""
        file = os.open(self.path(ref), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(file)
        finally:
            os.close(file)

    def _look_for_overgrown(self) -> None:
        for held in self._held.values():
            with suppress(FileNotFoundError):
                excess = BLOCK * self.path(held.ref).stat().st_blocks - held.cached
                if excess >= held.piece_length // 2:
                    self._outgrow(held, excess)

    def _outgrow(self, held: Held, change: int) -> None:
        """Take note of bytes that a torrent takes beyond what is claimed of it."""
        info_hash = held.ref.info_hash
        self.overgrown[info_hash] = self.overgrown.get(info_hash, 0) + change
        self.going += change
        if not self.overgrown[info_hash]:
            del self.overgrown[info_hash]

    def _forget_deleted(self, held: Held) -> None:
        """Let go of a file that was deleted under us: the swarm writes into a new one, of which our
        descriptor would show nothing but holes.
        """
        if self.files.is_deleted(held.ref.info_hash):
            self.files.close(held.ref.info_hash)
            self.drop(held, map(PieceIndex, range(held.piece_count)))

    def _check(self, held: Held, piece: PieceIndex) -> bool:
        """Tell whether a piece is here and what it was when it was claimed."""
        if held.states[piece] not in ON_DISK:
            return False
        if self._digest(held, piece) != held.digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH]:
            self.drop(held, [piece])
            return False
        held.states[piece] = CHECKED
        return True

    def _digest(self, held: Held, piece: PieceIndex) -> bytes:
        """Return the checksum of a piece on disk, b"" if it is not all there."""
        return checksum(held, piece, self.files.pread(held.ref, held.span(piece), piece * held.piece_length))
