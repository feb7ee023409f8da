"""This module is what a mount's daemon answers to admins: it gathers the figures of its parts."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from torrentfs.daemon import holders, report
from torrentfs.daemon.currency import Currency, Show
from torrentfs.errors import FormatError
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.node import Node, View
from torrentfs.repository.catalog import Ordinal, Version
from torrentfs.repository.manifest import Manifest
from torrentfs.repository.metainfo import InfoHash, NotCached, TorrentRef


class Answers:
    """The words that `control` answers to, for one mount."""

    def __init__(
        self,
        identity: Mapping[str, Any],
        *,
        node: Node,
        view: View,
        filesystem: Filesystem,
        currency: Currency,
        show: Show,
        mountpoint: Path,
        device: str,
        server: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Answer from these parts; *show* makes a newer catalog visible, *server* tells of the processes.

        *device* is the mount's major:minor; empty if it is not known.
        """
        self._identity = identity
        self._node = node
        self._view = view
        self._filesystem = filesystem
        self._currency = currency
        self._show = show
        self._mountpoint = mountpoint
        self._device = device
        self._server = server
        self._packs: dict[Ordinal, Sequence[TorrentRef]] = {}

    def words(self) -> dict[str, Callable[[Any], Awaitable[Any]]]:
        """Return what may be asked."""
        return {"stats": self.stats, "list": self.list, "refresh": self.refresh}

    async def list(self, _: object = None) -> dict[str, Any]:
        """Return the catalog that is shown."""
        return report.listing(self._currency.catalog)

    async def refresh(self, _: object = None) -> dict[str, Any]:
        """Ask for a newer catalog now.

        Raises: TrustError, FetchError.
        """
        changed = await self._currency.check(self._show)
        return {"version": self._currency.catalog.version, "changed": changed}

    async def stats(self, _: object = None) -> dict[str, Any]:
        """Return what `torrentfs stats` prints."""
        node = await self._node.stats()
        reads = self._filesystem.stats()
        torrents = {
            torrent.info_hash: report.Torrent(torrent.cached, torrent.peers)
            for torrent in self._node.torrents()
        }
        catalog = self._currency.catalog
        packages = [
            report.package(version, torrents, self._packs_of(version, torrents))
            for _, version in sorted(catalog.versions.items())
        ]
        # A thread: with many processes /proc takes long to read.
        held = await trio.to_thread.run_sync(holders.hold, self._mountpoint, self._device)
        limits = self._filesystem.limits()
        identity = {
            **self._identity,
            "server": self._server(),
            "mounted": held.mounted,
            "held_by": held.held_by,
        }
        return report.stats(identity, catalog, self._currency.age_s, node, reads, limits, packages)

    def _packs_of(
        self, version: Version, torrents: Mapping[InfoHash, report.Torrent]
    ) -> Sequence[TorrentRef] | None:
        """Return what the manifest of *version* names, if it is here: nothing is fetched for a question."""
        revision = version.current
        known = self._packs.get(revision.ordinal)
        if known is None and revision.manifest in torrents:
            try:
                known = Manifest(
                    revision.ref, lambda offset, length: self._view.range(revision.ref, offset, length)
                ).packs
            except (NotCached, FormatError):
                return None
            self._packs[revision.ordinal] = known
        return known
