"""This module checks what earlier starts left in the cache before it is seeded; later, now and then, all.

What somebody reads is checked then (`Store.check`) and does not wait for this. A torrent that is opened
before it was checked has, for the swarm, only what was; the rest is added once nothing is under way.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

import trio

from torrentfs.config import NodeSettings
from torrentfs.errors import CacheError
from torrentfs.node.checksums import digests, right_pieces
from torrentfs.node.held import CLAIMED, MISSING, ON_DISK, Held
from torrentfs.node.opening import kept_metainfo
from torrentfs.node.rates import Rate
from torrentfs.node.store import Store
from torrentfs.node.torrents import Torrents
from torrentfs.repository.metainfo import InfoHash, Kind, PieceIndex, TorrentRef

_LOG = logging.getLogger(__name__)

BATCH_PIECES = 16
"""4 MiB: some ms of a thread."""
QUIET_LOOK_S = 0.5
"""How often to look whether a torrent in use may be taken up anew, which costs its connections."""
QUIET_LOOKS_MAX = 60
DAY_S = 86_400.0


class Checker:
    """The background check of one cache."""

    def __init__(
        self,
        settings: NodeSettings,
        store: Store,
        torrents: Torrents,
        seed: Callable[[TorrentRef], Awaitable[None]],
    ) -> None:
        """*seed* is to seed what the cache holds of a torrent."""
        self._scrub_s = settings.scrub_days * DAY_S
        self._rate = Rate(settings.check_rate)
        self._store = store
        self._torrents = torrents
        self._seed = seed
        self._healed = trio.Event()

    async def run(self) -> None:
        """Check what is claimed and seed it, and take in what the state does not know; then check everything
        whenever that is due, until cancelled.
        """
        await self._take_in()
        while True:
            with trio.move_on_after(self._scrub_s or math.inf):
                await self._healed.wait()
            if self._healed.is_set():
                self._healed = trio.Event()
                await self._take_in()
            else:
                await self._go_through(lambda state: state in ON_DISK)

    def begin_again(self) -> None:
        """Take in what there is now: the cache's place was lost, and is there again."""
        self._healed.set()

    async def verify(self, info_hashes: Collection[InfoHash]) -> dict[InfoHash, int]:
        """Check what the cache holds of torrents, at full speed; return how many pieces of each were bad.

        Raises: CacheError: the disk refuses.
        """
        bad = {}
        for held in self._store.all():
            if held.ref.info_hash in info_hashes and self._store.get(held.ref.info_hash) is held:
                pieces = [PieceIndex(piece) for piece, state in enumerate(held.states) if state in ON_DISK]
                bad[held.ref.info_hash] = await self._check(held, pieces, Rate(0))
        return bad

    async def _take_in(self) -> None:
        await self._go_through(lambda state: state == CLAIMED)
        for kind, info_hash in list(self._store.strays):
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._adopt(kind, info_hash)

    async def _go_through(self, is_due: Callable[[int], bool]) -> None:
        for held in _in_order(self._store.all()):
            # The last one may have ended because the node does: then nothing more can be started.
            await trio.lowlevel.checkpoint_if_cancelled()
            if not held.cached or self._store.get(held.ref.info_hash) is not held:
                continue
            try:
                pieces = [PieceIndex(piece) for piece, state in enumerate(held.states) if is_due(state)]
                await self._check(held, pieces, self._rate)
            except CacheError as error:
                _LOG.warning("%s is not seeded: %s", self._store.path(held.ref), error)
                continue
            if held.cached and self._store.get(held.ref.info_hash) is held:
                await self._reveal(held)

    async def _adopt(self, kind: Kind, info_hash: InfoHash) -> None:
        """Claim what is right of data that the state does not know."""
        try:
            metainfo = await kept_metainfo(self._store, info_hash)
            if metainfo is None:
                self._store.discard(kind, info_hash)
                return
            held = self._store.add(TorrentRef(info_hash, metainfo.length, kind), metainfo.piece_length)
            for start in range(0, held.piece_count, BATCH_PIECES):
                batch = [PieceIndex(p) for p in range(start, min(start + BATCH_PIECES, held.piece_count))]
                right = await trio.to_thread.run_sync(
                    right_pieces, self._store.path(held.ref), held, metainfo, batch
                )
                self._store.claim(held, [piece for piece in right if held.states[piece] == MISSING])
                await self._rate.take(sum(map(held.span, batch)))
        except CacheError as error:
            _LOG.warning("what the cache holds of %s is not used: %s", info_hash.hex(), error)
            return
        finally:
            self._store.strays.pop((kind, info_hash), None)
        if held.cached:
            _LOG.info("%d bytes of %s were found again", held.cached, info_hash.hex())
            await self._reveal(held)

    async def _check(self, held: Held, pieces: Sequence[PieceIndex], rate: Rate) -> int:
        """Believe or drop *pieces*; return how many were dropped."""
        bad = 0
        for start in range(0, len(pieces), BATCH_PIECES):
            batch = pieces[start : start + BATCH_PIECES]
            found = await trio.to_thread.run_sync(digests, self._store.path(held.ref), held, batch)
            bad += self._store.judge(held, zip(batch, found, strict=True))
            torrent = self._torrents.get(held.ref.info_hash)
            if held.lost and torrent is not None:
                self._torrents.repair(torrent)  # or peers are sent what is damaged
            await rate.take(sum(map(held.span, batch)))
        return bad

    async def _reveal(self, held: Held) -> None:
        """Have the swarm seed what was found right."""
        for _ in range(QUIET_LOOKS_MAX):
            torrent = self._torrents.get(held.ref.info_hash)
            if torrent is None:
                await self._seed(held.ref)
                return
            if not torrent.flights and not torrent.injected:
                self._torrents.reveal(torrent)
                return
            await trio.sleep(QUIET_LOOK_S)


def _in_order(held: Iterable[Held]) -> list[Held]:
    """Return manifests first, as every job begins with one; then what was used last."""
    return sorted(held, key=lambda one: (one.ref.kind is not Kind.MANIFEST, -one.used_s))
