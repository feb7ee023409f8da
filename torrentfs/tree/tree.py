"""This module answers what a filesystem is asked, from a catalog and manifests. It waits for nothing.

A method that looks inside a revision may raise `NotCached`, which says what is needed first, and FormatError.
"""

import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from torrentfs.errors import (
    FormatError,
    IsADirectory,
    NotADirectory,
    NotALink,
    StaleInode,
    TorrentfsError,
)
from torrentfs.repository.catalog import RESERVED, Catalog
from torrentfs.repository.manifest import Entry, Manifest
from torrentfs.repository.metainfo import NotCached
from torrentfs.tree import attributes
from torrentfs.tree.attributes import Attributes
from torrentfs.tree.inode import ENTRY_BITS, ENTRY_MASK, ROOT, UPPER_BIT, Inode, of_path
from torrentfs.tree.revisions import Content, Ledger, Revisions
from torrentfs.tree.slices import Slice, cut, whole
from torrentfs.tree.upper import Alias, Changes, Child, Directory, Leaf, Totals, Upper, changes
from torrentfs.tree.variants import resolve

_FORMAT: Final = 0o170000
_RESERVED_NAME: Final = RESERVED.encode()
_SHOWN_AT_ONCE: Final = 256
"""Names of a listing above the packages whose revisions are written down together: it takes 1 ms or more."""
_PATH_DEPTH_MAX: Final = 4096
"""Parents followed to name an inode in a log line; a hostile manifest could have a longer chain."""


