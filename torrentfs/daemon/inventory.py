"""This module finds the torrents of a catalog on the publisher's disk. It blocks: call it in a thread."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torrentfs.errors import FormatError
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.metainfo import TORRENT_LENGTH_MAX, InfoHash, Metainfo, TorrentRef, parse

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """A torrent that is whole on disk."""

    ref: TorrentRef
    metainfo: Metainfo
    file: Path


@dataclass(slots=True)
class Inventory:
    """What lies in *public*; it remembers which packs a manifest names, for manifests never change."""

    public: Path
    _packs: dict[InfoHash, tuple[TorrentRef, ...]] = field(default_factory=dict)

    def refs(self, catalog: Catalog) -> dict[InfoHash, TorrentRef]:
        """Return the manifests and packs of all revisions, retired ones too; broken manifests are logged."""
        found: dict[InfoHash, TorrentRef] = {}
        for version in catalog.versions.values():
            for revision in version.revisions:
                for ref in (revision.ref, *self._packs_of(revision.ref)):
                    found[ref.info_hash] = ref
        return found

    def offers(self, refs: Iterable[TorrentRef]) -> list[Offer]:
        """Return those of *refs* whose metainfo and file are here and fit; others are logged and left out."""
        found = []
        for ref in refs:
            try:
                found.append(self._offer(ref))
            except (OSError, FormatError) as error:
                log.error("cannot seed %s %s: %s", ref.kind.value, ref.info_hash.hex(), error)
        return found

    def _packs_of(self, ref: TorrentRef) -> tuple[TorrentRef, ...]:
        packs = self._packs.get(ref.info_hash)
        if packs is None:
            try:
                with open_manifest(self.public, ref) as manifest:
                    packs = manifest.packs
            except (OSError, FormatError) as error:
                log.error("cannot read manifest %s: %s", ref.info_hash.hex(), error)
                return ()
            self._packs[ref.info_hash] = packs
        return packs

    def _offer(self, ref: TorrentRef) -> Offer:
        file = self.public / ref.kind.url_path(ref.info_hash)
        with (self.public / ref.kind.torrent_path(ref.info_hash)).open("rb") as torrent:
            metainfo = parse(torrent.read(TORRENT_LENGTH_MAX + 1), ref)
        length = file.stat().st_size
        if length != ref.length:
            raise FormatError(f"{file} has {length} bytes, not {ref.length}")
        return Offer(ref, metainfo, file)
