"""This module keeps the cache within its bounds: what was read longest ago goes.

Whoever fetches asks for room first. Packs that nobody uses go as a whole; of those in use, the pieces read
longest ago; last of all what no neighbour has, as far as is known. A piece is no longer claimed before it
goes, and not asked for again before it has gone.
"""

import errno
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence

import trio

from torrentfs.config import NodeSettings
from torrentfs.errors import CacheError
from torrentfs.node.flights import Torrent
from torrentfs.node.held import MISSING, ON_DISK, Held
from torrentfs.node.store import Store
from torrentfs.node.torrents import Torrents
from torrentfs.node.traffic import Traffic
from torrentfs.repository.metainfo import InfoHash, Kind, PieceIndex

_LOG = logging.getLogger(__name__)

BATCH_LEAST, BATCH_SHARE = 16 * 1024 * 1024, 16
"""At least so much goes at a time, and this part of the cache: the swarm takes a torrent in use up anew."""
IDLE_READS = 2_000
"""A pack of which nothing was read during so many reads of others goes as a whole."""
LOOK_S = 0.02
"""How long to wait for word of what neighbours have: their last copies go last."""
CLAIM_BYTES = 16 * 1024
"""How much the state's log grows at most when a piece is claimed."""
SLACK_BYTES = 64 * 1024
"""What logs and signed metadata, which the daemon keeps in the same place, may grow by unseen."""


