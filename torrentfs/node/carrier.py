"""This module carries what a mirror sends to the swarm, each piece verified. Whom to ask is `courier`'s."""

import logging
from contextlib import aclosing

import trio

from torrentfs.node.flights import Request, Torrent
from torrentfs.node.held import ON_DISK
from torrentfs.node.mirrors import MirrorError
from torrentfs.node.seams import Swarm
from torrentfs.node.traffic import Counts
from torrentfs.repository.metainfo import PieceIndex

_LOG = logging.getLogger(__name__)

INJECT_PATIENCE_S = 5.0
"""How long the swarm may take to say something of a piece that it was given."""


class Carrier:
    """The way from mirrors to the swarm."""

    def __init__(self, swarm: Swarm, counts: Counts) -> None:
        self._swarm = swarm
        self._counts = counts

    async def run(self, torrent: Torrent, request: Request) -> None:
        """Do a request to its end; its mirror is told how it went, and what it did not bring is due again."""
        info_hash, mirror = torrent.metainfo.info_hash, request.mirror
        asked_at = trio.current_time()
        delivered: set[PieceIndex] = set()
        try:
            with request.scope:
                await self._carry(torrent, request, delivered)
                mirror.succeeded(info_hash)
        except MirrorError as error:
            # Once a reason, not once a retry: an outage may last a day.
            if mirror.is_news(error, info_hash):
                _LOG.info("mirror %s put aside: %s", mirror.base, error)
            mirror.failed(error, info_hash, asked_at)
        except Exception as error:  # our bug, or a library's, ends this request, not the node
            _LOG.exception("a request to %s failed", mirror.base)
            mirror.failed(MirrorError(f"internal error: {error!r}"), info_hash, asked_at)
        finally:
            _make_due(torrent, request, delivered)
            mirror.end()

    async def _carry(self, torrent: Torrent, request: Request, delivered: set[PieceIndex]) -> None:
        """Cut what a mirror sends into pieces, and deliver each as soon as it is whole."""
        metainfo, held = torrent.metainfo, torrent.held
        pieces = iter(request.run)
        piece: PieceIndex | None = next(pieces)
        offset = request.run[0] * held.piece_length
        length = sum(map(held.span, request.run))
        path = held.ref.kind.url_path(metainfo.info_hash)
        buffer = bytearray()
        async with aclosing(request.mirror.ranges(path, offset, length, metainfo.length)) as chunks:
            async for chunk in chunks:
                buffer += chunk
                while piece is not None and len(buffer) >= held.span(piece):
                    data = bytes(memoryview(buffer)[: held.span(piece)])
                    del buffer[: len(data)]
                    await self._deliver(torrent, request, piece, data)
                    delivered.add(piece)
                    piece = next(pieces, None)

    async def _deliver(self, torrent: Torrent, request: Request, piece: PieceIndex, data: bytes) -> None:
        """Give a piece to the swarm if it is what it should be and still wanted."""
        # Out of the loop: SHA-256 of a piece takes 0.2 ms, and hashlib lets others run meanwhile.
        if not await trio.to_thread.run_sync(torrent.metainfo.verify, piece, data):
            self._counts.failed_pieces += 1
            self._counts.redundant += len(data)
            raise MirrorError(f"wrong bytes in piece {piece} of {torrent.held.ref.info_hash.hex()}")
        # A thread's result comes even to who is cancelled, and the swarm may have closed meanwhile.
        await trio.lowlevel.checkpoint_if_cancelled()
        request.open.discard(piece)
        # One that is in memory only is wanted on disk too.
        is_here = torrent.held.states[piece] in ON_DISK
        if is_here or piece in torrent.injected:
            self._counts.redundant += len(data)
        if is_here:
            return
        torrent.injected[piece] = request.mirror.within
        self._swarm.inject(torrent.metainfo.info_hash, piece, data)


def _make_due(torrent: Torrent, request: Request, delivered: set[PieceIndex]) -> None:
    now = trio.current_time()
    for piece in request.run:
        flight = torrent.flights.get(piece)
        if flight is not None and request in flight.requests:
            flight.requests.remove(request)
            flight.due = now + (INJECT_PATIENCE_S if piece in delivered else 0.0)
