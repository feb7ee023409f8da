"""This module spreads a namespace's catalog over the small JSON files that its role signs, and joins them.

The format is in docs/catalog.md. Who signed the files is `trust`'s and `update`'s concern; no I/O here.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec

from torrentfs.config import parse_address
from torrentfs.errors import FormatError, UsageError, VersionError
from torrentfs.repository.catalog import (
    COUNTER_BITS,
    NAMESPACE_BITS,
    REQUIRES_COUNT_MAX,
    REVISION_COUNT_MAX,
    SEEDER_COUNT_MAX,
    Catalog,
    InPlace,
    Number,
    Ordinal,
    Revision,
    State,
    Version,
    check,
)
from torrentfs.repository.metainfo import InfoHash

VERSION: Final = 1
SHARD_BITS_MAX: Final = 16
SHARD_PATHS: Final = 64
"""Paths and aliases in a shard, on average, before their number doubles."""
NAMESPACE_LENGTH_MAX: Final = 256 * 1024
SHARD_LENGTH_MAX: Final = 64 * 1024 * 1024
NAME_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

SEEDER_LENGTH_MAX: Final = 300
"""Bytes of an address: a host name ends at 253."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A delegation: the TUF *role* that speaks for paths under *prefix*, and its *number* in ordinals."""

    role: str
    number: int
    prefix: str

    @property
    def head(self) -> str:
        """The target path of what is said of the namespace as a whole."""
        return f"catalog/{self.role}/namespace"

    def shard(self, index: int) -> str:
        """Return the target path of a shard."""
        return f"catalog/{self.role}/shard-{index:x}"


DEFAULT: Final = Namespace("default", 0, "")


class Head(msgspec.Struct, frozen=True):
    """What the file ``namespace`` says."""

    version: int
    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    counter: Annotated[int, msgspec.Meta(ge=0, lt=1 << COUNTER_BITS)]
    shard_bits: Annotated[int, msgspec.Meta(ge=0, le=SHARD_BITS_MAX)]
    seeders: Annotated[tuple[str, ...], msgspec.Meta(max_length=SEEDER_COUNT_MAX)] = ()


class _Revision(msgspec.Struct, frozen=True):
    number: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    ordinal: Annotated[int, msgspec.Meta(ge=1, lt=1 << (NAMESPACE_BITS + COUNTER_BITS))]
    manifest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    length: Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]
    mode: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    size: Number
    entries: Annotated[int, msgspec.Meta(ge=1, lt=1 << 24)]
    nlink: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    published: Number
    hole_length: Number = 0


class _Version(msgspec.Struct, frozen=True):
    revisions: Annotated[tuple[_Revision, ...], msgspec.Meta(min_length=1, max_length=REVISION_COUNT_MAX)]
    state: State = "live"
    requires: Annotated[tuple[str, ...], msgspec.Meta(max_length=REQUIRES_COUNT_MAX)] = ()
    retires: Number = 0
    in_place: InPlace = "replace"


class Shard(msgspec.Struct, frozen=True):
    """What a file ``shard-…`` says."""

    version: int
    paths: dict[str, _Version] = {}
    aliases: dict[str, str] = {}


def write(catalog: Catalog, namespace: Namespace = DEFAULT) -> dict[str, bytes]:
    """Return the target files of a namespace, which is the whole catalog's only one, by target path."""
    bits = _bits_for(len(catalog.versions) + len(catalog.aliases))
    shards: dict[int, Shard] = {}

    def shard_of(path: str) -> Shard:
        return shards.setdefault(shard_index(path, bits), Shard(VERSION, {}, {}))

    for path, version in catalog.versions.items():
        shard_of(path).paths[path] = _to_wire(version)
    for path, target in catalog.aliases.items():
        shard_of(path).aliases[path] = target
    head = Head(VERSION, catalog.name, catalog.counters.get(namespace.number, 0), bits, catalog.seeders)
    return {
        namespace.head: _encode(head),
        **{namespace.shard(index): _encode(shard) for index, shard in sorted(shards.items())},
    }


def read_head(data: bytes) -> Head:
    """Read the file ``namespace``.

    Raises:
        FormatError, VersionError: malformed, over a limit; of a later format.
    """
    head = _decode(data, Head, NAMESPACE_LENGTH_MAX)
    check_seeders(head.seeders)
    return head