class Tree:
    """One repository as a filesystem; *owner* is the (uid, gid) that everything shows."""

    def __init__(
        self,
        content: Content,
        ledger: Ledger,
        owner: tuple[int, int],
        *,
        manifest_blocks_max: int = 64,
        show_retired: bool = False,
        variables: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.owner = owner
        self._show_retired = show_retired
        self._variables = {name.encode(): value.encode() for name, value in (variables or {}).items()}
        self._clock = clock
        self._revisions = Revisions(content, ledger, manifest_blocks_max)
        self._upper = Upper(Catalog(name=""))

    @property
    def catalog(self) -> Catalog:
        """The catalog that is shown."""
        return self._upper.catalog

    @property
    def is_outdated(self) -> bool:
        """Tell whether something that the catalog retired has become gone since it was swapped in."""
        return self._upper.changes_at is not None and self._upper.changes_at <= self._clock()

    @property
    def manifest_blocks(self) -> tuple[int, int]:
        """How many decoded blocks of manifests are kept, and how many may be."""
        return self._revisions.blocks

    @property
    def totals(self) -> Totals:
        """The bytes and entries of all that paths show."""
        return self._upper.totals

    def swap(self, catalog: Catalog) -> Changes:
        """Show *catalog* from now on, in one step; return what the kernel must forget.

        Raises:
            FormatError: it cannot be shown; the old one still is.
        """
        upper = Upper(catalog, self._clock(), show_retired=self._show_retired)
        forgotten = changes(self._upper, upper)
        self._upper = upper
        self._revisions.swap(upper.paths)
        return forgotten

    def lookup(self, parent: Inode, name: bytes) -> Attributes | None:
        """Find a name in a directory; None if it is not there.

        Raises:
            NotADirectory, StaleInode: of *parent*.
        """
        if parent >= UPPER_BIT or parent == ROOT:
            return self._lookup_upper(parent, name)
        ordinal = parent >> ENTRY_BITS
        try:
            found = self._revisions.manifest(ordinal).lookup(parent & ENTRY_MASK, name)
        except IndexError:
            raise _stale(parent) from None
        return None if found is None else self._of_entry(ordinal, *found)

    def attributes(self, inode: Inode) -> Attributes:
        """Describe an inode.

        Raises:
            StaleInode: it is unknown here.
        """
        if inode >= UPPER_BIT or inode == ROOT:
            return self._upper_attributes(inode)
        ordinal, number = inode >> ENTRY_BITS, inode & ENTRY_MASK
        if not number and ordinal in self._upper.paths:
            return attributes.of_revision(self._upper.paths[ordinal][1])
        return self._of_entry(ordinal, number, self._entry(inode)[1])

    def is_fixed(self, inode: Inode) -> bool:
        """Tell whether what a directory holds, and what it does not, never changes."""
        return ROOT != inode < UPPER_BIT

    def readdir(self, inode: Inode, start: int = 0) -> Iterator[tuple[int, bytes, Attributes]]:
        """Iterate over a directory from position *start*: (position of the next, name, attributes).

        `NotCached` may come after some entries; go on from the last position.
        """
        if inode >= UPPER_BIT or inode == ROOT:
            return self._readdir_upper(inode, start)
        return self._readdir_entries(inode, start)

    def readlink(self, inode: Inode) -> bytes:
        """Return the target of a symbolic link.

        Raises:
            NotALink, StaleInode: of *inode*.
        """
        if inode >= UPPER_BIT or inode == ROOT:
            child = self._upper.inodes.get(inode)
            if not isinstance(child, Alias):
                raise NotALink(f"inode {inode}") if child else _stale(inode)
            return child.target
        entry = self._entry(inode)[1]
        if entry.mode & _FORMAT != stat.S_IFLNK:
            raise NotALink(f"inode {inode}")
        return resolve(entry.target, self._variables)

    def xattrs(self, inode: Inode) -> list[tuple[bytes, bytes]]:
        """Return the extended attributes, names with their namespace."""
        if inode >= UPPER_BIT or inode == ROOT:
            return []
        return self._entry(inode)[1].xattrs

    def plan(self, inode: Inode, offset: int, length: int) -> tuple[Slice, ...]:
        """Say which slices make up *length* bytes at *offset* of a file, less what lies after its end.

        Raises:
            IsADirectory, StaleInode: of *inode*.
        """
        if inode >= UPPER_BIT or inode == ROOT:
            raise IsADirectory(f"inode {inode}")
        manifest, entry = self._entry(inode)
        if entry.mode & _FORMAT != stat.S_IFREG:
            raise IsADirectory(f"inode {inode}")
        end = min(offset + length, entry.size)
        if offset >= end:
            return ()
        self._revisions.prepare(inode >> ENTRY_BITS, manifest)
        if offset == 0 and end == entry.size and len(entry.extents) == 1 and not entry.page_count:
            if entry.extents[0].length != end:
                raise FormatError(f"extent of {entry.extents[0].length} bytes for a file of {end}")
            return whole(entry, manifest.packs)
        return cut(manifest.extents(entry, offset, end - offset), manifest.packs, offset, end)

    def following(self, inode: Inode, size_max: int) -> Iterator[tuple[Inode, Slice]]:
        """Iterate over the files after *inode* in its directory that are one slice, *size_max* bytes at most.

        A walk reads them next. Nothing follows what lies above the packages.
        """
        if inode >= UPPER_BIT or inode == ROOT:
            return
        manifest, entry = self._entry(inode)
        ordinal, number = inode >> ENTRY_BITS, inode & ENTRY_MASK
        first = manifest.entry(entry.parent).first_child
        for sibling, child in manifest.children(entry.parent, number - first + 1):
            small = child.mode & _FORMAT == stat.S_IFREG and 0 < child.size <= size_max
            if small and len(child.extents) == 1 and child.extents[0].length == child.size:
                [wanted] = whole(child, manifest.packs)
                yield attributes.of_entry(ordinal, sibling, child).inode, wanted

    def path(self, inode: Inode) -> bytes:
        """Name an inode for people, relative to the root, as well as can be told without waiting."""
        if inode == ROOT:
            return b"/"
        if inode >= UPPER_BIT:
            return self._upper_path(inode)
        ordinal = inode >> ENTRY_BITS
        path, revision = self._upper.paths.get(ordinal, (f"ordinal {ordinal}", None))
        shown = f"{path}@{revision.number}" if revision else path
        try:
            return b"/".join((shown.encode(), *self._names(ordinal, inode & ENTRY_MASK)))
        except (NotCached, TorrentfsError, IndexError):
            # Also when the disk refuses: this names what failed because of it.
            return f"{shown} (entry {inode & ENTRY_MASK})".encode()

    def _entry(self, inode: Inode) -> tuple[Manifest, Entry]:
        manifest = self._revisions.manifest(inode >> ENTRY_BITS)
        try:
            return manifest, manifest.entry(inode & ENTRY_MASK)
        except IndexError:
            raise _stale(inode) from None

    def _readdir_entries(self, inode: Inode, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        manifest, entry = self._entry(inode)
        if entry.mode & _FORMAT != stat.S_IFDIR:
            raise NotADirectory(f"inode {inode}")
        ordinal, first = inode >> ENTRY_BITS, entry.first_child
        for number, child in manifest.children(inode & ENTRY_MASK, start):
            yield number - first + 1, child.name, self._of_entry(ordinal, number, child)

    def _of_entry(self, ordinal: int, number: int, entry: Entry) -> Attributes:
        if entry.target:
            entry = msgspec.structs.replace(entry, target=resolve(entry.target, self._variables))
        return attributes.of_entry(ordinal, number, entry)

    def _lookup_upper(self, parent: Inode, name: bytes) -> Attributes | None:
        reserved = self._upper.reserved.get(parent)
        if reserved is not None:
            return self._lookup_reserved(reserved, name)
        if parent == ROOT and name == _RESERVED_NAME:
            return self._upper_attributes(of_path(RESERVED))
        child = self._directory(parent).children.get(name)
        return None if child is None else self._show([child])[0]

    def _lookup_reserved(self, directory: str, name: bytes) -> Attributes | None:
        try:
            path = f"{directory}/{name.decode()}"
        except UnicodeDecodeError:
            return None
        revision = self._upper.revision(path.removeprefix(RESERVED + "/"))
        if revision is not None:
            self._revisions.promise([revision])
            return attributes.of_revision(revision)
        inode = of_path(path)
        return self._upper_attributes(inode) if inode in self._upper.reserved else None

    def _readdir_upper(self, inode: Inode, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        if inode in self._upper.reserved:
            return
        directory = self._directory(inode)
        for first in range(start, len(directory.names), _SHOWN_AT_ONCE):
            names = directory.names[first : first + _SHOWN_AT_ONCE]
            shown = self._show([directory.children[name] for name in names])
            yield from zip(range(first + 1, first + 1 + len(names)), names, shown, strict=True)

    def _show(self, children: Sequence[Child]) -> list[Attributes]:
        self._revisions.promise(child.revision for child in children if isinstance(child, Leaf))
        return [child.attributes for child in children]

    def _directory(self, inode: Inode) -> Directory:
        child = self._upper.inodes.get(inode)
        if isinstance(child, Directory):
            return child
        raise NotADirectory(f"inode {inode}") if child else _stale(inode)

    def _upper_attributes(self, inode: Inode) -> Attributes:
        child = self._upper.inodes.get(inode)
        if child is not None:
            return child.attributes
        if inode in self._upper.reserved:
            return attributes.of_upper_directory(inode, 0, 0)
        raise _stale(inode)

    def _upper_path(self, inode: Inode) -> bytes:
        child = self._upper.inodes.get(inode)
        if isinstance(child, Directory):
            return child.path.encode()
        return self._upper.reserved.get(inode, f"inode {inode}").encode()

    def _names(self, ordinal: int, number: int) -> list[bytes]:
        manifest = self._revisions.manifest(ordinal)
        names: list[bytes] = []
        while number and len(names) < _PATH_DEPTH_MAX:
            entry = manifest.entry(number)
            names.append(entry.name)
            number = entry.parent
        return names[::-1]


def _stale(inode: Inode) -> StaleInode:
    return StaleInode(f"inode {inode} is unknown here")
