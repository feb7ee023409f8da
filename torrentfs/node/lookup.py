"""This module finds the metainfo of a torrent of which only the info-hash is known, as neighbours ask for it.

The info-hash vouches for what is found, so nobody who asks need be trusted, and no mirror. All who ask for
one torrent at a time share one search; what no mirror has is not searched for again at once.
"""

import logging
from collections import OrderedDict

import trio

from torrentfs.errors import CacheError, FetchError, TorrentfsError
from torrentfs.node.flights import Sources
from torrentfs.node.mirrors import MirrorError
from torrentfs.node.opening import fetch_metainfo, kept_metainfo
from torrentfs.node.store import Store
from torrentfs.node.tasks import Tasks
from torrentfs.node.torrents import Torrents
from torrentfs.repository.metainfo import InfoHash, Kind, Metainfo

SEARCHES_MAX = 64
"""Torrents that are searched for at a time."""
ABSENT_MAX = 4096
ABSENT_S = 10.0
"""How many torrents that no mirror has are remembered, and for how long."""

Wanted = tuple[Kind, InfoHash]
"""Mirrors keep kinds apart: one that lacks a pack may have a manifest of that name."""

_LOG = logging.getLogger(__name__)


class _Search:
    """A search that is under way, or was."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.found: Metainfo | None = None
        self.error: TorrentfsError | None = None


class Lookup:
    """Metainfo by info-hash, from the cache or a mirror."""

    def __init__(self, store: Store, torrents: Torrents, tasks: Tasks) -> None:
        self._store = store
        self._torrents = torrents
        self._tasks = tasks
        self._searches: dict[Wanted, _Search] = {}
        self._absent: OrderedDict[Wanted, float] = OrderedDict()

    async def find(self, info_hash: InfoHash, kind: Kind, sources: Sources) -> Metainfo | None:
        """Return the metainfo; None: nobody has such a torrent. The caller bounds how long it waits.

        Raises:
            FetchError: a mirror that may have it cannot be asked.
            CacheError: the disk refuses.
        """
        torrent = self._torrents.get(info_hash)
        if torrent is not None:
            return torrent.metainfo
        wanted = (kind, info_hash)
        if self._absent.get(wanted, float("-inf")) > trio.current_time():
            return None
        search = self._searches.get(wanted)
        if search is None:
            if len(self._searches) >= SEARCHES_MAX:
                raise FetchError(f"{SEARCHES_MAX} torrents are searched for already")
            search = self._searches[wanted] = _Search()
            # A task of its own: whoever asked first may go, and others wait for it too.
            self._tasks.start(self._run, search, wanted, sources)
        await search.done.wait()
        if search.error is not None:
            raise type(search.error)(str(search.error))
        return search.found

    async def _run(self, search: _Search, wanted: Wanted, sources: Sources) -> None:
        _, info_hash = wanted
        try:
            kept = await kept_metainfo(self._store, info_hash)
            search.found = kept or await self._remote(wanted, sources)
        except (CacheError, FetchError) as error:
            search.error = error
        except Exception as error:  # our bug fails this search, and none that comes later
            _LOG.exception("looking for %s failed", info_hash.hex())
            search.error = FetchError(f"internal error: {error!r}")
        finally:
            del self._searches[wanted]
            search.done.set()

    async def _remote(self, wanted: Wanted, sources: Sources) -> Metainfo | None:
        """Ask one mirror after the other; keep what is found, and that nothing is.

        Raises: FetchError, CacheError.
        """
        (kind, info_hash), doubts = wanted, []
        for mirror in self._torrents.mirrors(sources):
            asked_at = trio.current_time()
            if mirror.ready_at(info_hash) > asked_at:
                doubts.append(mirror.reason(info_hash))
                continue
            try:
                metainfo = await fetch_metainfo(mirror, info_hash, kind)
            except MirrorError as error:
                # Not that it lacks one: whoever asks for what is not there must not crowd out real reasons.
                if not error.absent:
                    mirror.failed(error, info_hash, asked_at)
                    doubts.append(mirror.reason(info_hash))
                continue
            self._store.keep_metainfo(metainfo)
            return metainfo
        if doubts:
            raise FetchError("; ".join(doubts))
        self._absent[wanted] = trio.current_time() + ABSENT_S
        self._absent.move_to_end(wanted)
        if len(self._absent) > ABSENT_MAX:
            self._absent.popitem(last=False)
        return None
