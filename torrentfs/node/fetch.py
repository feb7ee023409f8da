"""This module decides which source a missing piece comes from, and when: the one place that does.

Peers first. With none connected (after a short grace for those that are known), or when they bring nothing for the hedge
delay, mirrors are asked for ranges, in their order, the next one when one stays silent. What a mirror brings is
verified here, so that no peer is blamed for it, and given to the swarm, which writes and seeds it. A piece is claimed
in the store before anybody who waits for it is told.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing

import trio

from torrentfs.config import NodeSettings
from torrentfs.errors import CacheError, DeadlineError, FetchError
from torrentfs.node.flights import Flight, Request, Sources, Torrent, runs
from torrentfs.node.mirrors import Mirror, MirrorError
from torrentfs.node.opening import Opening
from torrentfs.node.seams import Swarm, SwarmEvents
from torrentfs.node.store import Store
from torrentfs.repository.metainfo import InfoHash, Metainfo, NotCached, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

RANGE_LENGTH_MAX = 4 * 1024 * 1024
"""What one request to a mirror asks for at most."""
NEXT_MIRROR_AFTER_S = 2.0
"""A mirror that has not brought a piece after so long gets company by the next one."""
SLOW_PEERS_FACTOR = 4
"""Peers that bring *some* piece within each hedge delay are left alone for so many of them."""
READAHEAD_PATIENCE_S = 5.0
"""How long peers may take for a piece that nobody waits for yet."""
READAHEAD_KEEP_S = 30.0
"""After which a piece that nobody waits for is given up."""
EXPECTED_KEEP_S = 60.0
"""After which a torrent that nobody waits for is given up."""
RESUME_KEEP_S = 5.0
"""How long to try to seed a torrent again that nobody asked for."""
INJECT_PATIENCE_S = 5.0
"""How long the swarm may take to say something of a piece that it was given."""
ENSURE_PIECES_MAX = 16
"""Pieces that one reader has under way at a time."""


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


class Fetcher:
    """Brings pieces into the store. Everything but `run` and `ensure` returns at once."""

    def __init__(
        self, settings: NodeSettings, store: Store, make_swarm: Callable[[SwarmEvents], Swarm]
    ) -> None:
        self.counts = Counts()
        self.swarm = make_swarm(self)
        self.torrents: dict[InfoHash, Torrent] = {}
        self.waiting = 0
        self._settings = settings
        self._store = store
        self._mirrors: dict[str, Mirror] = {}
        self._openings: dict[InfoHash, Opening] = {}
        self._nursery: trio.Nursery | None = None
        self._flying = 0
        self._room = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            with trio.move_on_after(1.0, shield=True):
                for mirror in self._mirrors.values():
                    await mirror.close()

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
                torrent = await self._opened(missing.ref, sources)
                while pieces := torrent.held.missing(missing.offset, missing.length):
                    await self._land(torrent, pieces[:ENSURE_PIECES_MAX])
        except trio.TooSlowError:
            raise DeadlineError(
                f"{missing} did not come in time: {self._why(missing.ref, sources)}"
            ) from None
        finally:
            self.waiting -= 1

    def expect(self, refs: Iterable[TorrentRef], sources: Sources) -> None:
        """Get ready for torrents that will be read soon: their metainfo, and connections to their peers."""
        for ref in refs:
            held = self._store.get(ref.info_hash)
            if held is not None and held.complete:
                continue
            self._open(ref, sources, EXPECTED_KEEP_S)

    def ahead(self, torrent: Torrent, pieces: Iterable[PieceIndex]) -> None:
        """Ask for pieces that may be read soon; a node that has much under way lets it be."""
        room = self._settings.pieces_in_flight_max // 2 - self._flying
        self._ask(torrent, list(pieces)[: max(0, room)], urgent=False)

    async def resume(self, ref: TorrentRef) -> None:
        """Seed what the cache holds of a torrent, if its metainfo is there too."""
        opening = self._open(ref, Sources(), RESUME_KEEP_S)
        if opening is not None:
            await opening.done.wait()

    # What the swarm tells (SwarmEvents)

    def pieces_arrived(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        """Claim pieces that are verified and on disk, then wake who waits for them."""
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        fresh = [piece for piece in pieces if not torrent.held.states[piece]]
        error = self._claim(torrent, fresh)
        if error is None:
            self._count(torrent, fresh)
        for piece in pieces:
            torrent.injected.discard(piece)
            self._end(torrent, piece, error)

    def piece_failed(self, info_hash: InfoHash, piece: PieceIndex) -> None:
        """Ask the next source for a piece that did not match its hash."""
        self.counts.failed_pieces += 1
        torrent = self.torrents.get(info_hash)
        if torrent is None:
            return
        torrent.injected.discard(piece)
        flight = torrent.flights.get(piece)
        if flight is not None:
            self._due(torrent, flight, trio.current_time())

    def peers_changed(self, info_hash: InfoHash, connected: int) -> None:
        """Turn to mirrors when the last peer goes; wait a little for the first one that comes."""
        torrent = self.torrents.get(info_hash)
        if torrent is None or (torrent.connected > 0) == (connected > 0):
            if torrent is not None:
                torrent.connected = connected
            return
        torrent.connected = connected
        for flight in torrent.flights.values():
            if not flight.requests:
                self._due(torrent, flight, self._first_due(torrent, flight.urgent))

    # Torrents

    def prepare(self, sources: Sources) -> None:
        """Check sources before they are used.

        Raises:
            UsageError: a mirror's URL is none.
        """
        for base in sources.mirrors:
            self._mirror(base)

    def _open(self, ref: TorrentRef, sources: Sources, keep_s: float) -> Opening | None:
        """Start to get a torrent's metainfo, or join those who do; None if it is open already."""
        mirrors = [self._mirror(base) for base in sources.mirrors]
        torrent = self.torrents.get(ref.info_hash)
        if torrent is not None:
            new_peers = torrent.learn(mirrors, sources.peers)
            if new_peers:
                torrent.grace_until = trio.current_time() + self._settings.connect_grace_s
                self.swarm.connect(ref.info_hash, new_peers)
            return None
        opening = self._openings.get(ref.info_hash)
        now = trio.current_time()
        if opening is None or opening.scope.cancel_called:
            opening = self._openings[ref.info_hash] = Opening(ref)
            assert self._nursery is not None, "the fetcher is not running"
            self._nursery.start_soon(self._run_opening, opening)
        opening.learn(mirrors, sources.peers)
        opening.expected_until = max(opening.expected_until, now + keep_s)
        opening.settle(now)
        return opening

    async def _run_opening(self, opening: Opening) -> None:
        try:
            await opening.run(self._store, self._add)
        except Exception as error:  # our bug ends this attempt, not the node
            _LOG.exception("opening %s failed", opening.ref.info_hash.hex())
            opening.error = FetchError(f"internal error: {error!r}")
        finally:
            opening.done.set()
            if self._openings.get(opening.ref.info_hash) is opening:
                del self._openings[opening.ref.info_hash]

    async def _opened(self, ref: TorrentRef, sources: Sources) -> Torrent:
        """Return a torrent once it is open."""
        while (opening := self._open(ref, sources, 0.0)) is not None:
            opening.readers += 1
            opening.settle(trio.current_time())
            try:
                await opening.done.wait()
            finally:
                opening.readers -= 1
                opening.settle(trio.current_time())
            if opening.error is not None:
                raise type(opening.error)(str(opening.error))
        return self.torrents[ref.info_hash]

    def _add(self, opening: Opening, metainfo: Metainfo) -> None:
        held = self._store.add(opening.ref, metainfo.piece_length)
        torrent = Torrent(metainfo, held, readahead_pieces_max=self._settings.readahead_pieces_max)
        torrent.learn(opening.mirrors, opening.peers)
        torrent.grace_until = trio.current_time() + self._settings.connect_grace_s
        self.torrents[metainfo.info_hash] = torrent
        held.lost.clear()
        self.swarm.add(metainfo, self._store.path(held.ref), held.have(), tuple(torrent.peers))

    def _repair(self, torrent: Torrent) -> None:
        """Tell the swarm which pieces are gone. It forgets its connections over that: peers get their grace anew."""
        lost, torrent.held.lost = torrent.held.lost, []
        torrent.injected.difference_update(lost)
        torrent.grace_until = trio.current_time() + self._settings.connect_grace_s
        self.swarm.drop(torrent.metainfo.info_hash, lost)

    def _mirror(self, base: str) -> Mirror:
        mirror = self._mirrors.get(base)
        if mirror is None:
            settings = self._settings
            mirror = Mirror(
                base, requests_max=settings.mirror_requests_max, timeout_s=settings.mirror_timeout_s
            )
            self._mirrors[base] = mirror
        return mirror

    # Flights

    async def _land(self, torrent: Torrent, pieces: Sequence[PieceIndex]) -> None:
        """Wait for pieces; whoever leaves last, cancelled or not, leaves nothing behind."""
        while self._flying >= self._settings.pieces_in_flight_max:
            await self._room.wait()
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
                    self._give_up(torrent, flight)
        for flight in flights:
            if flight.error is not None:
                raise CacheError(str(flight.error))

    def _ask(self, torrent: Torrent, pieces: Sequence[PieceIndex], *, urgent: bool) -> list[Flight]:
        """Have pieces that are not here on their way, urgently or not; ask the swarm for those that were not."""
        if torrent.held.lost:
            self._repair(torrent)
        flights, asked = [], []
        for piece in pieces:
            if torrent.held.states[piece]:
                continue
            flight = torrent.flights.get(piece)
            if flight is None:
                flight = self._take_off(torrent, piece, urgent=urgent)
                asked.append(piece)
            elif urgent and not flight.urgent:
                flight.urgent = True
                asked.append(piece)
                if all(request.is_late_for(piece) for request in flight.requests):
                    self._due(torrent, flight, min(flight.due, self._first_due(torrent, urgent=True)))
            flights.append(flight)
        if asked:
            self.swarm.want(torrent.metainfo.info_hash, asked, urgent=urgent)
        return flights

    def _take_off(self, torrent: Torrent, piece: PieceIndex, *, urgent: bool) -> Flight:
        now = trio.current_time()
        due = self._first_due(torrent, urgent)
        flight = Flight(piece, began=now, due=due, expires=now + READAHEAD_KEEP_S, urgent=urgent)
        torrent.flights[piece] = flight
        self._flying += 1
        self._due(torrent, flight, due)
        return flight

    def _first_due(self, torrent: Torrent, urgent: bool) -> float:
        """Return until when peers alone are waited for."""
        now = trio.current_time()
        if torrent.connected:
            return now + (self._settings.hedge_delay_s if urgent else READAHEAD_PATIENCE_S)
        return max(now, torrent.grace_until) if torrent.peers else now

    def _end(self, torrent: Torrent, piece: PieceIndex, error: CacheError | None) -> None:
        """End a flight: whoever waits for it goes on, whoever else was asked for it need not bother."""
        flight = torrent.flights.pop(piece, None)
        if flight is None:
            return
        flight.error = error
        flight.landed.set()
        for request in flight.requests:
            request.forget(piece)
        self._flying -= 1
        self._room.set()
        self._room = trio.Event()

    def _give_up(self, torrent: Torrent, flight: Flight) -> None:
        if torrent.flights.get(flight.piece) is flight:
            self._end(torrent, flight.piece, None)
            self.swarm.unwant(torrent.metainfo.info_hash, [flight.piece])

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

    def _count(self, torrent: Torrent, pieces: Iterable[PieceIndex]) -> None:
        for piece in pieces:
            if piece in torrent.injected:
                self.counts.from_mirrors += torrent.held.span(piece)
            else:
                self.counts.from_peers += torrent.held.span(piece)
                torrent.last_arrival = trio.current_time()

    # Couriers: one task for each torrent with something under way, that turns to mirrors when it is due

    def _due(self, torrent: Torrent, flight: Flight, due: float) -> None:
        """Set when the next source is asked for a flight; wake the courier if it would sleep too long."""
        flight.due = due
        if not torrent.courier:
            torrent.courier = True
            assert self._nursery is not None, "the fetcher is not running"
            self._nursery.start_soon(self._courier, torrent)
        elif due < torrent.wakes_at:
            torrent.wake.set()

    async def _courier(self, torrent: Torrent) -> None:
        try:
            while torrent.flights:
                torrent.wake = trio.Event()
                torrent.wakes_at = self._dispatch(torrent)
                with trio.move_on_at(torrent.wakes_at):
                    await torrent.wake.wait()
        finally:
            torrent.courier = False

    def _dispatch(self, torrent: Torrent) -> float:
        """Give up what has expired, ask mirrors for what is due; return when to look again."""
        now = trio.current_time()
        for flight in list(torrent.flights.values()):
            if not flight.readers and flight.expires <= now:
                self._give_up(torrent, flight)
        due = {
            piece: flight for piece, flight in torrent.flights.items() if self._is_due(torrent, flight, now)
        }
        urgent = [piece for piece, flight in due.items() if flight.urgent]
        others = [piece for piece, flight in due.items() if not flight.urgent]
        for run in runs(urgent, others, RANGE_LENGTH_MAX // torrent.held.piece_length or 1):
            self._send_for(torrent, run, now)
        return self._next_look(torrent, now)

    def _is_due(self, torrent: Torrent, flight: Flight, now: float) -> bool:
        hedge_s = self._settings.hedge_delay_s
        if flight.due > now:
            return False
        delivering = torrent.connected and now - torrent.last_arrival < hedge_s
        if delivering and not flight.requests and now - flight.began < SLOW_PEERS_FACTOR * hedge_s:
            flight.due = torrent.last_arrival + hedge_s
            return False
        return True

    def _send_for(self, torrent: Torrent, run: list[PieceIndex], now: float) -> None:
        """Ask the first mirror that may be asked for a run of pieces, or as much of it as it was not asked for yet."""
        flights = [torrent.flights[piece] for piece in run]
        for mirror in torrent.mirrors:
            room = mirror.requests_max if flights[0].urgent else max(1, mirror.requests_max // 2)
            if mirror.requests >= room or mirror.ready_at(torrent.metainfo.info_hash) > now:
                continue
            fresh = [not flight.is_asked_of(mirror) for flight in flights]
            count = fresh.index(False) if False in fresh else len(fresh)
            if count:
                self._request(torrent, mirror, flights[:count], now)
                return

    def _request(self, torrent: Torrent, mirror: Mirror, flights: Sequence[Flight], now: float) -> None:
        request = Request(mirror, [flight.piece for flight in flights])
        for flight in flights:
            flight.requests.append(request)
            flight.due = now + NEXT_MIRROR_AFTER_S
        mirror.requests += 1
        assert self._nursery is not None
        self._nursery.start_soon(self._run_request, torrent, request, now)

    def _next_look(self, torrent: Torrent, now: float) -> float:
        """Return the next time at which anything can be done: a slot that comes free wakes the courier besides."""
        waiting = [flight.due for flight in torrent.flights.values() if flight.due > now]
        expiring = [flight.expires for flight in torrent.flights.values() if not flight.readers]
        ready = [mirror.ready_at(torrent.metainfo.info_hash) for mirror in torrent.mirrors]
        return min([*waiting, *expiring, *(at for at in ready if at > now)], default=float("inf"))

    # Requests to mirrors

    async def _run_request(self, torrent: Torrent, request: Request, asked_at: float) -> None:
        info_hash = torrent.metainfo.info_hash
        delivered: set[PieceIndex] = set()
        try:
            with request.scope:
                await self._carry(torrent, request, delivered)
                request.mirror.succeeded(info_hash)
        except MirrorError as error:
            _LOG.info("mirror %s put aside: %s", request.mirror.base, error)
            request.mirror.failed(error, info_hash, asked_at)
        except Exception as error:  # our bug, or a library's, ends this request, not the node
            _LOG.exception("a request to %s failed", request.mirror.base)
            request.mirror.failed(MirrorError(f"internal error: {error!r}"), info_hash, asked_at)
        finally:
            request.mirror.requests -= 1
            now = trio.current_time()
            for piece in request.run:
                flight = torrent.flights.get(piece)
                if flight is not None and request in flight.requests:
                    flight.requests.remove(request)
                    flight.due = now + (INJECT_PATIENCE_S if piece in delivered else 0.0)
            for other in self.torrents.values():
                if other.flights:
                    other.wake.set()

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
            self.counts.failed_pieces += 1
            self.counts.redundant += len(data)
            raise MirrorError(f"wrong bytes in piece {piece} of {torrent.held.ref.info_hash.hex()}")
        request.open.discard(piece)
        if torrent.held.states[piece] or piece in torrent.injected:
            self.counts.redundant += len(data)
        if torrent.held.states[piece]:
            return
        torrent.injected.add(piece)
        self.swarm.inject(torrent.metainfo.info_hash, piece, data)

    def _why(self, ref: TorrentRef, sources: Sources) -> str:
        """Say in one line what the sources of a torrent did."""
        torrent = self.torrents.get(ref.info_hash)
        if torrent is None:
            words = ["its metainfo was not found"]
        else:
            words = [f"{torrent.connected} of {len(torrent.peers)} known peers connected"]
        for base in sources.mirrors:
            words.append(self._mirror(base).reason(ref.info_hash) or f"{base}: no answer yet")
        return "; ".join(words if sources.mirrors else [*words, "no mirror known"])
