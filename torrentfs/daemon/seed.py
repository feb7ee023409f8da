"""This module is the origin of a repository: it seeds every torrent of its catalog and serves `public/`.

One nursery: the swarm, the web server, and a look at the repository once a second. Publishing goes on beside
it, in processes of its own.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from torrentfs import __version__
from torrentfs.config import (
    SeedSettings,
    SiteSettings,
    format_address,
)
from torrentfs.daemon import claims, control
from torrentfs.daemon.inventory import Inventory, Offer
from torrentfs.daemon.lifetime import end_on_signal, first_error
from torrentfs.daemon.limits import with_room
from torrentfs.daemon.mountpoint import resolve
from torrentfs.daemon.tracking import reached, tracked
from torrentfs.daemon.upkeep import Upkeep, advertised
from torrentfs.errors import RepositoryError, TorrentfsError
from torrentfs.http import PublicFiles, Tracker, application, bind, serve
from torrentfs.node.swarm import Swarm
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.metainfo import InfoHash, PieceIndex, TorrentRef
from torrentfs.repository.workshop import Repository

log = logging.getLogger(__name__)

OFFERS_AT_ONCE = 32
"""How many torrents are read from disk before they are added."""
COMMIT_PAUSE_S = 10.0
"""How long until a commit that was due and could not be made is tried again."""

Stamp = tuple[int, int, int]


def run(directory: Path, settings: SeedSettings, ready: Callable[["Origin"], None]) -> None:
    """Be the origin of *directory* until SIGTERM or SIGINT; call *ready* once everything is seeded.

    Raises: RepositoryError: there is none, or another process seeds it; ListenError, UsageError,
    ControlError.
    """

    async def main(listener: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_on_signal, nursery.cancel_scope)
            origin = await nursery.start(seed, directory, settings)
            nursery.start_soon(control.serve, listener, {"stats": origin.stats})
            ready(origin)

    with claims.claim(resolve(directory), _seeded) as listener:
        try:
            trio.run(main, listener)
        except* TorrentfsError as group:
            raise first_error(group) from None


def _seeded(directory: Path, pid: int) -> TorrentfsError:
    return RepositoryError(f"{directory} is seeded already, by process {pid}; end that one first")


async def seed(
    directory: Path,
    settings: SeedSettings,
    *,
    task_status: trio.TaskStatus["Origin"] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Be the origin of *directory* until cancelled; started once everything is seeded.

    Raises: RepositoryError, ListenError, UsageError.
    """
    networks = tracked(settings.tracker, settings.http, settings.networks)
    origin = Origin(Repository(directory), settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(origin.swarm.run)
        # Both addresses are ours before the catalog names one: what is signed cannot be taken back.
        web = bind(settings.http) if settings.http else None
        if networks:
            # What is advertised counts, if it is a number.
            named = (settings.advertise, settings.swarm.listen)
            origin.tracker = Tracker(settings.tracker, networks, reached(named, origin.swarm.listen))
        await origin.commit_due()
        await origin.look()
        if web is not None:
            # Last: who sees the web site finds the seeder complete.
            origin.http = await nursery.start(serve, application(origin.files, origin.tracker), web)
        task_status.started(origin)
        nursery.start_soon(origin.keep_committed)
        await origin.keep_looking()


class Origin:
    """A repository that is being seeded."""

    def __init__(self, repository: Repository, settings: SeedSettings) -> None:
        self.swarm = Swarm(with_room(settings.swarm), SiteSettings(), _Deaf())
        self.files = PublicFiles(repository.public)
        self.http: tuple[str, int] | None = None
        """Where the web server listens."""
        self.tracker: Tracker | None = None
        self.catalog: Catalog = repository.catalog()
        self._repository = repository
        self._settings = settings
        self._inventory = Inventory(repository.public)
        self._seeded: dict[InfoHash, TorrentRef] = {}
        self._broken = 0
        self._stamp: Stamp | None = None
        self._upkeep = Upkeep(repository)
        self._complaints: dict[str, str] = {}

    async def keep_looking(self) -> None:
        """Notice new revisions, until cancelled."""
        while True:
            await trio.sleep(self._settings.poll_interval_s)
            try:
                await self.look()
                self._complain("look", "")
            except RepositoryError as error:
                self._complain("look", str(error))

    async def look(self) -> None:
        """Seed what the catalog has now, if it is another than at the last look.

        Raises: RepositoryError: it cannot be read.
        """
        try:
            stamp = _stamp(self._repository.public / "metadata" / "timestamp.json")
        except OSError as error:
            raise RepositoryError(f"{error.filename}: {error.strerror}") from error
        if stamp == self._stamp:
            return
        self.catalog = await trio.to_thread.run_sync(self._repository.catalog)
        await self._seed_all()
        self._stamp = stamp

    async def keep_committed(self) -> None:
        """Commit what is due from time to time, until cancelled."""
        while True:
            await trio.sleep(COMMIT_PAUSE_S)
            await self.commit_due()

    async def commit_due(self) -> None:
        """Commit our address and fresh signatures if that is due and we may; else later."""
        address = advertised(self._settings, self.swarm.listen)
        if not self._upkeep.due(address, self.catalog.expires):
            return
        try:
            await trio.to_thread.run_sync(self._upkeep.work, address)
            self._complain("commit", "")
        except (OSError, TorrentfsError) as error:
            self._complain("commit", f"{error}; it will be tried again")

    async def stats(self, _: object = None) -> dict[str, Any]:
        """Return figures for admins; bytes are payload only.

        Raises: DeadlineError.
        """
        counters = await self.swarm.counters()
        return {
            "repository": self.catalog.name,
            "mountpoint": None,
            "directory": str(resolve(self._repository.directory)),
            "pid": os.getpid(),
            "torrentfs": __version__,
            "listen": format_address(*self.swarm.listen),
            "http": format_address(*self.http) if self.http else None,
            "catalog": {
                "version": self.catalog.version,
                "expires": self.catalog.expires,
            },
            "bytes": {
                "uploaded": counters.uploaded,
                "served": self.files.bytes_sent,
                "seeded": sum(ref.length for ref in self._seeded.values()),
            },
            "torrents": len(self._seeded),
            "errors": self._broken,
            "peers": counters.peers,
            "tracker": self.tracker.figures() if self.tracker else None,
        }

    def _complain(self, about: str, complaint: str) -> None:
        """Log a *complaint* once, not once a second."""
        if complaint and complaint != self._complaints.get(about):
            log.warning("%s", complaint)
        self._complaints[about] = complaint

    async def _seed_all(self) -> None:
        refs = await trio.to_thread.run_sync(self._inventory.refs, self.catalog)
        for info_hash in self._seeded.keys() - refs.keys():
            self.swarm.remove(info_hash)
            del self._seeded[info_hash]
        news = [ref for info_hash, ref in refs.items() if info_hash not in self._seeded]
        for start in range(0, len(news), OFFERS_AT_ONCE):
            batch = news[start : start + OFFERS_AT_ONCE]
            await self._add(await trio.to_thread.run_sync(self._inventory.offers, batch))
        self._broken = len(refs) - len(self._seeded)
        if self.tracker is not None:
            # What is broken here may be whole elsewhere.
            self.tracker.follow(refs, self._seeded)
        if news:
            log.info("catalog version %d: seeding %d torrents", self.catalog.version, len(self._seeded))

    async def _add(self, offers: Sequence[Offer]) -> None:
        for offer in offers:
            self.swarm.add(offer.metainfo, offer.file, None, seed=True)
            self._seeded[offer.ref.info_hash] = offer.ref
            # Others get their turn: an add takes 1–2 ms.
            await trio.lowlevel.checkpoint()


class _Deaf:
    """An origin asks for nothing, so what the swarm tells is no news."""

    def pieces_arrived(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None: ...

    def piece_failed(self, info_hash: InfoHash, piece: PieceIndex) -> None: ...

    def disk_failed(self, info_hash: InfoHash, reason: str) -> None: ...

    def peers_changed(self, info_hash: InfoHash, connected: int) -> None: ...

    def seen(self, info_hash: InfoHash, counts: Sequence[int]) -> None: ...


def _stamp(file: Path) -> Stamp:
    """Return what changes when *file* is replaced."""
    status = file.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size
