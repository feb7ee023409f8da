"""This module brings pieces past a disk that has no room, or fails: from mirrors into memory, verified.

It is the last resort of one reader: no peers, nothing is kept for long, nothing is seeded.
"""

import logging
from collections.abc import Sequence
from contextlib import aclosing

import trio

from torrentfs.errors import CacheError
from torrentfs.node.flights import Torrent
from torrentfs.node.held import MISSING
from torrentfs.node.mirrors import Mirror, MirrorError
from torrentfs.node.store import Store
from torrentfs.node.traffic import Counts
from torrentfs.repository.metainfo import PieceIndex

_LOG = logging.getLogger(__name__)

RANGE_LENGTH_MAX = 4 * 1024 * 1024
"""What one request asks for at most."""
AGAIN_S = 0.5
"""How long to wait when every mirror fails."""


class Bypass:
    """The way from mirrors to memory."""

    def __init__(self, store: Store, counts: Counts) -> None:
        self._store = store
        self._counts = counts
        self._one_at_a_time: dict[Torrent, trio.Lock] = {}
        self.trouble = ""
        """Why, when that was needed last."""

    async def bring(self, torrent: Torrent, pieces: Sequence[PieceIndex], keep: int, why: CacheError) -> None:
        """Have the first of *pieces* in memory, and those that follow it in the file. The caller bounds how
        long, and needs *keep* pieces together.

        Raises:
            CacheError: *why* they cannot come by way of the disk; no mirror has them.
        """
        if str(why) != self.trouble:  # once a reason, not once a piece
            self.trouble = str(why)
            _LOG.warning("reading through memory: %s", why)
        # Others that wait for the same piece get it too.
        lock = self._one_at_a_time.setdefault(torrent, trio.Lock())
        try:
            async with lock:
                while run := self._run(torrent, pieces):
                    if await self._ask(torrent, run, keep, why):
                        return
                    await trio.sleep(AGAIN_S)
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._one_at_a_time.pop(torrent, None)

    @staticmethod
    def _run(torrent: Torrent, pieces: Sequence[PieceIndex]) -> list[PieceIndex]:
        """Return the first of *pieces*, and what of them follows it, if that is not here yet."""
        room = max(1, RANGE_LENGTH_MAX // torrent.held.piece_length)
        run: list[PieceIndex] = []
        for piece in pieces[:room]:
            if torrent.held.states[piece] != MISSING or (run and piece != run[-1] + 1):
                break
            run.append(piece)
        return run

    async def _ask(self, torrent: Torrent, run: Sequence[PieceIndex], keep: int, why: CacheError) -> bool:
        """Ask one mirror after the other; tell whether one sent the pieces.

        Raises: CacheError: none has them.
        """
        info_hash, doubts = torrent.metainfo.info_hash, False
        for mirror in torrent.mirrors:
            asked_at = trio.current_time()
            if mirror.ready_at(info_hash) > asked_at:
                doubts = True
                continue
            try:
                found = await self._fetch(mirror, torrent, run)
            except MirrorError as error:
                mirror.failed(error, info_hash, asked_at)
                doubts = doubts or not error.absent
                continue
            mirror.succeeded(info_hash)
            for piece, data in found:
                self._counts.bypassed += len(data)
                self._store.in_memory.hold(torrent.held, piece, data, keep)
            return True
        if not doubts:
            raise CacheError(str(why))
        return False

    async def _fetch(
        self, mirror: Mirror, torrent: Torrent, run: Sequence[PieceIndex]
    ) -> list[tuple[PieceIndex, bytes]]:
        """Return pieces, verified. Raises: MirrorError."""
        held, metainfo, data = torrent.held, torrent.metainfo, bytearray()
        path, start = held.ref.kind.url_path(metainfo.info_hash), run[0] * held.piece_length
        length = sum(map(held.span, run))
        mirror.begin()
        try:
            async with aclosing(mirror.ranges(path, start, length, metainfo.length)) as chunks:
                async for chunk in chunks:
                    data += chunk
        finally:
            mirror.end()
        found = []
        for number, piece in enumerate(run):
            place = number * held.piece_length
            one = bytes(memoryview(data)[place : place + held.span(piece)])
            if not await trio.to_thread.run_sync(metainfo.verify, piece, one):
                self._counts.failed_pieces += 1
                raise MirrorError(f"wrong bytes in piece {piece} of {held.ref.info_hash.hex()}")
            found.append((piece, one))
        return found
