"""This module defines the catalog: which paths a repository has, their revisions, and the rules they keep.

How a publisher spreads it over signed files is in `shards`; who vouches for those, in `trust`. No I/O here.
"""

import stat
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Final, Literal, NewType, TypeAlias

import msgspec
import xxhash

from torrentfs.errors import FormatError, UsageError, VersionError
from torrentfs.repository.metainfo import InfoHash, Kind, TorrentRef
from torrentfs.repository.paths import RESERVED, check_nesting, check_path

__all__ = [
    "RESERVED",
    "Catalog",
    "InPlace",
    "Ordinal",
    "Revision",
    "State",
    "Version",
    "check",
    "check_path",
    "decode",
    "encode",
    "ordinal",
]

Ordinal = NewType("Ordinal", int)
"""A revision for all time: its namespace's number and a counter that never goes back; 38 bits."""

NAMESPACE_BITS: Final = 12
COUNTER_BITS: Final = 26
PATH_COUNT_MAX: Final = 1 << 20
REVISION_COUNT_MAX: Final = 4096
"""Revisions of one path."""
REQUIRES_COUNT_MAX: Final = 256
SEEDER_COUNT_MAX: Final = 256
ENTRY_COUNT_MAX: Final = (1 << 24) - 1
SNAPSHOT_LENGTH_MAX: Final = 1 << 30
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
State: TypeAlias = Literal["live", "retired"]
InPlace: TypeAlias = Literal["replace", "link"]
"""What a newer revision does to a path: it shows there, or a link leads to it."""

_MAGIC: Final = b"tfs-cat\x01"
_CHECKSUM_LENGTH: Final = 16


class Revision(msgspec.Struct, frozen=True):
    """One publication of a path, and all that a lookup of the path itself needs.

    *number* is the N of ``PATH@N``; *length* the manifest's in bytes; *size* a file's, or the sum of a
    directory's contents, in bytes; *entries* the manifest's; *published* in seconds since 1970; *hole_length*
    how much of a file's *size* is holes.
    """

    number: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    ordinal: Annotated[Ordinal, msgspec.Meta(ge=1, lt=1 << (NAMESPACE_BITS + COUNTER_BITS))]
    manifest: Annotated[InfoHash, msgspec.Meta(min_length=32, max_length=32)]
    length: Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]
    mode: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    size: Number
    entries: Annotated[int, msgspec.Meta(ge=1, le=ENTRY_COUNT_MAX)]
    nlink: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    published: Number
    hole_length: Number = 0

    @property
    def ref(self) -> TorrentRef:
        """The manifest's torrent."""
        return TorrentRef(self.manifest, self.length, Kind.MANIFEST)


class Version(msgspec.Struct, frozen=True):
    """A path with its revisions, oldest first, of which the last is what the path shows.

    A retired path is not listed, and gone from *retires* on (seconds since 1970); its revisions can still be
    reached under `RESERVED`. With *in_place* "link" the path shows as a symbolic link to the current one of
    those.
    """

    path: str
    revisions: Annotated[tuple[Revision, ...], msgspec.Meta(min_length=1, max_length=REVISION_COUNT_MAX)]
    state: State = "live"
    requires: Annotated[tuple[str, ...], msgspec.Meta(max_length=REQUIRES_COUNT_MAX)] = ()
    retires: Number = 0
    in_place: InPlace = "replace"

    def is_gone(self, now_s: float) -> bool:
        """Tell whether the path shows nothing any more."""
        return self.state == "retired" and self.retires <= now_s

    @property
    def current(self) -> Revision:
        """The revision that the path shows."""
        return self.revisions[-1]


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """A whole repository at one instant, as its signers describe it.

    *version* is that of the TUF timestamp, *expires* (seconds since 1970) the earliest end of what vouches
    for it. *aliases* maps a path to another path of the tree, both from its root. *counters* holds the last
    counter that each namespace has given to an ordinal.
    """

    name: str
    version: Number = 0
    expires: Number = 0
    seeders: tuple[str, ...] = ()
    versions: Mapping[str, Version] = {}
    aliases: Mapping[str, str] = {}
    counters: Mapping[int, int] = {}

    def next_number(self, path: str) -> int:
        """Return the N of the ``PATH@N`` that would be published next."""
        version = self.versions.get(path)
        return version.current.number + 1 if version else 1

    def next_ordinal(self, namespace: int = 0) -> Ordinal:
        """Return the ordinal of what a namespace would publish next.

        Raises:
            UsageError: the namespace has none left.
        """
        return ordinal(namespace, self.counters.get(namespace, 0) + 1)

    def with_revision(self, path: str, revision: Revision) -> "Catalog":
        """Return a catalog in which *path* shows *revision*; a retired path is live again.

        Raises:
            UsageError: *path* is not one, lies inside another or over one, or has all the revisions it can.
        """
        old = self.versions.get(check_path(path))
        if old and len(old.revisions) >= REVISION_COUNT_MAX:
            raise UsageError(f"path {path}: it has {REVISION_COUNT_MAX} revisions, and no more can be read")
        revisions = (*old.revisions, revision) if old else (revision,)
        version = (
            msgspec.structs.replace(old, revisions=revisions, state="live", retires=0)
            if old
            else Version(path, revisions)
        )
        namespace, counter = divmod(revision.ordinal, 1 << COUNTER_BITS)
        changed = msgspec.structs.replace(
            self,
            versions={**self.versions, path: version},
            counters={**self.counters, namespace: counter},
        )
        check_nesting(chain(changed.versions, changed.aliases))
        return changed


