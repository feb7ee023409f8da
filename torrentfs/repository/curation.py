"""This module changes what a repository shows: earlier revisions again, aliases, retirement. Pure.

Nothing is packed or deleted here; what no catalog needs any more is `gc`'s.
"""

import posixpath
from collections.abc import Mapping
from itertools import chain

import msgspec

from torrentfs.errors import UsageError
from torrentfs.repository.catalog import Catalog, Version
from torrentfs.repository.paths import check_nesting, check_path

DAY_S = 86_400
ALIAS_HOPS_MAX = 8
"""Aliases of aliases; the kernel follows 40 links in all (path_resolution(7))."""


def reverted(catalog: Catalog, path: str, number: int, now_s: int) -> Catalog:
    """Return a catalog in which revision *number* of *path* is current again, as a new revision.

    Raises:
        UsageError: there is none such.
    """
    version = _version(catalog, path)
    old = next((revision for revision in version.revisions if revision.number == number), None)
    if old is None:
        there = ", ".join(str(revision.number) for revision in version.revisions[-20:])
        raise UsageError(f"{path} has no revision {number}; it has {there}")
    if old is version.current:
        raise UsageError(f"revision {number} of {path} is the current one already")
    new = msgspec.structs.replace(
        old, number=catalog.next_number(path), ordinal=catalog.next_ordinal(), published=now_s
    )
    return catalog.with_revision(path, new)


def with_alias(catalog: Catalog, name: str, target: str) -> Catalog:
    """Return a catalog in which *name* leads to *target*, both paths of the tree; *name* may be an alias
    already, which is moved.

    Raises:
        UsageError: *name* is in the way of a path or cannot be one, or nothing is at *target*.
    """
    check_path(name)
    check_path(target)
    if name in catalog.versions:
        raise UsageError(f"{name} is a path with revisions: an alias would hide it")
    changed = msgspec.structs.replace(catalog, aliases={**catalog.aliases, name: target})
    check_nesting(chain(changed.versions, changed.aliases))
    _check_target(changed, name, target)
    return changed


def without_alias(catalog: Catalog, name: str) -> Catalog:
    """Return a catalog without the alias *name*.

    Raises:
        UsageError: there is none, or others lead to it.
    """
    if name not in catalog.aliases:
        raise UsageError(f"there is no alias {name}; `torrentfs list` shows those that there are")
    left = {other: target for other, target in catalog.aliases.items() if other != name}
    for other, target in left.items():
        if target == name:
            raise UsageError(f"the alias {other} leads to {name}: move or remove that first")
    return msgspec.structs.replace(catalog, aliases=left)


def retired(catalog: Catalog, path: str, retires_s: int) -> Catalog:
    """Return a catalog in which *path* is not listed any more, and gone from *retires_s* on (seconds since
    1970).

    Raises:
        UsageError: there is no such path, or aliases lead to it.
    """
    version = _version(catalog, path)
    for name, target in sorted(catalog.aliases.items()):
        if target == path:
            raise UsageError(f"the alias {name} leads to {path}: move or remove it first")
    return _with(catalog, msgspec.structs.replace(version, state="retired", retires=retires_s))


def restored(catalog: Catalog, path: str) -> Catalog:
    """Return a catalog in which *path* is not retired.

    Raises:
        UsageError: there is no such path, or it is not retired.
    """
    version = _version(catalog, path)
    if version.state != "retired":
        raise UsageError(f"{path} is not retired")
    return _with(catalog, msgspec.structs.replace(version, state="live", retires=0))


def _version(catalog: Catalog, path: str) -> Version:
    version = catalog.versions.get(path)
    if version is None:
        raise UsageError(f"nothing is published as {path}; `torrentfs list` shows what is")
    return version


def _with(catalog: Catalog, version: Version) -> Catalog:
    return msgspec.structs.replace(catalog, versions={**catalog.versions, version.path: version})


def _check_target(catalog: Catalog, name: str, target: str) -> None:
    """Raises: UsageError: an alias would lead nowhere, or in a circle."""
    for _ in range(ALIAS_HOPS_MAX):
        if target not in catalog.aliases:
            break
        target = catalog.aliases[target]
    else:
        raise UsageError(
            f"the alias {name} would lead in a circle, or over more than {ALIAS_HOPS_MAX} others"
        )
    if target not in catalog.versions and not _is_above(catalog.versions, target):
        raise UsageError(f"nothing is at {target}: publish it first")


def _is_above(paths: Mapping[str, Version], directory: str) -> bool:
    """Tell whether *directory* is one above published paths."""
    prefix = posixpath.join(directory, "")
    return any(path.startswith(prefix) for path in paths)
