"""This module turns to mirrors for pieces that are due, with one task a torrent that has some under way.

When a piece is due at first is `fetch`'s to say. Here an urgent piece never queues behind readahead: its
runs are asked for first, and readahead leaves half of a mirror's requests free.
"""

from collections.abc import Sequence

import trio

from torrentfs.node.carrier import Carrier
from torrentfs.node.flights import Flight, Request, Torrent, runs
from torrentfs.node.mirrors import Mirror
from torrentfs.node.patience import Patience
from torrentfs.node.seams import Swarm
from torrentfs.node.tasks import Tasks
from torrentfs.node.traffic import Counts, Traffic
from torrentfs.repository.metainfo import PieceIndex

RANGE_LENGTH_MAX = 4 * 1024 * 1024
"""What one request to a mirror asks for at most."""
NEXT_MIRROR_AFTER_S = 2.0
"""A mirror that has not brought a piece after so long gets company by the next one."""
LOOK_S = 0.02
"""How long to wait for word of who has a piece."""
SLOW_PEERS_FACTOR = 4
"""Peers that bring *some* piece within each hedge delay are left alone for so many of them."""


class Courier:
    """Asks mirrors for flights that are due."""

    def __init__(
        self,
        tasks: Tasks,
        traffic: Traffic,
        carrier: Carrier,
        swarm: Swarm,
        patience: Patience,
        counts: Counts,
    ) -> None:
        self._tasks = tasks
        self._traffic = traffic
        self._carrier = carrier
        self._swarm = swarm
        self._patience = patience
        self._counts = counts
        self._busy: set[Torrent] = set()

    def due(self, torrent: Torrent, flight: Flight, due: float) -> None:
        """Set when the next source is asked for a flight; wake the torrent's task if it would sleep
        too long.
        """
        flight.due = due
        if torrent not in self._busy:
            self._busy.add(torrent)
            self._tasks.start(self._run, torrent)
        elif due < torrent.wakes_at:
            torrent.wake.set()

    async def _run(self, torrent: Torrent) -> None:
        try:
            while torrent.flights:
                torrent.wake = trio.Event()
                torrent.wakes_at = self._dispatch(torrent)
                with trio.move_on_at(torrent.wakes_at):
                    await torrent.wake.wait()
        finally:
            self._busy.discard(torrent)

    def _dispatch(self, torrent: Torrent) -> float:
        """Give up what has expired, ask mirrors for what is due; return when to look again."""
        now = trio.current_time()
        for flight in list(torrent.flights.values()):
            if not flight.readers and flight.expires <= now:
                self._traffic.give_up(torrent, flight)
        due = {
            piece: flight for piece, flight in torrent.flights.items() if self._is_due(torrent, flight, now)
        }
        urgent = [piece for piece, flight in due.items() if flight.urgent]
        others = [piece for piece, flight in due.items() if not flight.urgent]
        for run in runs(urgent, others, RANGE_LENGTH_MAX // torrent.held.piece_length or 1):
            self._send_for(torrent, run, now)
        return self._next_look(torrent, now)

    def _is_due(self, torrent: Torrent, flight: Flight, now: float) -> bool:
        if flight.due > now:
            return False
        if flight.requests:
            return True
        if not torrent.connected:
            if torrent.grace_s:
                self._patience.arriving.broken(torrent.grace_until - torrent.grace_s, now)
                torrent.grace_s = 0.0
            return True
        if flight.waited and not flight.looked:
            # A neighbour may have just got it, and we be getting it.
            flight.looked = True
            flight.due = now + LOOK_S
            self._swarm.look(torrent.metainfo.info_hash)
            return False
        hedge_s = self._patience.hedge_s(now)
        delivering = flight.is_near is not False and now - torrent.last_arrival < hedge_s
        if delivering and now - flight.asked < SLOW_PEERS_FACTOR * hedge_s:
            flight.due = torrent.last_arrival + hedge_s
            return False
        return True

    def _send_for(self, torrent: Torrent, run: list[PieceIndex], now: float) -> None:
        """Ask the first mirror that may be asked for a run of pieces, or as much of it as it was
        not asked for yet.
        """
        flights = [torrent.flights[piece] for piece in run]
        for mirror in torrent.mirrors:
            if mirror.ready_at(torrent.metainfo.info_hash) > now:
                continue
            room = mirror.requests_max if flights[0].urgent else max(1, mirror.requests_max // 2)
            if mirror.requests >= room:
                if mirror.within and now < _patient_until(flights[0]):
                    return  # a place there comes free soon, and going beyond the site costs others
                continue
            fresh = [not flight.is_asked_of(mirror) for flight in flights]
            count = fresh.index(False) if False in fresh else len(fresh)
            if count:
                self._request(torrent, mirror, flights[:count], now)
                return
        if torrent.upstream and all(
            mirror.ready_at(torrent.metainfo.info_hash) > now for mirror in torrent.mirrors
        ):
            peers = [peer for peer in torrent.upstream if peer not in torrent.peers]
            torrent.learn((), peers)
            torrent.upstream.clear()
            self._swarm.connect(torrent.metainfo.info_hash, peers)

    def _request(self, torrent: Torrent, mirror: Mirror, flights: Sequence[Flight], now: float) -> None:
        request = Request(mirror, [flight.piece for flight in flights])
        if mirror.within:
            # It has them once it sends them, and so has a seeder there: both would bring them.
            self._swarm.unwant(
                torrent.metainfo.info_hash, [flight.piece for flight in flights if not flight.requests]
            )
        self._want(torrent, [flight for flight in flights if flight.requests])
        for flight in flights:
            if torrent.connected and flight.is_near is not False and not flight.hedged:
                flight.hedged = True
                self._counts.hedges += 1
            flight.requests.append(request)
            flight.due = now + NEXT_MIRROR_AFTER_S
        mirror.begin()
        self._tasks.start(self._carry, torrent, request)

    async def _carry(self, torrent: Torrent, request: Request) -> None:
        await self._carrier.run(torrent, request)
        left = [flight for piece in request.run if (flight := torrent.flights.get(piece))]
        self._want(torrent, [one for one in left if not one.requests and one.piece not in torrent.injected])

    def _want(self, torrent: Torrent, flights: Sequence[Flight]) -> None:
        """Have peers bring what a mirror is late with, or did not bring."""
        for urgent in (True, False):
            pieces = [flight.piece for flight in flights if flight.urgent is urgent]
            if pieces:
                self._swarm.want(torrent.metainfo.info_hash, pieces, urgent=urgent)

    def _next_look(self, torrent: Torrent, now: float) -> float:
        """Return the next time at which anything can be done: a slot that comes free wakes the
        courier besides.
        """
        waiting = [
            at
            for flight in torrent.flights.values()
            for at in (flight.due, _patient_until(flight))
            if at > now
        ]
        expiring = [flight.expires for flight in torrent.flights.values() if not flight.readers]
        ready = [mirror.ready_at(torrent.metainfo.info_hash) for mirror in torrent.mirrors]
        return min([*waiting, *expiring, *(at for at in ready if at > now)], default=float("inf"))


def _patient_until(flight: Flight) -> float:
    """Return until when a mirror of the site that has much to do is waited for."""
    return flight.asked + NEXT_MIRROR_AFTER_S
