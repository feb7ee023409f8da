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
from torrentfs.errors import CacheError, DeadlineError, TorrentfsError
from torrentfs.node.bypass import Bypass
from torrentfs.node.carrier import INJECT_PATIENCE_S, Carrier
from torrentfs.node.courier import Courier
from torrentfs.node.flights import Flight, Sources, Torrent
from torrentfs.node.held import ON_DISK
from torrentfs.node.lookup import Lookup
from torrentfs.node.outage import Outage
from torrentfs.node.patience import Patience
from torrentfs.node.room import CLAIM_BYTES, Room
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
PEERS_PATIENCE_S = 5.0
"""How long peers may take to connect, at first or again, when no mirror can be reached."""
CLOSE_DEADLINE_S = 1.0
SITE_MIRROR_FETCHERS = 4
"""So many nodes ask a mirror of the site for the same piece at once: more of them would be its bottleneck."""
BRINGS_MAX, BRING_LENGTH, BRING_DEADLINE_S = 4, 4 * 1024 * 1024, 120.0
"""How many torrents are prefetched at a time, in what steps, and how long such a step may take."""
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
        self.coming: set[InfoHash] = set()
        """Torrents that are to come whole."""
        self._bringing = trio.CapacityLimiter(BRINGS_MAX)
        self._settings = settings
        self._store = store
        self._tasks = Tasks()
        self._patience = Patience(
            hedge_max_s=settings.hedge_delay_s,
            spread_max_s=settings.neighbour_wait_s,
            connect_grace_s=settings.connect_grace_s,
        )
        self.torrents = Torrents(settings, store, self.swarm, self._tasks, self._patience)
        self.lookup = Lookup(store, self.torrents, self._tasks)
        self._traffic = Traffic(self.swarm, settings.pieces_in_flight_max)
        self._bypass = Bypass(store, self.counts)
        self._outage = Outage(self._tasks, self.torrents.wake)
        self.room = Room(settings, store, self.torrents, self._traffic)
        carrier = Carrier(self.swarm, self.counts)
        self._courier = Courier(self._tasks, self._traffic, carrier, self.swarm, self._patience, self.counts)

    @property
    def trouble(self) -> str:
        """Why pieces came into memory only; empty once the disk took one again."""
        return self._bypass.trouble

    @property
    def pieces_in_flight(self) -> int:
        """How many pieces are under way."""
        return self._traffic.count

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

        def may_peers() -> bool:
            return self._may_peers_bring(missing.ref.info_hash)

        try:
            with self._outage.reading(self.torrents.mirrors(sources), may_peers, deadline) as scope:
                torrent = await self.torrents.opened(missing.ref, sources)
                keep = len(torrent.held.pieces(missing.offset, missing.length))
                with self.torrents.needing([missing]):
                    while pieces := torrent.held.missing(missing.offset, missing.length):
                        try:
                            await self._land(torrent, pieces[:ENSURE_PIECES_MAX])
                        except CacheError as error:
                            await self._bypass.bring(torrent, pieces, keep, error)
            if scope.cancelled_caught:
                why = self._why(missing.ref, sources)
                if trio.current_time() < deadline:
                    raise DeadlineError(f"{missing} cannot come, no source can be reached: {why}")
                raise DeadlineError(f"{missing} did not come in time: {why}")
        finally:
            self.waiting -= 1

    def _may_peers_bring(self, info_hash: InfoHash) -> bool:
        """Tell whether peers may bring what mirrors do not; without its metainfo nobody can."""
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return self._store.has_metainfo(info_hash)
        return torrent.connected > 0 or trio.current_time() - torrent.alone_since < PEERS_PATIENCE_S

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
        if self.torrents.get(torrent.metainfo.info_hash) is torrent:  # else it has left meanwhile
            fitting = self.room.fits(torrent, pieces[: self._traffic.room_ahead])
            self._ask(torrent, fitting, urgent=False)

    def bring(self, ref: TorrentRef, sources: Sources) -> None:
        """Fetch all of a torrent, in the background, if nobody does already."""
        if ref.info_hash not in self.coming:
            self.coming.add(ref.info_hash)
            self._tasks.start(self._bring, ref, sources)

    async def _bring(self, ref: TorrentRef, sources: Sources) -> None:
        try:
            async with self._bringing:
                for offset in range(0, ref.length, BRING_LENGTH):
                    part = NotCached(ref, offset, min(BRING_LENGTH, ref.length - offset))
                    await self.ensure(part, sources, trio.current_time() + BRING_DEADLINE_S)
        except TorrentfsError as error:
            _LOG.warning("a prefetch was given up: %s", error)
        finally:
            self.coming.discard(ref.info_hash)

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
        fresh = [piece for piece in pieces if torrent.held.states[piece] not in ON_DISK]
        error = self._claim(torrent, fresh)
        if error is None:
            if self._bypass.trouble:
                self._recover()
            self.counts.arrived(torrent, fresh)
            for piece in fresh:
                self._learn(torrent, piece)
        for piece in pieces:
            torrent.injected.pop(piece, None)
            self._traffic.end(torrent, piece, error)

    def piece_failed(self, info_hash: InfoHash, piece: PieceIndex) -> None:
        """Ask the next source for a piece that did not match its hash."""
        self.counts.failed_pieces += 1
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        torrent.injected.pop(piece, None)
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
        if before and not connected:
            torrent.alone_since = trio.current_time()
        if (before > 0) == (connected > 0):
            return
        if connected:
            self._patience.arriving.kept()
            self.swarm.look(info_hash)
        for flight in torrent.flights.values():
            if not flight.requests:
                self._courier.due(torrent, flight, self._first_due(torrent, flight.piece, flight.urgent))

    def seen(self, info_hash: InfoHash, counts: Sequence[int]) -> None:
        """Go outside at once for what no connected peer has, unless that is a neighbour's to do."""
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        now = trio.current_time()
        if self.swarm.company(info_hash)[1]:
            torrent.copies, torrent.copies_at = counts, now
        for piece, flight in torrent.flights.items():
            if not flight.requests and piece not in torrent.injected and piece < len(counts):
                self._weigh(torrent, flight, counts[piece] > 0, now)

    # Flights

    async def _land(self, torrent: Torrent, pieces: Sequence[PieceIndex]) -> None:
        """Wait for pieces; whoever leaves last, cancelled or not, leaves nothing behind."""
        await self._traffic.room()
        await self.room.take(torrent, pieces)
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
            self.torrents.repair(torrent)
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
                flight.asked = trio.current_time()
                flight.is_near = None
                is_late = all(request.is_late_for(piece) for request in flight.requests)
                if is_late or not any(request.mirror.within for request in flight.requests):
                    asked.append(piece)
                if is_late:
                    due = min(flight.due, self._first_due(torrent, piece, urgent=True))
                    self._courier.due(torrent, flight, due)
            flights.append(flight)
        if asked:
            self.swarm.want(torrent.metainfo.info_hash, asked, urgent=urgent)
            if torrent.connected:
                self.swarm.look(torrent.metainfo.info_hash)
        return flights

    def _first_due(self, torrent: Torrent, piece: PieceIndex, urgent: bool) -> float:
        """Return until when peers alone are waited for, or the swarm that was given the piece."""
        now = trio.current_time()
        if piece in torrent.injected:
            return now + INJECT_PATIENCE_S
        if torrent.connected:
            return now + (self._patience.hedge_s(now) if urgent else READAHEAD_PATIENCE_S)
        return max(now, torrent.grace_until)

    def _weigh(self, torrent: Torrent, flight: Flight, is_near: bool, now: float) -> None:
        """Set when mirrors are asked for a flight, now that it is known whether a connected peer has it."""
        if is_near:
            if flight.is_near is False and flight.urgent:
                # Somebody was waited for, and has it by now.
                self._courier.due(torrent, flight, now + self._patience.hedge_s(now))
            flight.is_near = True
            return
        if flight.is_near is not False:
            flight.is_near = False
            wait_s = self._neighbours_time(torrent, flight, now)
            if wait_s and flight.urgent and not flight.waited:
                flight.waited = True
                self.counts.waits += 1
            if flight.urgent or not wait_s:
                self._courier.due(torrent, flight, now + wait_s)
        elif flight.looked:
            self._courier.due(torrent, flight, now)

    def _neighbours_time(self, torrent: Torrent, flight: Flight, now: float) -> float:
        """Return how long a neighbour gets to fetch what nobody here has."""
        if not self._settings.neighbour_wait_s:
            return 0.0
        info_hash = torrent.metainfo.info_hash
        own, others = self.swarm.company(info_hash)
        at_once = SITE_MIRROR_FETCHERS if torrent.has_site_mirror(now) else 1
        return self._patience.spread_s(info_hash, flight.piece, own, others, now, at_once=at_once)

    def _learn(self, torrent: Torrent, piece: PieceIndex) -> None:
        """Learn from a piece that has come how long the next ones may take."""
        flight, now = torrent.flights.get(piece), trio.current_time()
        is_injected = piece in torrent.injected
        if not is_injected:
            torrent.last_arrival = now
            self._patience.peers.kept()
        if flight is None or not flight.urgent:
            return
        if not is_injected:
            if flight.waited:
                self._patience.neighbours.kept()
            elif flight.is_near:
                self._patience.hedge.took(now - flight.asked)
            return
        if flight.hedged and torrent.last_arrival < flight.asked:
            self._patience.peers.broken(flight.asked, now)
        if flight.waited:
            self._patience.neighbours.broken(flight.asked, now)
        elif flight.is_near is False or not torrent.connected:
            self._patience.fetched(now - flight.asked)

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

    def _recover(self) -> None:
        """Have the disk, which takes pieces again, take what came past it."""
        self._bypass.trouble = ""
        self.torrents.keep_metainfo()
        left = self.room.left()
        for held, piece in self._store.in_memory:
            torrent = self.torrents.get(held.ref.info_hash)
            left -= held.span(piece) + CLAIM_BYTES
            if left < 0:
                break
            if torrent is not None and piece not in torrent.flights and piece not in torrent.injected:
                torrent.injected[piece] = False
                self.swarm.inject(held.ref.info_hash, piece, held.in_memory[piece])

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
