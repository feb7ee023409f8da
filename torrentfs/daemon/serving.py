"""This module serves one mount: it builds catalog, tree and session on a node, and answers admins about it.

Who made the mount, and which process lives for how long, is its callers': `server` and `alone`.
"""

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from torrentfs import __version__
from torrentfs.config import NodeSettings, SwarmSettings, format_address, parse_address
from torrentfs.daemon import control, presence
from torrentfs.daemon.answers import Answers
from torrentfs.daemon.caching import Caching
from torrentfs.daemon.currency import Currency, Origin, Show
from torrentfs.daemon.ledger import FileLedger, open_ledger
from torrentfs.daemon.lifetime import first_error
from torrentfs.daemon.request import Request
from torrentfs.daemon.sources import mirror_urls, sources
from torrentfs.errors import CacheError, ListenError
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.node import Node
from torrentfs.repository.catalog import Catalog
from torrentfs.tree import Changes, Tree

RETIRE_INTERVAL_S = 10.0
"""How often to look whether something retired has become gone."""

log = logging.getLogger(__name__)


class Session(Protocol):
    """A mount that answers, whoever speaks with the kernel."""

    @property
    def device(self) -> str: ...

    @property
    def front(self) -> str: ...

    async def forget(self, changes: Changes) -> None: ...


class Front(Protocol):
    """Serves a filesystem until it is unmounted; started with its session."""

    async def __call__(self, filesystem: Filesystem, *, task_status: trio.TaskStatus[Session]) -> None: ...


@dataclass(slots=True)
class Repositories:
    """What a cache knows of repositories, for all mounts of one process."""

    _stack: ExitStack
    _open: dict[Path, tuple[FileLedger, trio.Lock]] = field(default_factory=dict)

    def find(self, request: Request) -> tuple[Origin, FileLedger, trio.Lock]:
        """Return where the repository of a mount comes from and goes to, its ledger, and whose turn it is.

        Raises: CacheError.
        """
        origin = origin_of(request)
        directory = origin.directory
        if directory not in self._open:
            self._open[directory] = self._stack.enter_context(open_ledger(directory / "ledger")), trio.Lock()
        return origin, *self._open[directory]


def origin_of(request: Request) -> Origin:
    """Return where the repository of *request* comes from and goes to: a directory that is there.

    Raises: CacheError.
    """
    configuration, directory = request.configuration, request.cache / "repositories" / request.repository
    make_directory(directory)
    url, mirrors = configuration.repository.rstrip("/"), mirror_urls(configuration)
    return Origin(url, directory, Path(configuration.trust), mirrors)


def make_directory(directory: Path) -> None:
    """Make a directory of the cache, if it is not there.

    Raises: CacheError.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{error.filename}: {error.strerror}; name a directory by --cache") from None


@asynccontextmanager
async def running_node(settings: NodeSettings, cache: Path) -> AsyncIterator[tuple[Node, Repositories]]:
    """Run a node on *cache* until the end of the block.

    Raises: ListenError, CacheError, in groups.
    """
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            yield await _start_node(nursery, settings, cache), Repositories(stack)
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class Place:
    """What one mount is served with."""

    request: Request
    node: Node
    repositories: Repositories
    listener: socket.socket
    """For questions about it."""
    server: Callable[[], Mapping[str, Any]]
    """Tells of the processes."""
    words: control.Answers = field(default_factory=dict)
    """What may be asked besides `stats`, `list` and `refresh`."""


async def serve(
    place: Place,
    front: Front,
    shown: Callable[[Catalog], None],
    catalog: Catalog | None = None,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until it is unmounted. Started once the tree answers, with what the admin should know.

    *shown* is told of each catalog once the kernel has forgotten what it changes; *catalog* is what a
    predecessor showed last.

    Raises: MountError, CacheError, TrustError, FetchError.
    """
    configuration, mountpoint = place.request.configuration, place.request.mountpoint
    settings = configuration.mount
    origin, ledger, one_at_a_time = place.repositories.find(place.request)
    currency = Currency(origin, settings, one_at_a_time)
    if catalog is None:
        catalog = await currency.first()
    else:
        currency.resume(catalog)
    view = place.node.view(sources(configuration, catalog))
    tree = Tree(
        view,
        ledger,
        settings.owner,
        manifest_blocks_max=settings.manifest_blocks_max,
        show_retired=settings.show_retired,
        variables=settings.variables,
    )
    filesystem = Filesystem(tree, view, settings)
    filesystem.swap(catalog)
    caching = Caching(place.node, view, lambda: tree.catalog)
    shown(catalog)

    async with trio.open_nursery() as nursery:

        async def serve_fuse(task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED) -> None:
            await front(filesystem, task_status=task_status)
            log.info("%s: unmounted", mountpoint)
            nursery.cancel_scope.cancel()

        async def show(newer: Catalog) -> None:
            changes = filesystem.swap(newer)
            view.use(sources(configuration, newer))
            await session.forget(changes)
            shown(newer)
            caching.follow()

        session: Session = await nursery.start(serve_fuse)
        presence.note(mountpoint, session.device, place.server()["keeper"])
        answers = Answers(
            _identity(place, origin, session),
            node=place.node,
            view=view,
            filesystem=filesystem,
            currency=currency,
            show=show,
            mountpoint=mountpoint,
            device=session.device,
            server=place.server,
        )
        words = {**answers.words(), "cache": caching.order, **place.words}
        nursery.start_soon(control.serve, place.listener, words)
        nursery.start_soon(caching.keep_pins)
        nursery.start_soon(_retire, tree, show)
        nursery.start_soon(currency.keep, show)
        log.info("%s: serving %s, catalog version %d", mountpoint, catalog.name, catalog.version)
        task_status.started(currency.doubt)


async def _retire(tree: Tree, show: Show) -> None:
    """Have what is retired go when its time has come, until cancelled."""
    while True:
        await trio.sleep(RETIRE_INTERVAL_S)
        if tree.is_outdated:
            await show(tree.catalog)


def _identity(place: Place, origin: Origin, session: Session) -> dict[str, object]:
    """Return what `stats` says of a mount that never changes while it is served."""
    return {
        "url": origin.url,
        # Nowhere, where there is no BitTorrent.
        "listen": format_address(*place.node.listen) if place.node.listen[1] else None,
        "mountpoint": str(place.request.mountpoint),
        "cache": str(place.request.cache),
        "pid": os.getpid(),
        "torrentfs": __version__,
        "fuse": session.front,
    }


async def _start_node(nursery: trio.Nursery, settings: NodeSettings, cache: Path) -> Node:
    """Return the node, running in *nursery*, at any free port if the default one is taken.

    Nobody asked for that one: two caches of one machine, or a mount beside a seeder, just work then.

    Raises: ListenError, in groups: an address that somebody asked for is taken.
    """
    node = Node(settings, cache)
    try:
        await nursery.start(node.run)
    except* ListenError as group:
        if settings.swarm.listen != SwarmSettings().listen:
            raise
        log.info("%s: peers reach this node at another port", first_error(group))
    else:
        return node
    host, _ = parse_address(settings.swarm.listen)
    swarm = msgspec.structs.replace(settings.swarm, listen=format_address(host, 0))
    node = Node(msgspec.structs.replace(settings, swarm=swarm), cache)
    await nursery.start(node.run)
    return node
