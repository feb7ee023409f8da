"""This module does what admins order of a mount's cache, by paths of the tree: list, pin, evict and more."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
import trio
from msgspec import Meta

from torrentfs.errors import ControlError, DeadlineError, FormatError, TorrentfsError
from torrentfs.node import Node, View
from torrentfs.repository.catalog import Catalog, Ordinal, Version
from torrentfs.repository.manifest import Manifest
from torrentfs.repository.metainfo import InfoHash, NotCached, TorrentRef

_LOG = logging.getLogger(__name__)

MANIFEST_DEADLINE_S = 30.0
"""How long the manifests of what was ordered may take to come, all together."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be done, with those versions whose paths match a shell pattern."""

    do: Literal["ls", "pin", "unpin", "evict", "prefetch", "verify", "repair"]
    patterns: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(max_length=1000)] = []


FOLLOW_AGAIN_S = 60.0
"""When to try again to pin a newer revision whose manifest did not come."""


class Caching:
    """The cache as the admin of one mount, or of a site's seeder, sees it."""

    def __init__(self, node: Node, view: View, catalog: Callable[[], Catalog]) -> None:
        """Work on *node*, whose part for the mount is *view*; *catalog* returns what is shown."""
        self._node = node
        self._view = view
        self._catalog = catalog
        self._known: dict[Ordinal, Sequence[TorrentRef]] = {}
        """What the manifests of revisions name, as far as they were read."""
        self._changed = trio.Event()

    def follow(self) -> None:
        """Take note that another catalog is shown: pins stand for the current revisions of their paths."""
        self._changed.set()

    async def keep_pins(self) -> None:
        """Have pins follow the catalog, until cancelled."""
        while True:
            self._changed = trio.Event()
            again_s = math.inf if await self._follow() else FOLLOW_AGAIN_S
            with trio.move_on_after(again_s):
                await self._changed.wait()

    async def _follow(self) -> bool:
        """Pin what paths stand for now, unpin what has left the catalog; tell whether all could be done."""
        catalog, is_done = self._catalog(), True
        prefix = self._label("")
        for label in [label for label in self._node.pins() if label.startswith(prefix)]:
            version = catalog.versions.get(label.removeprefix(prefix))
            try:
                if version is None:
                    _LOG.info("%s is pinned no longer: the catalog has it no more", label)
                    self._node.unpin(label)
                elif not self._node.is_pinned(version.current.manifest, label):
                    packs = await self._packs(version, must_have=True) or ()
                    self._node.pin(label, [version.current.manifest, *(ref.info_hash for ref in packs)])
            except TorrentfsError as error:
                _LOG.warning("the newer revision of %s is not pinned yet: %s", label, error)
                is_done = False
        return is_done

    async def order(self, given: object) -> list[dict[str, Any]]:
        """Do as ordered; return a record of each version that matched.

        Raises: ControlError: the order is none, nothing matches, it does not fit; CacheError; DeadlineError,
        FetchError: a manifest does not come.
        """
        try:
            order = msgspec.convert(given, Order)
        except msgspec.ValidationError as error:
            raise ControlError(f"this is no order for a cache: {error}") from None
        versions = self._matching(order)
        with trio.move_on_after(MANIFEST_DEADLINE_S) as scope:
            needs_all = order.do in {"pin", "prefetch"}
            packs = {version.path: await self._packs(version, must_have=needs_all) for version in versions}
        if scope.cancelled_caught:
            raise DeadlineError(f"no manifests within {MANIFEST_DEADLINE_S:.0f} s: nothing was done")
        refs = {one.path: [one.current.ref, *(packs[one.path] or ())] for one in versions}
        bad = await self._do(order.do, refs)
        here = self._node.holdings()
        return [self._record(version, packs[version.path], here, bad) for version in versions]

    async def _do(self, what: str, refs: Mapping[str, Sequence[TorrentRef]]) -> dict[InfoHash, int]:
        """Return how many pieces of each torrent were found damaged. Raises: ControlError, CacheError."""
        bad: dict[InfoHash, int] = {}
        every = {ref.info_hash: ref for needed in refs.values() for ref in needed}
        if what == "pin":
            for path, needed in refs.items():
                self._node.pin(self._label(path), [ref.info_hash for ref in needed])
            await self._node.sync()
        elif what == "unpin":
            for path in refs:
                self._node.unpin(self._label(path))
        elif what == "evict":
            await self._node.evict(every)
        elif what in {"verify", "repair"}:
            bad = await self._node.verify(every)
            for info_hash in [info_hash for info_hash, count in bad.items() if count and what == "repair"]:
                self._view.bring(every[info_hash])
        elif what == "prefetch":
            room = max(self._node.capacity(), 0)
            if (length := sum(ref.length for ref in every.values())) > room:
                raise ControlError(f"{length} bytes do not fit: there is room for {room:.0f}")
            for ref in every.values():
                self._view.bring(ref)
        return bad

    def _matching(self, order: Order) -> list[Version]:
        """Raises: ControlError: a pattern matches nothing."""
        versions = self._catalog().versions
        found: dict[str, Version] = {}
        for pattern in order.patterns or (["*"] if order.do == "ls" else []):
            matching = {path: one for path, one in versions.items() if fnmatchcase(path, pattern.strip("/"))}
            if not matching and order.patterns:
                raise ControlError(f"nothing here matches {pattern!r}; `torrentfs list` shows what there is")
            found |= matching
        if not found and order.do != "ls":
            raise ControlError("name the versions: paths, or shell patterns such as 'ROOT/*'")
        return [found[path] for path in sorted(found)]

    async def _packs(self, version: Version, *, must_have: bool) -> Sequence[TorrentRef] | None:
        """Return the packs that *version* uses; None if its manifest is not here and need not be."""
        revision = version.current
        ref = revision.ref
        while (known := self._known.get(revision.ordinal)) is None:
            try:
                manifest = Manifest(ref, lambda offset, length: self._view.range(ref, offset, length))
                self._known[revision.ordinal] = manifest.packs
            except NotCached as missing:
                if not must_have:
                    return None
                await self._view.ensure(missing, trio.current_time() + MANIFEST_DEADLINE_S)
            except FormatError as error:
                raise ControlError(f"{version.path}: {error}") from None
        return known

    def _record(
        self,
        version: Version,
        packs: Sequence[TorrentRef] | None,
        here: Mapping[InfoHash, int],
        bad: Mapping[InfoHash, int],
    ) -> dict[str, Any]:
        """Return how it stands; *here* are bytes, *bad* damaged pieces by torrent."""
        refs = [version.current.ref, *(packs or ())]
        return {
            "path": version.path,
            "revision": version.current.number,
            "size": version.current.size if packs is None else sum(ref.length for ref in refs),
            "cached": sum(here.get(ref.info_hash, 0) for ref in refs),
            "complete": packs is not None and all(here.get(ref.info_hash, 0) == ref.length for ref in refs),
            "pinned": self._label(version.path) in self._node.pins(),
            "damaged": sum(bad.get(ref.info_hash, 0) for ref in refs),
            "coming": any(self._view.is_coming(ref) for ref in refs),
        }

    def _label(self, path: str) -> str:
        return f"{self._catalog().name}:{path}"
