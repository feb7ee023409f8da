"""This module starts and ends the flights of a node, and counts them and the bytes that they bring."""

from collections.abc import Iterable

import trio

from torrentfs.errors import CacheError
from torrentfs.node.flights import Flight, Torrent
from torrentfs.node.seams import Swarm
from torrentfs.repository.metainfo import PieceIndex

READAHEAD_KEEP_S = 30.0
"""After which a piece that nobody waits for is given up."""


class Counts:
    """Verified payload bytes by where they came from, and what went wrong, since the start."""

    __slots__ = ("cache_errors", "failed_pieces", "from_mirrors", "from_peers", "redundant")

    def __init__(self) -> None:
        self.from_peers = 0
        self.from_mirrors = 0
        self.redundant = 0
        """Bytes from mirrors that were here already, or were wrong."""
        self.failed_pieces = 0
        """Pieces that did not match their hash, whoever sent them."""
        self.cache_errors = 0
        """Times that the disk refused a piece."""

    def arrived(self, torrent: Torrent, pieces: Iterable[PieceIndex]) -> None:
        """Count pieces that were claimed just now."""
        for piece in pieces:
            if piece in torrent.injected:
                self.from_mirrors += torrent.held.span(piece)
            else:
                self.from_peers += torrent.held.span(piece)
                torrent.last_arrival = trio.current_time()


class Traffic:
    """All flights of a node; *flights_max* is how many may be under way."""

    def __init__(self, swarm: Swarm, flights_max: int) -> None:
        self._swarm = swarm
        self._flights_max = flights_max
        self._count = 0
        self._landed = trio.Event()

    @property
    def room_ahead(self) -> int:
        """How many flights that nobody waits for may be added: they leave half of all to those who wait."""
        return max(0, self._flights_max // 2 - self._count)

    async def room(self) -> None:
        """Wait until another flight may be added."""
        while self._count >= self._flights_max:
            await self._landed.wait()

    def take_off(self, torrent: Torrent, piece: PieceIndex, *, urgent: bool) -> Flight:
        """Add a flight; nobody is asked yet."""
        now = trio.current_time()
        flight = Flight(piece, began=now, expires=now + READAHEAD_KEEP_S, urgent=urgent)
        torrent.flights[piece] = flight
        self._count += 1
        return flight

    def end(self, torrent: Torrent, piece: PieceIndex, error: CacheError | None) -> None:
        """End a flight, if there is one: who waits for it goes on, who was asked for it need not bother."""
        flight = torrent.flights.pop(piece, None)
        if flight is None:
            return
        flight.error = error
        flight.landed.set()
        for request in flight.requests:
            request.forget(piece)
        self._count -= 1
        self._landed.set()
        self._landed = trio.Event()

    def give_up(self, torrent: Torrent, flight: Flight) -> None:
        """End a flight that nobody waits for any more."""
        if torrent.flights.get(flight.piece) is flight:
            self.end(torrent, flight.piece, None)
            self._swarm.unwant(torrent.metainfo.info_hash, [flight.piece])
