"""This module is the pull-through seeder of a site or region: a node without a mount, with a web site.

It holds what its neighbours asked for, in a cache as any node's, and seeds that; what it lacks it fetches
once, whoever asks. Tiers chain: its upstream may be another of its kind.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import msgspec
import trio

from torrentfs import __version__
from torrentfs.config import MountConfiguration, NodeSettings, format_address
from torrentfs.daemon import claims, control, report
from torrentfs.daemon.caching import Caching
from torrentfs.daemon.currency import Currency
from torrentfs.daemon.lifetime import end_on_signal, first_of
from torrentfs.daemon.limits import with_room
from torrentfs.daemon.request import Request
from torrentfs.daemon.serving import make_directory, origin_of, running_node
from torrentfs.daemon.shelf import Shelf
from torrentfs.daemon.sources import sources
from torrentfs.daemon.tracking import reached, tracked
from torrentfs.errors import CacheError
from torrentfs.http import PublicFiles, Pull, Tracker, application, bind, serve
from torrentfs.node import Node, View
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.metainfo import InfoHash
from torrentfs.repository.page import render

log = logging.getLogger(__name__)

PATIENCE = 0.8
"""How much of the time that a node bears with a silent mirror we take to answer it that we have nothing."""


def run(request: Request, ready: Callable[["Box"], None]) -> None:
    """Be the pull-through seeder of *request*'s cache until SIGTERM or SIGINT; call *ready* once it answers.

    Raises: CacheError: the cache cannot be used, or is by another daemon; TrustError, FetchError: no catalog
    was ever known here, and none can be had; ListenError, UsageError, ControlError.
    """

    async def main(listener: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_on_signal, nursery.cancel_scope)
            box = await nursery.start(pull, request)
            nursery.start_soon(control.serve, listener, box.words())
            ready(box)

    make_directory(request.cache)
    with claims.claim(request.cache, claims.is_used_already) as listener:
        try:
            trio.run(main, listener)
        except Exception as failure:
            raise first_of(failure) from None


async def pull(request: Request, *, task_status: trio.TaskStatus["Box"] = trio.TASK_STATUS_IGNORED) -> None:
    """Be the pull-through seeder of *request*'s cache until cancelled; started once it answers.

    Raises: as `run`.
    """
    settings, site = request.configuration.seed, request.configuration.node.site
    networks = tracked(settings.tracker, settings.http, site.networks)
    web = bind(settings.http) if settings.http else None
    currency = Currency(origin_of(request), request.configuration.mount, trio.Lock())
    async with running_node(_without_patience(request.configuration), request.cache) as (node, _):
        catalog = await currency.first()
        box = Box(request, node, node.view(sources(request.configuration, catalog)), currency)
        if networks:
            named = (request.configuration.node.swarm.listen,)
            box.tracker = Tracker(settings.tracker, networks, reached(named, node.listen))
        await box.show(catalog)
        async with trio.open_nursery() as nursery:
            if web is not None:
                box.http = await nursery.start(serve, application(box.site, box.tracker), web)
            nursery.start_soon(box.caching.keep_pins)
            task_status.started(box)
            await currency.keep(box.show)


class Box:
    """A cache that is filled as its neighbours ask."""

    def __init__(self, request: Request, node: Node, view: View, currency: Currency) -> None:
        self.http: tuple[str, int] | None = None
        """Where the web server listens."""
        self.tracker: Tracker | None = None
        self.listen = node.listen
        self._request = request
        self._node = node
        self._view = view
        self._currency = currency
        self.caching = Caching(node, view, lambda: currency.catalog)
        self._shelf = Shelf(origin_of(request).directory)
        self._shelf.public.mkdir(exist_ok=True)
        self._files = PublicFiles(self._shelf.public)
        patience_s = PATIENCE * request.configuration.node.mirror_timeout_s
        self.site = Pull(view, self._files, patience_s, self._found)

    @property
    def repository(self) -> str:
        return self._currency.catalog.name

    async def show(self, catalog: Catalog) -> None:
        """Serve what was verified last, *catalog* and all it was made from.

        Raises: CacheError.
        """
        # The origin's own page is not signed: this one is made of what is.
        await trio.to_thread.run_sync(lambda: self._shelf.fill(render(catalog, {}, time.time())))
        self._view.use(sources(self._request.configuration, catalog))
        self.caching.follow()
        if self.tracker is not None:
            held = {torrent.info_hash for torrent in self._node.torrents()}
            revisions = chain.from_iterable(version.revisions for version in catalog.versions.values())
            listed = {revision.manifest for revision in revisions}
            self.tracker.follow(held | listed, held)

    def words(self) -> control.Answers:
        """Return what may be asked."""
        return {
            "stats": self.stats,
            "refresh": self.refresh,
            "cache": self.caching.order,
            "mount": self._refuse_mount,
        }

    async def refresh(self, _: object = None) -> dict[str, Any]:
        """Ask for a newer catalog now.

        Raises: TrustError, FetchError.
        """
        changed = await self._currency.check(self.show)
        return {"version": self._currency.catalog.version, "changed": changed}

    async def stats(self, _: object = None) -> dict[str, Any]:
        """Return figures for admins; bytes are payload only.

        Raises: DeadlineError.
        """
        node, catalog = await self._node.stats(), self._currency.catalog
        common = report.of_node(node)
        return {
            "repository": catalog.name,
            "mountpoint": None,
            "directory": str(self._request.cache),
            "upstream": self._request.configuration.repository,
            "pid": os.getpid(),
            "torrentfs": __version__,
            "listen": format_address(*self.listen) if self.listen[1] else None,
            "http": format_address(*self.http) if self.http else None,
            "catalog": {
                "version": catalog.version,
                "age_s": round(self._currency.age_s, 3),
                "expires": catalog.expires,
            },
            **common,
            "bytes": {**common["bytes"], "served": self.site.bytes_sent + self._files.bytes_sent},
            "torrents": len(self._node.torrents()),
            "errors": node.cache_errors,
            "tracker": self.tracker.figures() if self.tracker else None,
        }

    async def _refuse_mount(self, _: object) -> None:
        """Say why nothing can be mounted with this cache. Raises: CacheError."""
        raise CacheError(
            f"the cache {self._request.cache} is a seeder's, process {os.getpid()}: end that, or give another"
        )

    def _found(self, info_hash: InfoHash) -> None:
        """Take note that a neighbour asked for a torrent: others will, and are to find each other."""
        if self.tracker is not None:
            self.tracker.learn(info_hash)


def _without_patience(configuration: MountConfiguration) -> NodeSettings:
    """Return the node's settings for one who leaves nothing to neighbours: they turn to it."""
    node = configuration.node
    return msgspec.structs.replace(node, neighbour_wait_s=0.0, swarm=with_room(node.swarm))
