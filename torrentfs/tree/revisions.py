"""This module keeps the manifests of the revisions that jobs use, and what this node has promised of them.

An inode holds an ordinal. Which manifest that is, the catalog says, or, if it no longer does, the ledger: it
was written there before the first answer that showed the inode. An ordinal that neither knows is stale.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from torrentfs.errors import StaleInode
from torrentfs.repository.catalog import Revision
from torrentfs.repository.manifest import BlockCache, Manifest
from torrentfs.repository.metainfo import TorrentRef

MANIFESTS_MAX: Final = 64
"""Open manifests: each holds its index, 20 bytes for 64 KiB of entries, and its table of packs."""
EXPECTED_PACKS_MAX: Final = 8
"""Packs whose metainfo is fetched at the first read of a revision: more would delay that read."""


class Content(Protocol):
    """Verified bytes of torrents, by whatever means."""

    def range(self, ref: TorrentRef, offset: int, length: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            NotCached: they are not here yet.
        """

    def expect(self, refs: Sequence[TorrentRef]) -> None:
        """Prepare for these torrents, which will be read soon; return at once."""


class Ledger(Protocol):
    """What this node has answered with: ordinal → manifest, on disk."""

    def record(self, refs: Mapping[int, TorrentRef]) -> None:
        """Write down which manifests ordinals are, all at once; return when they would survive a crash."""

    def find(self, ordinal: int) -> TorrentRef | None:
        """Return what was written down last."""


class Revisions:
    """The manifests in use, by ordinal."""

    def __init__(self, content: Content, ledger: Ledger, blocks_max: int) -> None:
        self._content = content
        self._ledger = ledger
        self._blocks = BlockCache(blocks_max)
        self._known: Mapping[int, tuple[str, Revision]] = {}
        self._open: OrderedDict[int, Manifest] = OrderedDict()
        self._promised: dict[int, TorrentRef] = {}
        self._expected: set[int] = set()

    @property
    def blocks(self) -> tuple[int, int]:
        """How many decoded blocks are kept, and how many may be."""
        return len(self._blocks), self._blocks.blocks_max

    def swap(self, known: Mapping[int, tuple[str, Revision]]) -> None:
        """Take the revisions of a new catalog. Manifests that it replaced are opened anew when next used."""
        self._known = known
        for ordinal, manifest in list(self._open.items()):
            if ordinal in known and known[ordinal][1].manifest != manifest.ref.info_hash:
                del self._open[ordinal]
                self._expected.discard(ordinal)

    def promise(self, revisions: Iterable[Revision]) -> None:
        """Write down revisions that are about to be shown; in one go, for each waits for the disk."""
        refs: dict[int, TorrentRef] = {revision.ordinal: revision.ref for revision in revisions}
        news = {ordinal: ref for ordinal, ref in refs.items() if self._promised.get(ordinal) != ref}
        if news:
            self._ledger.record(news)
            self._promised.update(news)

    def manifest(self, ordinal: int) -> Manifest:
        """Return the manifest of a revision, opened or not.

        Raises:
            StaleInode: neither the catalog nor the ledger knows it.
        """
        manifest = self._open.get(ordinal)
        if manifest is None:
            return self._start(ordinal)
        self._open.move_to_end(ordinal)
        return manifest

    def prepare(self, ordinal: int, manifest: Manifest) -> None:
        """Have the packs of a revision prepared, side by side, at the first read of one of its files."""
        if ordinal not in self._expected:
            refs = manifest.packs
            self._expected.add(ordinal)
            self._content.expect(refs[:EXPECTED_PACKS_MAX])

    def _start(self, ordinal: int) -> Manifest:
        known = self._known.get(ordinal)
        ref = known[1].ref if known is not None else self._ledger.find(ordinal)
        if ref is None:
            raise StaleInode(f"revision with ordinal {ordinal} is unknown here")
        manifest = Manifest(ref, partial(self._content.range, ref), self._blocks)
        self._open[ordinal] = manifest
        if len(self._open) > MANIFESTS_MAX:
            dropped, _ = self._open.popitem(last=False)
            self._expected.discard(dropped)
        return manifest
