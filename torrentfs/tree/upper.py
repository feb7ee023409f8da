"""This module turns a catalog into the directories above the packages, and compares two of them.

Nothing here needs more than the catalog.
`.revisions/PATH@N` reaches one revision by name; it is found by lookup and never listed.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from torrentfs.errors import FormatError
from torrentfs.repository.catalog import RESERVED, Catalog, Revision, Version
from torrentfs.tree import attributes
from torrentfs.tree.attributes import Attributes
from torrentfs.tree.inode import Inode, of_path

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Leaf:
    """A path of the catalog, as its current revision."""

    revision: Revision
    attributes: Attributes
    listed: bool = True


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name for a path: a symbolic link, relative so that it holds wherever the tree is mounted."""

    target: bytes
    attributes: Attributes
    listed: bool = True


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory above the packages; *children*, and the listed *names*, in the order of their bytes."""

    path: str
    children: dict[bytes, "Child"]
    names: tuple[bytes, ...]
    attributes: Attributes


Child: TypeAlias = Leaf | Alias | Directory


@dataclass(frozen=True, slots=True)
class Changes:
    """What the kernel must forget after a swap: names in directories, and what it knows of inodes."""

    entries: tuple[tuple[Inode, bytes], ...] = ()
    inodes: tuple[Inode, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries or self.inodes)


@dataclass(frozen=True, slots=True)
class Totals:
    """What `df` shows of a repository: bytes and entries of all that its paths show."""

    size: int = 0
    entries: int = 0


class Upper:
    """All names above the packages at one catalog."""

    def __init__(self, catalog: Catalog, now_s: float = 0.0, *, show_retired: bool = False) -> None:
        """Lay out *catalog* as it is at *now_s*, Unix time; with *show_retired* list what is retired until it
        is gone.

        Raises:
            FormatError: a path inside another, or two paths with the same inode.
        """
        self.catalog = catalog
        self.paths: dict[int, tuple[str, Revision]] = {}
        self.inodes: dict[Inode, Child] = {}
        self.reserved: dict[Inode, str] = {}
        shown = [version for version in catalog.versions.values() if not version.is_gone(now_s)]
        self.totals = _totals(shown)
        self.changes_at = min((one.retires for one in shown if one.state == "retired"), default=None)
        """When, by Unix time, this catalog is to be laid out anew, if ever: something will be gone."""
        root = _Draft("")
        self._reserve("")
        for version in catalog.versions.values():
            for revision in version.revisions:
                self.paths[revision.ordinal] = (version.path, revision)
            self._reserve(posixpath.dirname(version.path))
        for version in shown:
            listed = show_retired or version.state == "live"
            if version.in_place == "link":
                target = f"{RESERVED}/{version.path}@{version.current.number}"
                child: Leaf | Alias = self._alias(version.path, target, listed)
            else:
                child = Leaf(version.current, attributes.of_revision(version.current), listed)
            root.place(version.path, child, version.current.published)
        for path, target in catalog.aliases.items():
            root.place(path, self._alias(path, target), 0)
        self._register(root.path, root.finish(self._register))

    def revision(self, path: str) -> Revision | None:
        """Find what ``PATH@N`` names, retired or not."""
        path, at, number = path.rpartition("@")
        version = self.catalog.versions.get(path) if at else None
        if version is None or not number.isascii() or not number.isdigit() or number.startswith("0"):
            return None
        return next((found for found in version.revisions if str(found.number) == number), None)

    def _alias(self, path: str, target: str, listed: bool = True) -> Alias:
        text = posixpath.relpath("/" + target, "/" + posixpath.dirname(path)).encode()
        alias = Alias(text, attributes.of_alias(of_path(path), text, 0), listed)
        self._register(path, alias)
        return alias

    def _register(self, path: str, child: "Alias | Directory") -> None:
        if self.inodes.setdefault(child.attributes.inode, child) is not child:
            raise FormatError(f"catalog: {path!r} has the same inode as another path")

    def _reserve(self, directory: str) -> None:
        """Make `.revisions/DIRECTORY` and what leads there known."""
        path = f"{RESERVED}/{directory}" if directory else RESERVED
        while path and self.reserved.setdefault(of_path(path), path) == path and path != RESERVED:
            path = posixpath.dirname(path)


@dataclass(slots=True)
class _Draft:
    """A directory while its children are still being found."""

    path: str
    children: dict[bytes, "Leaf | Alias | _Draft"] = field(default_factory=dict)
    published: int = 0

    def place(self, path: str, child: Leaf | Alias, published: int) -> None:
        """Put *child* at *path*, which is relative to the root, making the directories on the way."""
        *parents, name = path.split("/")
        draft = self
        draft.published = max(draft.published, published)
        for parent in parents:
            below = draft.children.setdefault(parent.encode(), _Draft(posixpath.join(draft.path, parent)))
            if not isinstance(below, _Draft):
                raise FormatError(f"catalog: {path!r} lies inside another path")
            draft = below
            draft.published = max(draft.published, published)
        if draft.children.setdefault(name.encode(), child) is not child:
            raise FormatError(f"catalog: {path!r} lies over another path")

    def finish(self, register: Callable[[str, Directory], None]) -> Directory:
        """Sort the names and fix the attributes, now that all children are known."""
        children: dict[bytes, Child] = {}
        for name, child in sorted(self.children.items()):
            if isinstance(child, _Draft):
                directory = child.finish(register)
                register(child.path, directory)
                children[name] = directory
            else:
                children[name] = child
        shown = attributes.of_upper_directory(
            of_path(self.path), _subdirectories(children.values()), self.published * _NS
        )
        names = tuple(name for name, child in children.items() if _is_listed(child))
        return Directory(self.path, children, names, shown)


def changes(old: Upper, new: Upper) -> Changes:
    """Compare two catalogs' directories: which names and inodes a kernel that saw *old* must forget."""
    entries: list[tuple[Inode, bytes]] = []
    inodes: list[Inode] = []
    for inode in old.inodes.keys() | new.inodes.keys():
        before, after = old.inodes.get(inode), new.inodes.get(inode)
        names = list(_changed_names(_children(before), _children(after)))
        entries.extend((inode, name) for name in names)
        if names or _names(before) != _names(after) or _shown(before) != _shown(after):
            # The parent too: forgetting a name that has no dentry leaves a cached listing as it was.
            inodes.append(inode)
    entries.extend(_changed_reserved(old, new))
    return Changes(tuple(sorted(entries)), tuple(sorted(inodes)))


