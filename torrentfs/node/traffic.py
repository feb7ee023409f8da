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

    __slots__ = (
        "bypassed",
        "cache_errors",
        "failed_pieces",
        "from_mirrors",
        "from_peers",
        "from_site_mirrors",
        "hedges",
        "hedges_won",
        "redundant",
        "waits",
        "waits_won",
    )

    def __init__(self) -> None:
        self.from_peers = 0
        self.from_mirrors = 0
        """Of mirrors beyond the site."""
        self.from_site_mirrors = 0
        self.hedges = 0
        """Pieces that a peer was late with, so that a mirror was asked too."""
        self.hedges_won = 0
        """Those that the mirror brought first."""
        self.waits = 0
        """Pieces that a neighbour was given time to fetch from outside."""
        self.waits_won = 0
        """Those that then came from a peer."""
        self.redundant = 0
        """Bytes from mirrors that were here already, or were wrong."""
        self.failed_pieces = 0
        """Pieces that did not match their hash, whoever sent them."""
        self.bypassed = 0
        """Bytes that came past the disk, into memory."""
        self.cache_errors = 0
        """Times that the disk refused a piece."""

    def arrived(self, torrent: Torrent, pieces: Iterable[PieceIndex]) -> None:
        """Count pieces that were claimed just now."""
        for piece in pieces:
            flight, within = torrent.flights.get(piece), torrent.injected.get(piece)
            if within is None:
                self.from_peers += torrent.held.span(piece)
                self.waits_won += bool(flight and flight.waited)
            elif within:
                self.from_site_mirrors += torrent.held.span(piece)
            else:
                self.from_mirrors += torrent.held.span(piece)
            self.hedges_won += bool(within is not None and flight and flight.hedged)


class Traffic:
    """All flights of a node; *flights_max* is how many may be under way."""

    def __init__(self, swarm: Swarm, flights_max: int) -> None:
        self._swarm = swarm
        self._flights_max = flights_max
        self.count = 0
        self.bytes = 0
        """Bytes of all pieces that are under way."""
        self._landed = trio.Event()

    async def landing(self) -> None:
        """Wait until a flight ends."""
        await self._landed.wait()

    @property
    def room_ahead(self) -> int:
        """How many flights that nobody waits for may be added: they leave half of all to those who wait."""
        return max(0, self._flights_max // 2 - self.count)

    async def room(self) -> None:
        """Wait until another flight may be added."""
        while self.count >= self._flights_max:
            await self._landed.wait()

    def take_off(self, torrent: Torrent, piece: PieceIndex, *, urgent: bool) -> Flight:
        """Add a flight; nobody is asked yet."""
        now = trio.current_time()
        flight = Flight(piece, began=now, expires=now + READAHEAD_KEEP_S, urgent=urgent)
        torrent.flights[piece] = flight
        self.count += 1
        self.bytes += torrent.held.span(piece)
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
        self.count -= 1
        self.bytes -= torrent.held.span(piece)
        self._landed.set()
        self._landed = trio.Event()

    def give_up(self, torrent: Torrent, flight: Flight) -> None:
        """End a flight that nobody waits for any more."""
        if torrent.flights.get(flight.piece) is flight:
            self.end(torrent, flight.piece, None)
            self._swarm.unwant(torrent.metainfo.info_hash, [flight.piece])
