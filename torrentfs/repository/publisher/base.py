"""This module finds what large files have in common with an earlier revision, block by block.

A file that changed in part is fetched in part: blocks that are what they were at the same place are pointed
at in the packs that hold them. What moved within a file counts as new.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from torrentfs.errors import FormatError
from torrentfs.repository.catalog import Catalog, Revision
from torrentfs.repository.manifest import BlockCache, Manifest
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.manifest_format import HOLE, Entry, Extent
from torrentfs.repository.metainfo import InfoHash, Kind
from torrentfs.repository.pack import FRAME_LENGTH, decode_frame

_CACHED_BLOCKS = 16


def choose_base(catalog: Catalog, path: str) -> Revision | None:
    """Return the revision to compare with: that of *path*, else the latest of a version beside it."""
    version = catalog.versions.get(path)
    if version is not None:
        return version.current
    parent = path.rpartition("/")[0]
    beside = [one.current for name, one in catalog.versions.items() if name.rpartition("/")[0] == parent]
    return max(beside, key=lambda revision: revision.ordinal, default=None)


@contextlib.contextmanager
def open_base(
    public: Path, revision: Revision | None, identity: Callable[[InfoHash], int | None]
) -> Iterator["Base"]:
    """Open a revision to compare with; *identity* gives a pack's id in the index.

    One that cannot be read has nothing in common with anything.
    """
    with contextlib.ExitStack() as stack:
        manifest = None
        if revision is not None:
            with contextlib.suppress(OSError):
                manifest = stack.enter_context(
                    open_manifest(public, revision.ref, BlockCache(_CACHED_BLOCKS))
                )
        yield Base(public, manifest, identity, stack)


class Base:
    """An earlier revision."""

    def __init__(
        self,
        public: Path,
        manifest: Manifest | None,
        identity: Callable[[InfoHash], int | None],
        stack: contextlib.ExitStack,
    ) -> None:
        self._public = public
        self._manifest = manifest
        self._identity = identity
        self._stack = stack
        self._files: dict[int, int | None] = {}

    def has(self, path: bytes) -> bool:
        """Tell whether there is a file to compare with."""
        return self._entry(path) is not None

    def same_blocks(self, path: bytes, blocks: Iterator[bytes]) -> dict[int, Extent]:
        """Return where those of *blocks*, each of FRAME_LENGTH but for the last, lie that are the same
        there, by number; packs are ids of the index. All of *blocks* are taken.
        """
        old = self._extents(path)
        found = {}
        for number, block in enumerate(blocks):
            extent = old.get(number * FRAME_LENGTH)
            if extent is None or extent.length != len(block) or not self._is_same(extent, block):
                continue
            identity = self._pack_id(extent.pack)
            if identity is not None:
                found[number] = msgspec.structs.replace(extent, pack=identity)
        return found

    def _entry(self, path: bytes) -> Entry | None:
        if self._manifest is None:
            return None
        try:
            number, entry = 0, self._manifest.entry(0)
            for name in path.split(b"/") if path else ():
                found = self._manifest.lookup(number, name)
                if found is None:
                    return None
                number, entry = found
        except FormatError:
            return None
        return entry if stat.S_ISREG(entry.mode) and entry.size else None

    def _extents(self, path: bytes) -> dict[int, Extent]:
        entry = self._entry(path)
        if entry is None or self._manifest is None:
            return {}
        try:
            extents = self._manifest.extents(entry, 0, entry.size)
        except FormatError:
            return {}
        return {offset: extent for offset, extent in extents if extent.pack != HOLE}

    def _is_same(self, extent: Extent, block: bytes) -> bool:
        file = self._pack(extent.pack)
        if file is None:
            return False
        try:
            frame = decode_frame(os.pread(file, extent.stored, extent.offset))
        except (OSError, FormatError):
            return False
        return frame[extent.skip : extent.skip + extent.length] == block

    def _pack_id(self, number: int) -> int | None:
        assert self._manifest is not None, "it has extents"
        return self._identity(self._manifest.packs[number].info_hash)

    def _pack(self, number: int) -> int | None:
        """Return a descriptor of a pack's file, None of one that cannot be opened."""
        if number not in self._files:
            assert self._manifest is not None, "it has extents"
            path = self._public / Kind.PACK.url_path(self._manifest.packs[number].info_hash)
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._files[number] = None
            else:
                self._files[number] = file
                self._stack.callback(os.close, file)
        return self._files[number]
