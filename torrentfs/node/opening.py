"""This module gets the metainfo of a torrent from the cache or a mirror: one attempt for all who wait.

A manifest's first piece, which opens it, is fetched beside its metainfo where no peer is known.

Bytes from a mirror are checked against the info-hash before anything else looks at them.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

import trio

from torrentfs.errors import CacheError, FormatError, TorrentfsError
from torrentfs.node.flights import Peer, Sources
from torrentfs.node.mirrors import Mirror, MirrorError
from torrentfs.node.store import Store
from torrentfs.repository.metainfo import (
    PIECE_LENGTH,
    TORRENT_LENGTH_MAX,
    InfoHash,
    Kind,
    Metainfo,
    PieceIndex,
    TorrentRef,
    parse,
)

_LOG = logging.getLogger(__name__)

FIRST = PieceIndex(0)
HEAD_PATIENCE_S = 0.5
"""How much later than its metainfo the first piece of a manifest may come before it is asked for as usual."""
NEXT_MIRROR_AFTER_S = 1.0
"""A mirror that has not sent a metainfo after so long gets company by the next one."""


class Opening:
    """A torrent whose metainfo is being fetched. It ends when nobody waits for it and `expected_until`
    has passed.
    """

    def __init__(self, ref: TorrentRef, is_found: bool) -> None:
        """*is_found*: neighbours may have it, though none is known yet."""
        self.ref = ref
        self._is_found = is_found
        self.readers = 0
        self.expected_until = float("-inf")
        self.mirrors: list[Mirror] = []
        self.peers: dict[Peer, None] = {}
        self.upstream: dict[Peer, None] = {}
        self.done = trio.Event()
        self.error: TorrentfsError | None = None
        self.scope = trio.CancelScope()
        self.head = b""
        """The first piece of a manifest, verified, if it came beside the metainfo."""
        self.head_within = False
        """Whether a mirror of the site sent that."""
        self._heading: trio.Event | None = None
        self._asking: set[Mirror] = set()
        self._company_at = float("-inf")
        """When those that are being asked get company by the next one."""
        self._metainfo: Metainfo | None = None
        self._changed = trio.Event()

    def learn(self, mirrors: Sequence[Mirror], sources: Sources) -> None:
        """Add sources, and the *mirrors* that they name."""
        self.mirrors += [mirror for mirror in mirrors if mirror not in self.mirrors]
        self.peers.update(dict.fromkeys(sources.peers))
        self.upstream.update(dict.fromkeys(sources.upstream))
        self._changed.set()

    def wake(self) -> None:
        """Look again which mirror may be asked."""
        self._changed.set()

    def settle(self, now: float) -> None:
        """Set the deadline after `readers` or `expected_until` has changed."""
        self.scope.deadline = float("inf") if self.readers else max(now, self.expected_until)

    async def run(self, store: Store, opened: Callable[["Opening", Metainfo], Awaitable[None]]) -> None:
        """Get the metainfo and hand it to *opened*, or set `error`. `done` is the caller's to set."""
        try:
            with self.scope:
                metainfo = await kept_metainfo(store, self.ref.info_hash) or await self._remote(store)
                _check(metainfo, self.ref)
                # A thread's result comes even to who is cancelled, and the swarm may have closed meanwhile.
                await trio.lowlevel.checkpoint_if_cancelled()
                await opened(self, metainfo)
        except (CacheError, FormatError) as error:
            self.error = error

    async def _remote(self, store: Store) -> Metainfo:
        async with trio.open_nursery() as nursery:
            while self._metainfo is None:
                self._changed = trio.Event()
                with trio.move_on_after(self._ask_next(nursery)):
                    await self._changed.wait()
            if self._heading is not None:
                with trio.move_on_after(HEAD_PATIENCE_S):
                    await self._heading.wait()
            nursery.cancel_scope.cancel()
        assert self._metainfo is not None
        if self.head and not await trio.to_thread.run_sync(self._metainfo.verify, FIRST, self.head):
            self.head = b""  # the next to ask for it finds out whose fault that is
        store.keep_metainfo(self._metainfo)
        return self._metainfo

    def _ask_next(self, nursery: trio.Nursery) -> float:
        """Ask the first mirror that is free to be asked; return after how many seconds to look again."""
        now = trio.current_time()
        if self._asking and now < self._company_at:
            return self._company_at - now
        free = [mirror for mirror in self.mirrors if mirror not in self._asking]
        for mirror in free:
            if mirror.ready_at(self.ref.info_hash) <= now:
                self._asking.add(mirror)
                self._company_at = now + NEXT_MIRROR_AFTER_S
                nursery.start_soon(self._ask, mirror, now)
                # Where peers may be they come first; else this saves the first touch a round trip.
                is_ours = mirror.within or not (self.peers or self._is_found)
                if self.ref.kind is Kind.MANIFEST and is_ours and self._heading is None:
                    self._heading = trio.Event()
                    nursery.start_soon(self._fetch_head, mirror, self._heading)
                return NEXT_MIRROR_AFTER_S
        return min((mirror.ready_at(self.ref.info_hash) - now for mirror in free), default=float("inf"))

    async def _ask(self, mirror: Mirror, asked_at: float) -> None:
        try:
            self._metainfo = await fetch_metainfo(mirror, self.ref.info_hash, self.ref.kind)
            mirror.succeeded(self.ref.info_hash)
        except MirrorError as error:
            mirror.failed(error, self.ref.info_hash, asked_at)
            self._company_at = asked_at
        finally:
            self._asking.discard(mirror)
            self._changed.set()

    async def _fetch_head(self, mirror: Mirror, done: trio.Event) -> None:
        path, length = self.ref.kind.url_path(self.ref.info_hash), min(self.ref.length, PIECE_LENGTH)
        head = bytearray()
        mirror.begin()
        try:
            async with aclosing(mirror.ranges(path, 0, length, self.ref.length)) as chunks:
                async for chunk in chunks:
                    head += chunk
            self.head, self.head_within = bytes(head), mirror.within
        except MirrorError as error:  # no harm yet: whoever reads asks for it again
            _LOG.info("no first piece beside the metainfo: %s", error)
        finally:
            mirror.end()
            done.set()


