"""This module decides which source a missing piece comes from, and when: the one place that does.

Peers first. With none connected (after a short grace for those that are known), or when they bring nothing
for the hedge delay, mirrors are asked for ranges, in their order, the next one when one stays silent. What
a mirror brings is verified here, so that no peer is blamed for it, and given to the swarm, which writes and
seeds it. A piece is claimed in the store before anybody who waits for it is told.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence

import trio

from torrentfs.config import NodeSettings
from torrentfs.errors import CacheError, DeadlineError
from torrentfs.node.carrier import INJECT_PATIENCE_S, Carrier
from torrentfs.node.courier import Courier
from torrentfs.node.flights import Flight, Sources, Torrent
from torrentfs.node.seams import Swarm, SwarmEvents
from torrentfs.node.store import Store
from torrentfs.node.tasks import Tasks
from torrentfs.node.torrents import Torrents
from torrentfs.node.traffic import Counts, Traffic
from torrentfs.repository.metainfo import InfoHash, NotCached, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

READAHEAD_PATIENCE_S = 5.0
"""How long peers may take for a piece that nobody waits for yet."""
EXPECTED_MAX = 64
"""Torrents of which one call gets ready at most: a revision of 500 GB has 500 packs."""
EXPECTED_KEEP_S = 60.0
"""After which a torrent that nobody waits for is given up."""
RESUME_KEEP_S = 5.0
"""How long to try to seed a torrent again that nobody asked for."""
CLOSE_DEADLINE_S = 1.0
ENSURE_PIECES_MAX = 16
"""Pieces that one reader has under way at a time."""


class Fetcher:
    """Brings pieces into the store. Everything but `run` and `ensure` returns at once."""

    def __init__(
        self, settings: NodeSettings, store: Store, make_swarm: Callable[[SwarmEvents], Swarm]
    ) -> None:
        self.counts = Counts()
        self.swarm = make_swarm(self)
        self.waiting = 0
        self._settings = settings
        self._store = store
        self._tasks = Tasks()
        self.torrents = Torrents(settings, store, self.swarm, self._tasks)
        self._traffic = Traffic(self.swarm, settings.pieces_in_flight_max)
        carrier = Carrier(self.swarm, self.counts)
        self._courier = Courier(self._tasks, self._traffic, carrier, hedge_delay_s=settings.hedge_delay_s)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch until cancelled."""
        try:
            await self._tasks.run(task_status=task_status)
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                await self.torrents.close()

    # What readers ask for

    async def ensure(self, missing: NotCached, sources: Sources, deadline: float) -> None:
        """Wait until a range is in the store, at most till *deadline*, trio's time.

        Raises:
            DeadlineError: it did not come; says which sources were tried and what they did.
            FormatError: what is signed and what is there do not fit together.
            CacheError: the disk refuses.
        """
        self.waiting += 1
        try:
            with trio.fail_at(deadline):
                torrent = await self.torrents.opened(missing.ref, sources)
                while pieces := torrent.held.missing(missing.offset, missing.length):
                    await self._land(torrent, pieces[:ENSURE_PIECES_MAX])
        except trio.TooSlowError:
            why = self._why(missing.ref, sources)
            raise DeadlineError(f"{missing} did not come in time: {why}") from None
        finally:
            self.waiting -= 1

    def expect(self, refs: Iterable[TorrentRef], sources: Sources) -> None:
        """Get ready for torrents that will be read soon: their metainfo, and connections to their peers.

        From any thread, as `ahead`.
        """
        self._tasks.soon(self._expect, list(itertools.islice(refs, EXPECTED_MAX)), sources)

    def _expect(self, refs: Sequence[TorrentRef], sources: Sources) -> None:
        for ref in refs:
            held = self._store.get(ref.info_hash)
            if held is not None and held.complete:
                continue
            self.torrents.open(ref, sources, EXPECTED_KEEP_S)

    def ahead(self, torrent: Torrent, pieces: Iterable[PieceIndex]) -> None:
        """Ask for pieces that may be read soon; a node that has much under way lets it be."""
        self._tasks.soon(self._ask_ahead, torrent, list(pieces))

    def _ask_ahead(self, torrent: Torrent, pieces: Sequence[PieceIndex]) -> None:
        self._ask(torrent, pieces[: self._traffic.room_ahead], urgent=False)

    async def resume(self, ref: TorrentRef) -> None:
        """Seed what the cache holds of a torrent, if its metainfo is there too."""
        opening = self.torrents.open(ref, Sources(), RESUME_KEEP_S)
        if opening is not None:
            await opening.done.wait()
            if opening.error is not None:
                _LOG.warning("%s is not seeded: %s", self._store.path(ref), opening.error)

    # What the swarm tells (SwarmEvents)

    def pieces_arrived(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        """Claim pieces that are verified and on disk, then wake who waits for them."""
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        fresh = [piece for piece in pieces if not torrent.held.states[piece]]
        error = self._claim(torrent, fresh)
        if error is None:
            self.counts.arrived(torrent, fresh)
        for piece in pieces:
            torrent.injected.discard(piece)
            self._traffic.end(torrent, piece, error)

    def piece_failed(self, info_hash: InfoHash, piece: PieceIndex) -> None:
        """Ask the next source for a piece that did not match its hash."""
        self.counts.failed_pieces += 1
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        torrent.injected.discard(piece)
        flight = torrent.flights.get(piece)
        if flight is not None:
            self._courier.due(torrent, flight, trio.current_time())

    def disk_failed(self, info_hash: InfoHash, reason: str) -> None:
        """Fail who waits for a torrent at once: no source helps, and later reads try anew."""
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        self.counts.cache_errors += 1
        error = CacheError(f"cannot use {self._store.path(torrent.held.ref)}: {reason}")
        torrent.injected.clear()
        for piece in list(torrent.flights):
            self._traffic.end(torrent, piece, error)

    def peers_changed(self, info_hash: InfoHash, connected: int) -> None:
        """Turn to mirrors when the last peer goes; wait a little for the first one that comes."""
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        before, torrent.connected = torrent.connected, connected
        if (before > 0) == (connected > 0):
            return
        for flight in torrent.flights.values():
            if not flight.requests:
                self._courier.due(torrent, flight, self._first_due(torrent, flight.piece, flight.urgent))

    # Flights

    def _repair(self, torrent: Torrent) -> None:
        """Tell the swarm which pieces are gone. It forgets its connections over that: peers get a
        new grace.
        """
        lost, torrent.held.lost = torrent.held.lost, []
        torrent.injected.difference_update(lost)
        torrent.grace_until = trio.current_time() + self._settings.connect_grace_s
        self.swarm.drop(torrent.metainfo.info_hash, lost)

    async def _land(self, torrent: Torrent, pieces: Sequence[PieceIndex]) -> None:
        """Wait for pieces; whoever leaves last, cancelled or not, leaves nothing behind."""
        await self._traffic.room()
        flights = self._ask(torrent, pieces, urgent=True)
        for flight in flights:
            flight.readers += 1
        try:
            for flight in flights:
                await flight.landed.wait()
        finally:
            for flight in flights:
                flight.readers -= 1
                if not flight.readers and not flight.landed.is_set():
                    self._traffic.give_up(torrent, flight)
        for flight in flights:
            if flight.error is not None:
                raise CacheError(str(flight.error))

    def _ask(self, torrent: Torrent, pieces: Sequence[PieceIndex], *, urgent: bool) -> list[Flight]:
        """Have those pieces that are not here on their way, urgently or not; tell the swarm of new ones."""
        if torrent.held.lost:
            self._repair(torrent)
        flights, asked = [], []
        for piece in pieces:
            if torrent.held.states[piece]:
                continue
            flight = torrent.flights.get(piece)
            if flight is None:
                flight = self._traffic.take_off(torrent, piece, urgent=urgent)
                self._courier.due(torrent, flight, self._first_due(torrent, piece, urgent))
                asked.append(piece)
            elif urgent and not flight.urgent:
                flight.urgent = True
                asked.append(piece)
                if all(request.is_late_for(piece) for request in flight.requests):
                    due = min(flight.due, self._first_due(torrent, piece, urgent=True))
                    self._courier.due(torrent, flight, due)
            flights.append(flight)
        if asked:
            self.swarm.want(torrent.metainfo.info_hash, asked, urgent=urgent)
        return flights

    def _first_due(self, torrent: Torrent, piece: PieceIndex, urgent: bool) -> float:
        """Return until when peers alone are waited for, or the swarm that was given the piece."""
        now = trio.current_time()
        if piece in torrent.injected:
            return now + INJECT_PATIENCE_S
        if torrent.connected:
            return now + (self._settings.hedge_delay_s if urgent else READAHEAD_PATIENCE_S)
        return max(now, torrent.grace_until) if torrent.peers else now

    def _claim(self, torrent: Torrent, pieces: Sequence[PieceIndex]) -> CacheError | None:
        try:
            self._store.claim(torrent.held, pieces)
        except CacheError as error:
            self.counts.cache_errors += 1
            _LOG.error("%s", error)
            # The swarm believes to have them: without a claim we do not. The next ask sets that right.
            torrent.held.lost += pieces
            return error
        return None

    def _why(self, ref: TorrentRef, sources: Sources) -> str:
        """Say in one line what the sources of a torrent did."""
        torrent = self.torrents.get(ref.info_hash)
        if torrent is None:
            words = ["its metainfo was not found"]
        else:
            words = [f"{torrent.connected} of {len(torrent.peers)} known peers connected"]
        for mirror in self.torrents.mirrors(sources):
            words.append(mirror.reason(ref.info_hash) or f"{mirror.base}: no answer yet")
        return "; ".join(words if sources.mirrors else [*words, "no mirror known"])
