"""This module is the daemon of one mount: it builds node, tree and FUSE session, and ends them.

What each part does is theirs; keeping the catalog current is in `currency`, answering admins in `answers`.
"""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from torrentfs import __version__
from torrentfs.config import MountConfiguration, NodeSettings, SwarmSettings, format_address, parse_address
from torrentfs.daemon import control
from torrentfs.daemon.answers import Answers
from torrentfs.daemon.currency import Currency, Origin, repository_directory
from torrentfs.daemon.ledger import FileLedger, open_ledger
from torrentfs.daemon.lifetime import end_on_signal, first_error
from torrentfs.daemon.logfile import start_log
from torrentfs.daemon.mountpoint import is_dead, is_mounted, unmount
from torrentfs.daemon.runtime import device_path
from torrentfs.daemon.settings import check_mountpoint
from torrentfs.errors import CacheError, ListenError, MountError, TorrentfsError
from torrentfs.fuse import pyfuse3_adapter
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.pyfuse3_adapter import Session
from torrentfs.node import Node, Sources
from torrentfs.repository.catalog import Catalog
from torrentfs.tree import Tree

log = logging.getLogger(__name__)

Ready = Callable[[str], None]
"""Is told that the tree answers, with what the admin should know nevertheless; usually nothing."""


@dataclass(frozen=True, slots=True)
class _Place:
    """What a daemon holds on this machine while it lives."""

    mountpoint: Path
    cache: Path
    origin: Origin
    ledger: FileLedger
    listener: socket.socket


def run(configuration: MountConfiguration, ready: Ready, *, foreground: bool) -> None:
    """Serve the mount of *configuration* until it is unmounted or gets SIGTERM; call *ready* once it is.

    Raises: MountError, CacheError, TrustError, FetchError, UsageError: it cannot be served; nothing is left
    behind.
    """
    mountpoint = Path(configuration.mountpoint)
    with ExitStack() as stack:
        listener = stack.enter_context(control.claim(mountpoint))
        _clear_dead_mount(mountpoint)
        check_mountpoint(mountpoint)
        cache = Path(configuration.cache)
        origin = _prepare(configuration, cache)
        start_log(cache, configuration.mount.log_bytes_max, foreground=foreground)
        ledger = stack.enter_context(open_ledger(origin.directory / "ledger"))
        place = _Place(mountpoint, cache, origin, ledger, listener)
        try:
            trio.run(_serve, configuration, place, ready)
        except* TorrentfsError as group:
            error = first_error(group)
            log.error("%s: %s", mountpoint, error)
            raise error from None
        log.info("%s: ended", mountpoint)


def _clear_dead_mount(mountpoint: Path) -> None:
    """Take away what a killed daemon left; the caller holds the claim, so none of ours serves it.

    Raises: MountError: another user's daemon does.
    """
    while is_mounted(mountpoint):
        if not is_dead(mountpoint):
            raise MountError(f"{mountpoint} is mounted already; umount {mountpoint} ends it")
        unmount(mountpoint, lazy=True)


def _prepare(configuration: MountConfiguration, cache: Path) -> Origin:
    """Make the cache's directories and return where this repository's catalog comes from and goes to.

    Raises: CacheError.
    """
    trust = Path(configuration.trust)
    try:
        directory = repository_directory(cache, trust)
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{error.filename}: {error.strerror}; name a directory by --cache") from None
    return Origin(configuration.repository.rstrip("/"), directory, trust)


async def _serve(configuration: MountConfiguration, place: _Place, ready: Ready) -> None:
    """Run every part of the daemon in one nursery."""
    settings = configuration.mount
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_on_signal, nursery.cancel_scope)
        node = await _start_node(nursery, configuration.node, place.cache)
        currency = Currency(place.origin, settings)
        catalog = await currency.first()
        view = node.view(_sources(configuration, catalog))
        tree = Tree(view, place.ledger, settings.owner, manifest_blocks_max=settings.manifest_blocks_max)
        filesystem = Filesystem(tree, view, settings)
        filesystem.swap(catalog)

        async def serve_fuse(task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED) -> None:
            await pyfuse3_adapter.serve(filesystem, place.mountpoint, settings, task_status=task_status)
            log.info("%s: unmounted", place.mountpoint)
            nursery.cancel_scope.cancel()

        async def show(newer: Catalog) -> None:
            changes = filesystem.swap(newer)
            view.use(_sources(configuration, newer))
            await session.forget(changes)

        session: Session = await nursery.start(serve_fuse)
        device_path(place.mountpoint).write_text(session.device)
        answers = Answers(
            _identity(place, node),
            node=node,
            view=view,
            filesystem=filesystem,
            currency=currency,
            show=show,
            mountpoint=place.mountpoint,
            device=session.device,
        )
        nursery.start_soon(control.serve, place.listener, answers.words())
        nursery.start_soon(currency.keep, show)
        log.info("%s: serving %s, catalog version %d", place.mountpoint, catalog.name, catalog.version)
        ready(currency.doubt)


def _identity(place: _Place, node: Node) -> dict[str, object]:
    """Return what `stats` says of this daemon that never changes."""
    return {
        "url": place.origin.url,
        "listen": format_address(*node.listen),
        "mountpoint": str(place.mountpoint),
        "cache": str(place.cache),
        "pid": os.getpid(),
        "torrentfs": __version__,
    }


def _sources(configuration: MountConfiguration, catalog: Catalog) -> Sources:
    """Return whom a view may ask: the configuration's mirrors and peers, and the catalog's seeders."""
    mirrors = (configuration.repository, *configuration.mirrors)
    peers = dict.fromkeys((*configuration.peers, *catalog.seeders))
    return Sources(tuple(url.rstrip("/") for url in mirrors), tuple(map(parse_address, peers)))


async def _start_node(nursery: trio.Nursery, settings: NodeSettings, cache: Path) -> Node:
    """Return the node, running in *nursery*, at any free port if the default one is taken.

    Nobody asked for that one: two mounts of one machine, or a mount beside a seeder, just work then.

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