def _changed_reserved(old: Upper, new: Upper) -> Iterator[tuple[Inode, bytes]]:
    """Yield the names under `.revisions` that are there now and were not, or the other way round."""
    paths = {path for upper in (old, new) for path in upper.reserved.values()}
    changed = [path for path in paths if (of_path(path) in old.reserved) != (of_path(path) in new.reserved)]
    for ordinal in old.paths.keys() ^ new.paths.keys():
        path, revision = old.paths.get(ordinal) or new.paths[ordinal]
        changed.append(f"{RESERVED}/{path}@{revision.number}")
    for path in changed:
        yield of_path(posixpath.dirname(path)), posixpath.basename(path).encode()


def _shown(child: Child | None) -> tuple[Attributes, bytes] | None:
    return None if child is None else (child.attributes, child.target if isinstance(child, Alias) else b"")


def _changed_names(before: dict[bytes, Child], after: dict[bytes, Child]) -> Iterator[bytes]:
    """Yield names that lead elsewhere. Not those whose inode just looks different: a job may work in it, and
    would lose its working directory with the name.
    """
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old is None or new is None or _identity(old) != _identity(new):
            yield name


def _identity(child: Child) -> tuple[Inode, type[Child]]:
    return child.attributes.inode, type(child)


def _children(child: Child | None) -> dict[bytes, Child]:
    return child.children if isinstance(child, Directory) else {}


def _subdirectories(children: Iterable[Child]) -> int:
    """Count what carries a `..`: the link count of a directory is two more."""
    return sum(
        isinstance(child, Directory)
        or (isinstance(child, Leaf) and attributes.is_directory(child.attributes))
        for child in children
    )


def _totals(shown: Iterable[Version]) -> Totals:
    current = [version.current for version in shown]
    return Totals(sum(revision.size for revision in current), sum(revision.entries for revision in current))


def _is_listed(child: Child) -> bool:
    return bool(child.names) if isinstance(child, Directory) else child.listed


def _names(child: Child | None) -> tuple[bytes, ...]:
    return child.names if isinstance(child, Directory) else ()
