"""This module keeps the torrents that may be fetched from, their sources, and those being opened."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from torrentfs.config import NodeSettings
from torrentfs.errors import FetchError
from torrentfs.node.flights import Sources, Torrent
from torrentfs.node.held import ON_DISK, Held
from torrentfs.node.mirrors import Mirror
from torrentfs.node.opening import FIRST, Opening
from torrentfs.node.patience import Patience
from torrentfs.node.rates import Rate
from torrentfs.node.seams import Swarm
from torrentfs.node.store import Store
from torrentfs.node.tasks import Tasks
from torrentfs.repository.metainfo import InfoHash, Metainfo, NotCached, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

COPIES_KNOWN_S = 60.0
"""How long what neighbours had is believed: when a torrent is taken up anew they are gone for a moment."""
FIND_GRACE_S = 0.05
"""How long neighbours may take to be found by tracker or multicast, and to connect: 10 to 30 ms, measured."""


class Torrents:
    """Torrents by info-hash; mirrors by URL, for all torrents alike."""

    def __init__(
        self, settings: NodeSettings, store: Store, swarm: Swarm, tasks: Tasks, patience: Patience
    ) -> None:
        self._settings = settings
        self._patience = patience
        self._site_mirrors = {_base(url) for url in settings.site.mirrors}
        self._within = Rate(settings.site.within.download)
        self._beyond = Rate(settings.site.beyond.download)
        self._store = store
        self._swarm = swarm
        self._tasks = tasks
        self._torrents: dict[InfoHash, Torrent] = {}
        self._openings: dict[InfoHash, Opening] = {}
        self._mirrors: dict[str, Mirror] = {}
        self._needed: dict[InfoHash, list[NotCached]] = {}
        self.leaving: set[InfoHash] = set()
        """Torrents whose data is being deleted: they are not opened before that is done."""
        self._left = trio.Event()

    def get(self, info_hash: InfoHash) -> Torrent | None:
        """Return a torrent that is open."""
        return self._torrents.get(info_hash)

    @property
    def is_found(self) -> bool:
        """Tell whether neighbours find us and we them, without being told of each other."""
        site = self._settings.site
        finds = bool(site.trackers) or site.local_discovery
        return site.install_method == "torrent" and bool(site.networks) and finds

    def aside(self) -> list[tuple[str, str, float]]:
        """Return the mirrors that are put aside, why, and for how many seconds yet."""
        return [found for mirror in self._mirrors.values() if (found := mirror.aside()) is not None]

    def _give_grace(self, torrent: Torrent) -> None:
        """Have a torrent wait for connections, only briefly where nobody may be there."""
        now = trio.current_time()
        grace_s = 0.0 if self._settings.site.install_method == "http" else self._patience.grace_s(now)
        if not torrent.peers:
            grace_s = min(grace_s, FIND_GRACE_S) if self.is_found else 0.0
        torrent.give_grace(now, grace_s)

    def mirrors(self, sources: Sources) -> Sequence[Mirror]:
        """Return the mirrors among *sources*, in order.

        Raises:
            UsageError: a mirror's URL is none.
        """
        return [self._mirror(base) for base in sources.mirrors]

    def open(self, ref: TorrentRef, sources: Sources, keep_s: float) -> Opening | None:
        """Start to get a torrent's metainfo, or join those who do; None if it is open already.

        It goes on for *keep_s* even when nobody waits for it.
        """
        torrent = self._torrents.get(ref.info_hash)
        if torrent is not None:
            self._learn(torrent, sources)
            return None
        now = trio.current_time()
        opening = self._openings.get(ref.info_hash)
        if opening is None or opening.scope.cancel_called:
            opening = self._openings[ref.info_hash] = Opening(ref, self.is_found)
            self._tasks.start(self._run, opening)
        opening.learn(self.mirrors(sources), sources)
        opening.expected_until = max(opening.expected_until, now + keep_s)
        opening.settle(now)
        return opening

    async def opened(self, ref: TorrentRef, sources: Sources) -> Torrent:
        """Return a torrent once it is open.

        Raises:
            FormatError: what is signed and what is there do not fit together.
            CacheError: the disk refuses.
        """
        while (opening := self.open(ref, sources, 0.0)) is not None:
            opening.readers += 1
            opening.settle(trio.current_time())
            try:
                await opening.done.wait()
            finally:
                opening.readers -= 1
                opening.settle(trio.current_time())
            if opening.error is not None:
                raise type(opening.error)(str(opening.error))
        return self._torrents[ref.info_hash]

    def renew(self, torrent: Torrent, lost: Sequence[PieceIndex]) -> None:
        """Tell the swarm which pieces are gone. It forgets its connections: peers get a new grace."""
        for piece in lost:
            torrent.injected.pop(piece, None)
        self._give_grace(torrent)
        self._swarm.drop(torrent.metainfo.info_hash, lost)

    def repair(self, torrent: Torrent) -> None:
        """Tell the swarm which pieces turned out bad."""
        lost, torrent.held.lost = torrent.held.lost, []
        self.renew(torrent, lost)

    def reveal(self, torrent: Torrent) -> None:
        """Have the swarm seed all that is here and was found right; as `renew` if that is news to it."""
        if self._swarm.reveal(torrent.metainfo.info_hash, torrent.held.checked()):
            self._give_grace(torrent)

    def keep_metainfo(self) -> None:
        """Keep what the disk did not take when it was fetched, or lost."""
        for info_hash, torrent in self._torrents.items():
            if not self._store.has_metainfo(info_hash):
                self._store.keep_metainfo(torrent.metainfo)

    def look_around(self) -> bool:
        """Ask which pieces neighbours have (`Torrent.copies`); return whether there are any neighbours."""
        connected = [info_hash for info_hash, torrent in self._torrents.items() if torrent.connected]
        for info_hash in connected:
            self._swarm.look(info_hash)
        return bool(connected)

    def rare_pieces(self, held: Held) -> set[PieceIndex]:
        """Return the pieces on disk that no neighbour has, as far as is known what neighbours have."""
        torrent = self._torrents.get(held.ref.info_hash)
        if torrent is None or trio.current_time() - torrent.copies_at > COPIES_KNOWN_S:
            return set()
        copies = torrent.copies
        return {PieceIndex(p) for p, count in enumerate(copies) if not count and held.states[p] in ON_DISK}

    def release(self, info_hash: InfoHash) -> bool:
        """Take a torrent out if nobody uses it; tell whether it is out."""
        torrent = self._torrents.get(info_hash)
        if torrent is None:
            return info_hash not in self._openings
        if info_hash in self._needed or torrent.flights or torrent.injected:
            return False
        del self._torrents[info_hash]
        self._swarm.remove(info_hash)
        return True

    def wake(self) -> None:
        """Have all who wait for a mirror's time, or for a place there, look again."""
        for torrent in self._torrents.values():
            torrent.wake.set()
        for opening in self._openings.values():
            opening.wake()

    @contextmanager
    def needing(self, wanted: Sequence[NotCached]) -> Iterator[None]:
        """Keep *wanted* from leaving, here already or not, until the end of the block."""
        for one in wanted:
            self._needed.setdefault(one.ref.info_hash, []).append(one)
        try:
            yield
        finally:
            for one in wanted:
                needed = self._needed[one.ref.info_hash]
                needed.remove(one)
                if not needed:
                    del self._needed[one.ref.info_hash]

    def needed_pieces(self, held: Held) -> set[PieceIndex]:
        """Return the pieces of a torrent that must not leave now."""
        needed = self._needed.get(held.ref.info_hash, ())
        return {piece for one in needed for piece in held.pieces(one.offset, one.length)}

    def left(self) -> None:
        """Take note that nothing is leaving any more."""
        self.leaving.clear()
        self._left.set()
        self._left = trio.Event()

    async def close(self) -> None:
        """Close the connections to mirrors."""
        for mirror in self._mirrors.values():
            await mirror.close()

    async def _run(self, opening: Opening) -> None:
        try:
            await opening.run(self._store, self._add)
        except Exception as error:  # our bug ends this attempt, not the node
            _LOG.exception("opening %s failed", opening.ref.info_hash.hex())
            opening.error = FetchError(f"internal error: {error!r}")
        finally:
            opening.done.set()
            if self._openings.get(opening.ref.info_hash) is opening:
                del self._openings[opening.ref.info_hash]

    async def _add(self, opening: Opening, metainfo: Metainfo) -> None:
        while metainfo.info_hash in self.leaving:
            await self._left.wait()
        held = self._store.add(opening.ref, metainfo.piece_length)
        torrent = Torrent(metainfo, held, readahead_pieces_max=self._settings.readahead_pieces_max)
        torrent.learn(opening.mirrors, opening.peers)
        torrent.upstream.update(opening.upstream)
        torrent.alone_since = trio.current_time()
        self._give_grace(torrent)
        held.lost.clear()
        self._swarm.add(metainfo, self._store.path(held.ref), held.checked(), tuple(torrent.peers))
        self._torrents[metainfo.info_hash] = torrent
        if opening.head and not held.states[FIRST]:
            torrent.injected[FIRST] = opening.head_within
            self._swarm.inject(metainfo.info_hash, FIRST, opening.head)

    def _learn(self, torrent: Torrent, sources: Sources) -> None:
        new_peers = torrent.learn(self.mirrors(sources), sources.peers)
        torrent.upstream.update(dict.fromkeys(sources.upstream))
        if new_peers:
            self._give_grace(torrent)
            self._swarm.connect(torrent.metainfo.info_hash, new_peers)

    def _mirror(self, base: str) -> Mirror:
        mirror = self._mirrors.get(base)
        if mirror is None:
            settings, within = self._settings, _base(base) in self._site_mirrors
            mirror = Mirror(
                base,
                requests_max=settings.mirror_requests_max,
                timeout_s=settings.mirror_timeout_s,
                within=within,
                rate=self._within if within else self._beyond,
                freed=self.wake,
            )
            self._mirrors[base] = mirror
        return mirror


def _base(url: str) -> str:
    return url.rstrip("/")
