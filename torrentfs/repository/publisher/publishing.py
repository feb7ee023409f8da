"""This module publishes a source as a revision, from reading its tree to the commit.

What happens to contents is `publication`'s, signing and the commit are `workshop`'s.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torrentfs.errors import PublishError, UsageError
from torrentfs.repository.catalog import Catalog, Revision
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.metainfo import InfoHash, Kind, Metainfo, TorrentRef
from torrentfs.repository.paths import check_path
from torrentfs.repository.publisher.nodes import Node, walk
from torrentfs.repository.publisher.progress import Progress
from torrentfs.repository.publisher.publication import Publication
from torrentfs.repository.publisher.source import open_source
from torrentfs.repository.workshop import Repository

__all__ = ["Progress", "Published", "publish"]


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


def publish(
    repository: Repository,
    source: Path,
    path: str,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Published:
    """Publish a directory, a single file or an archive as the next revision of *path*.

    Raises:
        UsageError: no package may live at *path*; *source* holds the repository, or lies in it.
        PublishError: something in the source cannot be published, or changes meanwhile; it is named.
        RepositoryError: the repository cannot be used.
    """
    start = time.monotonic()
    check_path(path)
    _check_apart(repository, source)
    with repository.lock():
        repository.check_keys()
        repository.remove_litter()
        catalog = repository.catalog()
        _check_room(catalog, path)
        tree = open_source(source)
        try:
            publication = Publication(repository, catalog, tree, path, progress)
            metainfo, entries = publication.run()
        except OSError as error:
            raise PublishError(f"{error.filename or repository.public}: {error.strerror or error}") from error
        finally:
            tree.close()
        revision = _revision(repository, catalog, path, tree.root, metainfo, entries)
        repository.commit(catalog.with_revision(path, revision))
    return Published(
        path=path,
        revision=revision.number,
        info_hash=metainfo.info_hash,
        files=publication.files,
        bytes_in=publication.bytes_in,
        bytes_packed=publication.bytes_packed,
        seconds=time.monotonic() - start,
    )


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
