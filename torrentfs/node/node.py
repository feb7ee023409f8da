"""This module builds a node: one cache, one swarm, one fetcher, for any number of mounts and repositories."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from torrentfs.config import NodeSettings
from torrentfs.errors import CacheError
from torrentfs.node.checker import Checker
from torrentfs.node.fetch import Fetcher
from torrentfs.node.flights import Sources
from torrentfs.node.frames import FrameCache
from torrentfs.node.seams import Swarm, SwarmEvents
from torrentfs.node.store import Store
from torrentfs.node.view import View
from torrentfs.repository.metainfo import InfoHash, Kind

_LOG = logging.getLogger(__name__)

CHECKPOINT_INTERVAL_S = 10.0
LOG_LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class TorrentStats:
    """One torrent on this node; lengths in bytes, *peers* connected now."""

    info_hash: InfoHash
    kind: Kind
    length: int
    cached: int
    peers: int


@dataclass(frozen=True, slots=True)
class Aside:
    """A source that is not asked for *seconds* more, and why."""

    source: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SourceStats:
    """Payload bytes since the start by who sent them, and what waiting for neighbours came to."""

    neighbours: int
    site_seeders: int
    upstream: int
    site_mirrors: int
    mirrors: int
    redundant: int
    """Bytes that came twice, or were wrong."""
    hedges: int
    """Pieces that a peer was late with, so that a mirror was asked too."""
    hedges_won: int
    waits: int
    """Pieces that a neighbour was given time to fetch from outside."""
    waits_won: int
    aside: tuple[Aside, ...]


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Payload bytes since the start (`cached`: now, whoever brought them), and what went wrong."""

    cached: int
    used: int
    """Bytes of the disk that the cache takes, metainfo and state too."""
    evicted: int
    refetched: int
    """Bytes that were evicted, and of those what came again."""
    bypassed: int
    """Bytes that came into memory only: the disk has no room, or fails."""
    from_peers: int
    from_mirrors: int
    redundant: int
    uploaded: int
    waiting: int
    peers: int
    failed_pieces: int
    damaged_pieces: int
    cache_errors: int
    trouble: str
    """Why bytes came into memory only, the last time; empty once the disk takes them again."""
    limits: Mapping[str, tuple[int, int]]
    """What is in use of that which is bounded, and its bound, by the name of the setting."""
    sources: SourceStats


