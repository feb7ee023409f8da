"""This module brings pieces past a disk that has no room, or fails: from mirrors into memory, verified.

It is the last resort of one reader: no peers, nothing is kept for long, nothing is seeded.
"""

import logging
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

AGAIN_S = 0.5
"""How long to wait when every mirror fails."""


class Bypass:
    """The way from mirrors to memory."""

    def __init__(self, store: Store, counts: Counts) -> None:
        self._store = store
        self._counts = counts
        self._one_at_a_time: dict[Torrent, trio.Lock] = {}
        self._said = ""

    async def bring(self, torrent: Torrent, piece: PieceIndex, why: CacheError) -> None:
        """Have a piece in memory, whatever it takes; the caller bounds how long.

        Raises:
            CacheError: *why* it cannot come by way of the disk; no mirror has it.
        """
        if str(why) != self._said:  # once a reason, not once a piece
            self._said = str(why)
            _LOG.warning("reading through memory: %s", why)
        # Others that wait for the same piece get it too.
        lock = self._one_at_a_time.setdefault(torrent, trio.Lock())
        try:
            async with lock:
                while torrent.held.states[piece] == MISSING:
                    if not await self._ask(torrent, piece, why):
                        await trio.sleep(AGAIN_S)
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._one_at_a_time.pop(torrent, None)

    async def _ask(self, torrent: Torrent, piece: PieceIndex, why: CacheError) -> bool:
        """Ask one mirror after the other; tell whether one sent the piece.

        Raises: CacheError: none has it.
        """
        info_hash, doubts = torrent.metainfo.info_hash, False
        for mirror in torrent.mirrors:
            asked_at = trio.current_time()
            if mirror.ready_at(info_hash) > asked_at:
                doubts = True
                continue
            try:
                data = await self._fetch(mirror, torrent, piece)
            except MirrorError as error:
                mirror.failed(error, info_hash, asked_at)
                doubts = doubts or not error.absent
                continue
            mirror.succeeded(info_hash)
            self._counts.bypassed += len(data)
            self._store.hold(torrent.held, piece, data)
            return True
        if not doubts:
            raise CacheError(str(why))
        return False

    async def _fetch(self, mirror: Mirror, torrent: Torrent, piece: PieceIndex) -> bytes:
        """Return a piece, verified. Raises: MirrorError."""
        held, data = torrent.held, bytearray()
        path = held.ref.kind.url_path(torrent.metainfo.info_hash)
        mirror.requests += 1
        try:
            ranges = mirror.ranges(path, piece * held.piece_length, held.span(piece), torrent.metainfo.length)
            async with aclosing(ranges) as chunks:
                async for chunk in chunks:
                    data += chunk
        finally:
            mirror.requests -= 1
        if not await trio.to_thread.run_sync(torrent.metainfo.verify, piece, bytes(data)):
            self._counts.failed_pieces += 1
            raise MirrorError(f"wrong bytes in piece {piece} of {held.ref.info_hash.hex()}")
        return bytes(data)