async def kept_metainfo(store: Store, info_hash: InfoHash) -> Metainfo | None:
    """Return the metainfo that the cache keeps; one that is damaged counts for nothing.

    Raises:
        CacheError: the disk refuses.
    """
    torrent = store.metainfo(info_hash)
    if torrent is None:
        return None
    try:
        return await trio.to_thread.run_sync(parse, torrent, info_hash)
    except FormatError:
        return None


async def fetch_metainfo(mirror: Mirror, info_hash: InfoHash, kind: Kind) -> Metainfo:
    """Return the metainfo that *mirror* has of a torrent.

    Raises:
        MirrorError: it fails, or sends something else.
    """
    path = kind.torrent_path(info_hash)
    torrent = await mirror.whole(path, TORRENT_LENGTH_MAX)
    try:
        return await trio.to_thread.run_sync(parse, torrent, info_hash)
    except FormatError as error:
        raise MirrorError(f"{path}: {error}") from error


def _check(metainfo: Metainfo, ref: TorrentRef) -> None:
    """Refuse a torrent that is not what its signed parent says: no mirror's fault, and none can help.

    A pack that is called a manifest would be looked for, and kept, where no other reader finds it.
    """
    name = ref.info_hash.hex()[:16]
    if metainfo.length != ref.length:
        raise FormatError(
            f"{ref.kind.value} {name} has {metainfo.length} bytes, not {ref.length} as is signed"
        )
    if not metainfo.name.endswith(ref.kind.suffix):
        raise FormatError(f"{name} is called {metainfo.name}: no {ref.kind.value} as is signed")
