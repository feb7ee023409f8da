"""This module builds a node: one cache, one swarm, one fetcher, for any number of mounts and repositories."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from torrentfs.config import NodeSettings
from torrentfs.errors import CacheError
from torrentfs.node.fetch import Fetcher
from torrentfs.node.flights import Sources
from torrentfs.node.frames import FrameCache
from torrentfs.node.seams import Swarm, SwarmEvents
from torrentfs.node.store import Store
from torrentfs.node.view import View
from torrentfs.repository.metainfo import InfoHash, Kind

_LOG = logging.getLogger(__name__)

CHECKPOINT_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class TorrentStats:
    """One torrent on this node; lengths in bytes, *peers* connected now."""

    info_hash: InfoHash
    kind: Kind
    length: int
    cached: int
    peers: int


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Payload bytes since the start (`cached`: now, whoever brought them), and what went wrong."""

    cached: int
    from_peers: int
    from_mirrors: int
    redundant: int
    uploaded: int
    waiting: int
    peers: int
    failed_pieces: int
    damaged_pieces: int
    cache_errors: int


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
        self._store = Store(directory, open_files_max=settings.open_files_max)
        try:
            self._fetcher = Fetcher(settings, self._store, make_swarm or _swarm_maker(settings))
        except BaseException:
            self._store.close()
            raise
        self._frames = FrameCache(settings.frame_cache_bytes_max)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch, seed and keep the state small, until cancelled; then leave the cache to the next daemon."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._fetcher.run)
                await nursery.start(self._fetcher.swarm.run)
                task_status.started()
                nursery.start_soon(self._keep_state)
                await self._resume()
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

    async def stats(self) -> NodeStats:
        """Return the node's figures."""
        counts = self._fetcher.counts
        swarm = await self._fetcher.swarm.counters()
        return NodeStats(
            cached=sum(held.cached for held in self._store.all()),
            from_peers=counts.from_peers,
            from_mirrors=counts.from_mirrors,
            redundant=counts.redundant + swarm.redundant,
            uploaded=swarm.uploaded,
            waiting=self._fetcher.waiting,
            peers=swarm.peers,
            failed_pieces=counts.failed_pieces,
            damaged_pieces=self._store.mismatches,
            cache_errors=counts.cache_errors,
        )

    async def _resume(self) -> None:
        """Seed again what the cache holds, one torrent after the other: readers come first."""
        for held in self._store.all():
            if held.cached:
                await self._fetcher.resume(held.ref)

    async def _keep_state(self) -> None:
        while True:
            await trio.sleep(CHECKPOINT_INTERVAL_S)
            try:
                self._store.flush_uses()
                await trio.to_thread.run_sync(self._store.checkpoint)
            except CacheError as error:
                _LOG.warning("%s", error)


def _swarm_maker(settings: NodeSettings) -> Callable[[SwarmEvents], Swarm]:
    def make(events: SwarmEvents) -> Swarm:
        from torrentfs.node.swarm import Swarm as LibtorrentSwarm

        return LibtorrentSwarm(settings.swarm, events)

    return make