class Node:
    """One cache and its sources."""

    def __init__(
        self,
        settings: NodeSettings,
        directory: Path,
        make_swarm: "Callable[[SwarmEvents], Swarm] | None" = None,
    ) -> None:
        """Take the cache in *directory* into use.

        Raises:
            CacheError: another daemon uses it, or the disk refuses.
        """
        self._settings = settings
        self._store = Store(
            directory,
            open_files_max=settings.open_files_max,
            pieces_in_memory_max=settings.pieces_in_memory_max,
        )
        try:
            self._fetcher = Fetcher(settings, self._store, make_swarm or _swarm_maker(settings))
        except BaseException:
            self._store.close()
            raise
        self._checker = Checker(settings, self._store, self._fetcher.torrents, self._fetcher.resume)
        self._frames = FrameCache(settings.frame_cache_bytes_max)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch, seed and keep the state small, until cancelled; then leave the cache to the next daemon."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._fetcher.run)
                await nursery.start(self._fetcher.swarm.run)
                task_status.started()
                nursery.start_soon(self._keep_state)
                nursery.start_soon(self._fetcher.room.tidy)
                await self._checker.run()
        finally:
            self._store.close()

    @property
    def listen(self) -> tuple[str, int]:
        """Where peers reach this node, with the real port, once it runs."""
        return self._fetcher.swarm.listen

    def view(self, sources: Sources) -> View:
        """Return the door for a mount whose bytes come from *sources*.

        Raises:
            UsageError: a mirror's URL is none.
        """
        return View(self._store, self._fetcher, self._frames, sources)

    def torrents(self) -> list[TorrentStats]:
        """Return every torrent that the cache knows."""
        return [
            TorrentStats(
                held.ref.info_hash,
                held.ref.kind,
                held.ref.length,
                held.cached,
                self._fetcher.swarm.connected(held.ref.info_hash),
            )
            for held in self._store.all()
        ]

    def holdings(self) -> dict[InfoHash, int]:
        """Return how many bytes of each torrent are here."""
        return {held.ref.info_hash: held.cached for held in self._store.all()}

    def pins(self) -> Collection[str]:
        """Return the labels under which something is pinned."""
        return self._store.pins.labels

    def pin(self, label: str, info_hashes: Iterable[InfoHash]) -> None:
        """Have torrents stay in the cache, here or not yet, in place of what *label* stood for.

        Raises: CacheError.
        """
        self._store.pins.pin(label, info_hashes)

    def is_pinned(self, info_hash: InfoHash, label: str) -> bool:
        """Tell whether a torrent stays for the sake of *label*."""
        return self._store.pins.has(info_hash, label)

    async def sync(self) -> None:
        """Have pins survive a power cut. Raises: CacheError."""
        await trio.to_thread.run_sync(self._store.sync)

    def unpin(self, label: str) -> None:
        """Take `pin` back. Raises: CacheError."""
        self._store.pins.pin(label, ())

    async def evict(self, info_hashes: Collection[InfoHash]) -> None:
        """Have torrents go, but for what is pinned or under way. Raises: CacheError."""
        await self._fetcher.room.evict(info_hashes)

    async def verify(self, info_hashes: Collection[InfoHash]) -> dict[InfoHash, int]:
        """Check what the cache holds of torrents; return how many damaged pieces each lost.

        Raises: CacheError.
        """
        return await self._checker.verify(info_hashes)

    def capacity(self) -> float:
        """Return how many bytes the cache could hold if all that may go went."""
        return self._fetcher.room.capacity()

    async def stats(self) -> NodeStats:
        """Return the node's figures."""
        counts = self._fetcher.counts
        swarm = await self._fetcher.swarm.counters()
        return NodeStats(
            cached=self._store.cached,
            used=self._store.used,
            evicted=self._store.evicted_bytes,
            refetched=self._store.refetched_bytes,
            bypassed=counts.bypassed,
            from_peers=counts.from_peers,
            from_mirrors=counts.from_mirrors + counts.from_site_mirrors,
            redundant=counts.redundant + swarm.redundant,
            uploaded=swarm.uploaded,
            waiting=self._fetcher.waiting,
            peers=swarm.peers,
            failed_pieces=counts.failed_pieces,
            damaged_pieces=self._store.mismatches,
            cache_errors=counts.cache_errors,
            trouble=self._fetcher.trouble,
            limits=self._limits(swarm.peers),
            sources=self._sources(counts.redundant + swarm.redundant),
        )

    def _limits(self, peers: int) -> dict[str, tuple[int, int]]:
        settings, store, fetcher = self._settings, self._store, self._fetcher
        return {
            "node.cache_size_max": (store.used, settings.cache_size_max),
            "node.open_files_max": (len(store.files), settings.open_files_max),
            "node.frame_cache_bytes_max": (self._frames.bytes_held, settings.frame_cache_bytes_max),
            "node.pieces_in_memory_max": (len(store.in_memory), settings.pieces_in_memory_max),
            "node.pieces_in_flight_max": (fetcher.pieces_in_flight, settings.pieces_in_flight_max),
            "node.swarm.connections_max": (peers, settings.swarm.connections_max),
            "node.swarm.alert_queue_max": (fetcher.swarm.alerts_most, settings.swarm.alert_queue_max),
        }

    def _sources(self, redundant: int) -> SourceStats:
        counts, received = self._fetcher.counts, self._fetcher.swarm.received()
        return SourceStats(
            neighbours=received.get("neighbour", 0),
            site_seeders=received.get("site_seeder", 0),
            upstream=received.get("upstream", 0),
            site_mirrors=counts.from_site_mirrors,
            mirrors=counts.from_mirrors,
            redundant=redundant,
            hedges=counts.hedges,
            hedges_won=counts.hedges_won,
            waits=counts.waits,
            waits_won=counts.waits_won,
            aside=tuple(Aside(*one) for one in self._fetcher.torrents.aside()),
        )

    async def _keep_state(self) -> None:
        while True:
            with trio.move_on_after(CHECKPOINT_INTERVAL_S):
                while not self._store.is_log_long:  # noqa: ASYNC110 - a file's length has no event
                    await trio.sleep(LOG_LOOK_INTERVAL_S)
            try:
                if self._store.is_lost:
                    await self._heal()
                self._store.flush_uses()
                await trio.to_thread.run_sync(self._store.checkpoint)
            except CacheError as error:
                _LOG.warning("%s", error)

    async def _heal(self) -> None:
        """Raises: CacheError: it is not there again yet."""
        await self._fetcher.room.heal()
        _LOG.warning("the cache %s had vanished: what is there now is in use", self._store.directory)
        self._checker.begin_again()


def _swarm_maker(settings: NodeSettings) -> Callable[[SwarmEvents], Swarm]:
    def make(events: SwarmEvents) -> Swarm:
        from torrentfs.node.swarm import Swarm as LibtorrentSwarm

        return LibtorrentSwarm(settings.swarm, settings.site, events)

    return make
