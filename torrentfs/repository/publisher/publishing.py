"""This module publishes sources as revisions, from reading their trees to the one commit.

What happens to contents is `publication`'s, signing and the commit are `workshop`'s.
"""

import posixpath
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from torrentfs.errors import PublishError, UsageError
from torrentfs.repository.catalog import Catalog, InPlace, Revision
from torrentfs.repository.cleaning import read_policy
from torrentfs.repository.curation import with_alias
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.metainfo import InfoHash, Kind, Metainfo, TorrentRef
from torrentfs.repository.paths import check_path
from torrentfs.repository.publisher.nodes import Node, walk
from torrentfs.repository.publisher.progress import Progress
from torrentfs.repository.publisher.publication import Publication
from torrentfs.repository.publisher.source import open_source
from torrentfs.repository.workshop import Repository

__all__ = ["Progress", "Published", "Wanted", "publish", "publish_all"]


@dataclass(frozen=True, slots=True)
class Published:
    """A revision that nodes can see now; *bytes_packed* are the lengths of its new packs."""

    path: str
    revision: int
    info_hash: InfoHash
    files: int
    bytes_in: int
    bytes_packed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be published: *source* as the next revision of *path*.

    *aliases* shall lead to it then, beside it, or with a slash anywhere; *requires* are the paths that it
    needs, *in_place* what a newer revision does to the path; None: as before.
    """

    source: Path
    path: str
    aliases: Sequence[str] = ()
    requires: Sequence[str] | None = None
    in_place: InPlace | None = None

    @property
    def full_aliases(self) -> list[str]:
        """The aliases from the root of the tree."""
        parent = posixpath.dirname(self.path)
        return [alias if "/" in alias else posixpath.join(parent, alias) for alias in self.aliases]


def publish(
    repository: Repository,
    source: Path,
    path: str,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Published:
    """Publish a directory, a single file or an archive as the next revision of *path*.

    Raises:
        UsageError: no package may live at *path*; *source* holds the repository, or lies in it; the policy
            cannot be read.
        PublishError: something in the source cannot be published, or changes meanwhile; it is named.
        RepositoryError: the repository cannot be used.
    """
    [published] = publish_all(repository, [Wanted(source, path)], progress=lambda _: progress)
    return published


def publish_all(
    repository: Repository,
    wanted: Sequence[Wanted],
    *,
    progress: Callable[[Wanted], Callable[[Progress], None] | None] = lambda _: None,
) -> list[Published]:
    """Publish everything in one commit: nodes see all of it, or nothing.

    *progress* gives what is told how far each is.

    Raises: as `publish`.
    """
    for one in wanted:
        check_path(one.path)
        _check_apart(repository, one.source)
    policy = read_policy(repository.directory)
    with repository.lock():
        repository.check_keys()
        repository.remove_litter()
        catalog, done = repository.catalog(), []
        links = {one.path for one in wanted if one.path not in catalog.versions and policy.is_link(one.path)}
        for one in wanted:
            catalog, published = _publish(repository, catalog, one, progress(one))
            done.append(published)
        for one in wanted:
            # Once all are there: they may name each other.
            catalog = _with_terms(catalog, one, is_link=one.path in links)
            for alias in one.full_aliases:
                catalog = with_alias(catalog, alias, one.path)
        repository.commit(catalog)
    return done


def _publish(
    repository: Repository, catalog: Catalog, wanted: Wanted, progress: Callable[[Progress], None] | None
) -> tuple[Catalog, Published]:
    """Do all but the commit; return the catalog with the revision in it."""
    start = time.monotonic()
    _check_room(catalog, wanted.path)
    tree = open_source(wanted.source)
    try:
        publication = Publication(repository, catalog, tree, wanted.path, progress)
        metainfo, entries = publication.run()
    except OSError as error:
        raise PublishError(f"{error.filename or repository.public}: {error.strerror or error}") from error
    finally:
        tree.close()
    revision = _revision(repository, catalog, wanted.path, tree.root, metainfo, entries)
    published = Published(
        path=wanted.path,
        revision=revision.number,
        info_hash=metainfo.info_hash,
        files=publication.files,
        bytes_in=publication.bytes_in,
        bytes_packed=publication.bytes_packed,
        seconds=time.monotonic() - start,
    )
    return catalog.with_revision(wanted.path, revision), published


def _with_terms(catalog: Catalog, wanted: Wanted, *, is_link: bool) -> Catalog:
    """Raises: UsageError: what is required is not there."""
    version = catalog.versions[wanted.path]
    if wanted.requires is not None:
        for path in wanted.requires:
            if path not in catalog.versions and path not in catalog.aliases:
                raise UsageError(f"{wanted.path} requires {path}, and nothing is published as that")
        version = msgspec.structs.replace(version, requires=tuple(wanted.requires))
    in_place = wanted.in_place or ("link" if is_link else version.in_place)
    version = msgspec.structs.replace(version, in_place=in_place)
    return msgspec.structs.replace(catalog, versions={**catalog.versions, wanted.path: version})


def _check_apart(repository: Repository, source: Path) -> None:
    """Refuse a source with the repository in it: it would publish the keys."""
    ours, theirs = repository.directory.resolve(), source.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise UsageError(f"{source} and the repository {repository.directory} lie inside one another")


def _check_room(catalog: Catalog, path: str) -> None:
    """Refuse a path that lies inside another before hours are spent on packing."""
    probe = Revision(1, catalog.next_ordinal(), InfoHash(bytes(32)), 1, 0, 0, 0, 1, 1, 0)
    catalog.with_revision(path, probe)


def _revision(
    repository: Repository, catalog: Catalog, path: str, root: Node, metainfo: Metainfo, entries: int
) -> Revision:
    children = root.children
    leaders = [node for _, node in walk(root) if node.is_file and node.leader is None]
    ref = TorrentRef(metainfo.info_hash, metainfo.length, Kind.MANIFEST)
    with open_manifest(repository.public, ref) as manifest:
        hole_length = manifest.entry(0).hole_length
    return Revision(
        number=catalog.next_number(path),
        ordinal=catalog.next_ordinal(),
        manifest=metainfo.info_hash,
        length=metainfo.length,
        mode=root.mode,
        mtime_ns=root.mtime_ns,
        size=root.size if children is None else sum(node.size for node in leaders),
        entries=entries,
        nlink=root.nlink if children is None else 2 + sum(child.is_directory for child in children),
        published=int(time.time()),
        hole_length=hole_length,
    )