class Room:
    """The bounds of one cache, and how room is made within them."""

    def __init__(self, settings: NodeSettings, store: Store, torrents: Torrents, traffic: Traffic) -> None:
        self._size_max = settings.cache_size_max
        self._free_min = settings.free_space_min
        self._store = store
        self._torrents = torrents
        self._traffic = traffic
        self._one_at_a_time = trio.Lock()
        self._gone = trio.Event()
        self._has_holes = True

    def left(self) -> float:
        """Return how many bytes may be fetched besides what is under way; negative: too much is here."""
        under_way = self._traffic.bytes + CLAIM_BYTES * self._traffic.count
        bounds = [float("inf")]
        if self._size_max:
            bounds.append(self._size_max - SLACK_BYTES - self._store.used - under_way)
        if self._free_min:
            bounds.append(_free(self._store) - self._free_min - under_way)
        return min(bounds)

    async def take(self, torrent: Torrent, pieces: Sequence[PieceIndex]) -> None:
        """Wait until those of *pieces* that are not under way may be asked for; they must be at once.

        Raises:
            CacheError: there is no room, and nothing that could go.
        """
        held = torrent.held
        while True:
            if not held.leaving.isdisjoint(pieces):
                await self._gone.wait()
                continue
            need = sum(held.span(piece) + CLAIM_BYTES for piece in pieces if self._is_news(torrent, piece))
            if not need or self.left() >= need:
                return
            await self._make(need)

    def fits(self, torrent: Torrent, pieces: Iterable[PieceIndex]) -> list[PieceIndex]:
        """Return as many of *pieces* as may be asked for without that anything goes."""
        left, found = self.left(), []
        for piece in pieces:
            if not self._is_news(torrent, piece):
                continue
            left -= torrent.held.span(piece) + CLAIM_BYTES
            if left < 0:
                break
            if piece not in torrent.held.leaving:
                found.append(piece)
        return found

    async def tidy(self) -> None:
        """Delete what an earlier start left, and come within bounds that may have become narrower."""
        try:
            await trio.to_thread.run_sync(self._store.empty)
            for info_hash in list(self._store.overgrown):
                async with self._one_at_a_time:
                    await self._trim(info_hash)
            if self.left() < 0:
                await self._make(0)
        except (CacheError, OSError) as error:
            _LOG.warning("the cache %s is larger than it may be: %s", self._store.directory, error)

    async def heal(self) -> None:
        """Take into use what is at the cache's place now. Raises: CacheError."""
        async with self._one_at_a_time:
            try:
                self._store.heal()
            finally:
                for held in self._store.all():
                    torrent = self._torrents.get(held.ref.info_hash)
                    if held.lost and torrent is not None:
                        self._torrents.repair(torrent)
        self._torrents.keep_metainfo()
        await self.tidy()

    async def evict(self, info_hashes: Collection[InfoHash]) -> None:
        """Have torrents go but for what is pinned or under way.

        Raises:
            CacheError: the disk refuses.
        """
        async with self._one_at_a_time:
            wanted = [held for held in self._by_age() if held.ref.info_hash in info_hashes]
            await self._remove_idle(float("inf"), wanted, is_ordered=True)
            await self._thin_out(float("inf"), wanted, {})

    def capacity(self) -> float:
        """Return how many bytes the cache could hold if all that may go went."""
        stays = sum(held.cached for held in self._store.all() if held.ref.info_hash in self._store.pins)
        return self.left() + self._store.cached - stays

    @staticmethod
    def _is_news(torrent: Torrent, piece: PieceIndex) -> bool:
        return torrent.held.states[piece] == MISSING and piece not in torrent.flights

    async def _make(self, need: int) -> None:
        """Have *need* bytes fit, or wait for something that is under way, as that can go then.

        Raises: CacheError.
        """
        async with self._one_at_a_time:
            if need > self.left():
                for info_hash in list(self._store.overgrown):
                    await self._trim(info_hash)
            short = need - self.left()
            if short <= 0:
                return
            # Half of what is here stays at least: who waited for the newest has not read it yet.
            batch = max(BATCH_LEAST, self._size_max // BATCH_SHARE)
            batch = max(int(short), min(batch, self._store.cached // 2))
            if self._torrents.look_around():
                await trio.sleep(LOOK_S)
            rare = {held: self._torrents.rare_pieces(held) for held in self._store.all()}
            freed = await self._free(short, batch, rare)
            if freed < short:
                freed += await self._free(short - freed, batch - freed, {})
        if freed:
            return
        if not self._traffic.bytes:
            raise CacheError(
                f"no room in the cache {self._store.directory}, and nothing there can go:"
                " see node.cache_size_max and node.free_space_min"
            )
        await self._traffic.landing()

    async def _free(self, short: float, batch: float, stays: Mapping[Held, Collection[PieceIndex]]) -> int:
        """Have *batch* bytes go, or *short* of them if more is a trouble, but nothing of what *stays*; return
        how many went.
        """
        among = self._by_age()
        freed = await self._remove_idle(batch, [held for held in among if not stays.get(held)])
        if freed < short and self._has_holes:
            freed += await self._thin_out(batch - freed, among, stays)
        return freed

    async def _remove_idle(self, batch: float, among: Sequence[Held], *, is_ordered: bool = False) -> int:
        """Remove packs that nobody uses, in this order, until *batch* bytes went."""
        freed, reads = 0, self._store.reads
        for held in among:
            if freed >= batch:
                break
            is_fresh = not is_ordered and held.read_at and reads - held.read_at < IDLE_READS
            if is_fresh or not held.cached or not self._torrents.release(held.ref.info_hash):
                continue
            freed += held.cached
            self._store.remove(held)
            self._torrents.leaving.add(held.ref.info_hash)
        try:
            if freed:
                await self._in_thread(self._store.empty)
        finally:
            self._store.going -= freed
            self._torrents.left()
        return freed

    async def _thin_out(
        self, batch: float, among: Sequence[Held], stays: Mapping[Held, Collection[PieceIndex]]
    ) -> int:
        """Evict pieces read longest ago, of packs in this order, until *batch* bytes went."""
        freed = 0
        for held in among:
            if freed >= batch:
                break
            torrent = self._torrents.get(held.ref.info_hash)
            needed = self._torrents.needed_pieces(held).union(stays.get(held, ()))
            pieces = self._old_pieces(held, needed, batch - freed)
            if not pieces:
                continue
            self._store.forget(held, pieces)
            try:
                if torrent is not None:
                    # Once this returns, the swarm reads no more of what is to go.
                    self._torrents.renew(torrent, pieces)
                if await self._in_thread(self._store.give_back, held, pieces):
                    freed += sum(map(held.span, pieces))
            finally:
                held.leaving.difference_update(pieces)
                self._store.going -= sum(map(held.span, pieces))
                self._gone.set()
                self._gone = trio.Event()
        return freed

    async def _trim(self, info_hash: InfoHash) -> None:
        """Give back what a torrent's file holds beyond its claims."""
        excess, held = self._store.overgrown.pop(info_hash), self._store.get(info_hash)
        torrent = self._torrents.get(info_hash)
        try:
            if held is not None:
                under_way = {*torrent.flights, *torrent.injected} if torrent is not None else set()
                missing = [PieceIndex(p) for p, state in enumerate(held.states) if state not in ON_DISK]
                held.leaving.update(piece for piece in missing if piece not in under_way)
                await self._in_thread(self._store.give_back, held, sorted(held.leaving))
        finally:
            self._store.going -= excess
            if held is not None:
                held.leaving.clear()
                held.spoiled.clear()
            self._gone.set()
            self._gone = trio.Event()

    def _by_age(self) -> list[Held]:
        """Return what may go, read longest ago first, manifests last: they are small, and all need them."""
        return sorted(
            (held for held in self._store.all() if held.ref.info_hash not in self._store.pins),
            key=lambda held: (held.ref.kind is Kind.MANIFEST, held.read_at, held.used_s),
        )

    def _old_pieces(self, held: Held, needed: Collection[PieceIndex], batch: float) -> list[PieceIndex]:
        if self._store.get(held.ref.info_hash) is not held or held.leaving:
            return []
        found, left = [], batch
        for piece in sorted(range(held.piece_count), key=held.touched.__getitem__):
            if left <= 0:
                break
            if held.states[piece] in ON_DISK and piece not in needed:
                found.append(PieceIndex(piece))
                left -= held.span(PieceIndex(piece))
        return found

    async def _in_thread(self, work, *arguments) -> bool:  # type: ignore[no-untyped-def]
        """Do what waits for the disk; return whether it could be done."""
        try:
            await trio.to_thread.run_sync(work, *arguments)
        except FileNotFoundError:
            return True  # somebody deleted it before us
        except (OSError, CacheError) as error:
            if isinstance(error, OSError) and error.errno == errno.EOPNOTSUPP:
                self._has_holes = False
            _LOG.warning("cannot make room in the cache %s: %s", self._store.directory, error)
            return False
        return True


def _free(store: Store) -> int:
    figures = os.statvfs(store.directory)
    return figures.f_bavail * figures.f_frsize