def ordinal(namespace: int, counter: int) -> Ordinal:
    """Join the number of a namespace and its counter, which starts at 1.

    Raises:
        UsageError: either is out of its range.
    """
    if not (0 <= namespace < 1 << NAMESPACE_BITS and 0 < counter < 1 << COUNTER_BITS):
        raise UsageError(
            f"namespace {namespace} has no ordinal {counter}: they end at {(1 << COUNTER_BITS) - 1}"
        )
    return Ordinal(namespace << COUNTER_BITS | counter)


def check(catalog: Catalog) -> Catalog:
    """Return *catalog* if it keeps every rule; values within a revision were checked as they were read.

    Raises:
        FormatError: it says which rule is broken.
    """
    if len(catalog.versions) + len(catalog.aliases) > PATH_COUNT_MAX:
        raise FormatError(f"catalog: more than {PATH_COUNT_MAX} paths")
    try:
        for path in chain(catalog.versions, catalog.aliases, catalog.aliases.values()):
            check_path(path)
        check_nesting(chain(catalog.versions, catalog.aliases))
    except UsageError as error:
        raise FormatError(f"catalog: {error}") from error
    for version in catalog.versions.values():
        _check_version(version, catalog.counters)
    ordinals = [revision.ordinal for version in catalog.versions.values() for revision in version.revisions]
    if len(set(ordinals)) != len(ordinals):
        raise FormatError("catalog: two revisions have the same ordinal")
    return catalog


def encode(catalog: Catalog) -> bytes:
    """Encode what a node keeps of a repository, so that it can be told from anything damaged."""
    body = msgspec.msgpack.encode(
        _Snapshot(
            name=catalog.name,
            version=catalog.version,
            expires=catalog.expires,
            seeders=catalog.seeders,
            versions=tuple(catalog.versions.values()),
            aliases=dict(catalog.aliases),
            counters=dict(catalog.counters),
        )
    )
    return _MAGIC + xxhash.xxh3_128_digest(body) + body


def decode(data: bytes) -> Catalog:
    """Read what `encode` wrote: bytes of this node's own disk, which were verified before they were written.

    Raises:
        FormatError: damaged.
        VersionError: written by a release whose format is another.
    """
    if not data.startswith(_MAGIC):
        raise VersionError("catalog: not a snapshot that this release can read")
    start = len(_MAGIC) + _CHECKSUM_LENGTH
    body = memoryview(data)[start:]
    if len(data) > SNAPSHOT_LENGTH_MAX or xxhash.xxh3_128_digest(body) != data[len(_MAGIC) : start]:
        raise FormatError("catalog: the snapshot is damaged")
    try:
        read = msgspec.msgpack.decode(body, type=_Snapshot)
    except msgspec.DecodeError as error:
        raise FormatError(f"catalog: {error}") from error
    return Catalog(
        name=read.name,
        version=read.version,
        expires=read.expires,
        seeders=read.seeders,
        versions={version.path: version for version in read.versions},
        aliases=read.aliases,
        counters=read.counters,
    )


class _Snapshot(msgspec.Struct, frozen=True):
    """A catalog on a node's disk: each path is written, and held in memory, once."""

    name: str
    version: int
    expires: int
    seeders: tuple[str, ...]
    versions: tuple[Version, ...]
    aliases: dict[str, str]
    counters: dict[int, int]


def _check_version(version: Version, counters: Mapping[int, int]) -> None:
    for path in version.requires:
        try:
            check_path(path)
        except UsageError as error:
            raise FormatError(f"catalog: {version.path} requires {error}") from error
    last_number, last_ordinal = 0, 0
    for revision in version.revisions:
        namespace, counter = divmod(revision.ordinal, 1 << COUNTER_BITS)
        if revision.number <= last_number or revision.ordinal <= last_ordinal:
            raise FormatError(f"catalog: revisions of {version.path} are not in order")
        if not 0 < counter <= counters.get(namespace, 0):
            raise FormatError(
                f"catalog: {version.path}@{revision.number} has an ordinal that was never given"
            )
        if stat.S_IFMT(revision.mode) not in (stat.S_IFDIR, stat.S_IFREG):
            raise FormatError(f"catalog: {version.path}@{revision.number} is neither a directory nor a file")
        if revision.hole_length > revision.size:
            raise FormatError(f"catalog: {version.path}@{revision.number} has more holes than bytes")
        last_number, last_ordinal = revision.number, revision.ordinal