def shard_targets(namespace: Namespace, head: Head) -> list[str]:
    """Return the target paths of all shards that there can be; one that the role does not name is empty."""
    return [namespace.shard(index) for index in range(1 << head.shard_bits)]


def join(head: Head, shards: Mapping[str, bytes], namespace: Namespace = DEFAULT) -> Catalog:
    """Return the catalog of a namespace from its shards by target path; the caller knows version and expiry.

    Raises:
        FormatError, VersionError: anything that breaks the format or a rule of the catalog.
    """
    versions: dict[str, Version] = {}
    aliases: dict[str, str] = {}
    for name, data in shards.items():
        shard = _decode(data, Shard, SHARD_LENGTH_MAX)
        _check_place(namespace, name, [*shard.paths, *shard.aliases], head.shard_bits)
        versions |= {path: _from_wire(path, version) for path, version in shard.paths.items()}
        aliases |= shard.aliases
    catalog = Catalog(
        name=head.name,
        seeders=head.seeders,
        versions=versions,
        aliases=aliases,
        counters={namespace.number: head.counter},
    )
    return check(catalog)


def shard_index(path: str, bits: int) -> int:
    """Return the first *bits* bits of a path's SHA-256."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") >> (32 - bits)


def check_seeders(seeders: Sequence[str]) -> None:
    """Check addresses that a catalog is to name.

    Raises:
        FormatError: too many, or one that is not HOST:PORT.
    """
    if len(seeders) > SEEDER_COUNT_MAX:
        raise FormatError(f"catalog: more than {SEEDER_COUNT_MAX} seeders")
    try:
        for seeder in seeders:
            if len(seeder) > SEEDER_LENGTH_MAX or not seeder.isascii():
                raise UsageError(f"{seeder[:80]!a}: at most {SEEDER_LENGTH_MAX} ASCII characters are wanted")
            parse_address(seeder)
    except UsageError as error:
        raise FormatError(f"catalog: seeder {error}") from error


def _bits_for(path_count: int) -> int:
    shards = -(-path_count // SHARD_PATHS)
    return min(max(shards - 1, 0).bit_length(), SHARD_BITS_MAX)


def _check_place(namespace: Namespace, name: str, paths: Iterable[str], bits: int) -> None:
    """Check that a shard holds its own paths only, or a path could be said twice, differently."""
    for path in paths:
        try:
            right = namespace.shard(shard_index(path, bits))
        except UnicodeEncodeError as error:
            raise FormatError(f"catalog: {name} holds a path that is not UTF-8") from error
        if name != right:
            raise FormatError(f"catalog: {name} holds {path[:80]!a}, which belongs into {right}")


def _to_wire(version: Version) -> _Version:
    revisions = tuple(
        _Revision(**{**msgspec.structs.asdict(revision), "manifest": revision.manifest.hex()})
        for revision in version.revisions
    )
    return _Version(revisions, version.state, version.requires, version.retires, version.in_place)


def _from_wire(path: str, version: _Version) -> Version:
    revisions = tuple(map(_revision, version.revisions))
    return Version(path, revisions, version.state, version.requires, version.retires, version.in_place)


def _revision(wire: _Revision) -> Revision:
    return Revision(
        number=wire.number,
        ordinal=Ordinal(wire.ordinal),
        manifest=InfoHash(bytes.fromhex(wire.manifest)),
        length=wire.length,
        mode=wire.mode,
        mtime_ns=wire.mtime_ns,
        size=wire.size,
        entries=wire.entries,
        nlink=wire.nlink,
        published=wire.published,
        hole_length=wire.hole_length,
    )


def _encode(value: Any) -> bytes:
    """Encode with sorted keys, so that the same catalog gives the same bytes."""
    return msgspec.json.encode(value, order="sorted") + b"\n"


class _Versioned(msgspec.Struct, frozen=True):
    version: int


def _decode(data: bytes, kind: type[_T], length_max: int) -> _T:
    if len(data) > length_max:
        raise FormatError(f"catalog: a file of {len(data)} bytes; at most {length_max} are read")
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            raise VersionError(f"catalog: format {version}; this release reads {VERSION}: update torrentfs")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"catalog: {error}") from error
