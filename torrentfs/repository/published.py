"""This module reads the catalog of a repository on the publisher's own disk, without checking signatures.

It needs no TUF library, so listing and seeding stay small. A node, which trusts nobody, reads by `update`.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from torrentfs.errors import FormatError, RepositoryError
from torrentfs.repository import shards
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.shards import DEFAULT

METADATA_LENGTH_MAX: Final = 64 * 1024 * 1024
ATTEMPTS: Final = 3
"""A commit, and a clean-up of what it replaced, may come between reading the timestamp and what it names."""

_T = TypeVar("_T")


class _Role(msgspec.Struct, frozen=True):
    version: int
    length: int = 0


class _Target(msgspec.Struct, frozen=True):
    length: int
    hashes: dict[str, str]


class _Listing(msgspec.Struct, frozen=True):
    """The signed part of a timestamp or snapshot."""

    version: int
    expires: datetime
    meta: dict[str, _Role]


class _Targets(msgspec.Struct, frozen=True):
    version: int
    expires: datetime
    targets: dict[str, _Target]


class _SignedListing(msgspec.Struct, frozen=True):
    signed: _Listing


class _SignedTargets(msgspec.Struct, frozen=True):
    signed: _Targets


@dataclass(frozen=True, slots=True)
class State:
    """What the current timestamp leads to; versions are TUF's, *targets* maps target paths to SHA-256."""

    timestamp_version: int
    snapshot_version: int
    targets_version: int
    role_version: int
    expires: int
    role_expires: int
    targets: dict[str, str]


def read(public: Path) -> Catalog:
    """Return the catalog that the timestamp commits to.

    Raises:
        RepositoryError: *public* is not a repository's, or is damaged.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _read(public, state(public))
        except FileNotFoundError as error:
            if attempt == ATTEMPTS - 1:
                raise RepositoryError(f"{public}: {error.filename} is missing") from error
        except (OSError, FormatError) as error:
            raise RepositoryError(f"{public}: {error}") from error
    raise AssertionError("unreachable")


def state(public: Path) -> State:
    """Return what the timestamp commits to.

    Raises:
        RepositoryError: *public* is not a repository's, or its metadata is damaged.
        FileNotFoundError: something that the timestamp names is missing.
    """
    metadata = public / "metadata"
    if not (metadata / "timestamp.json").is_file():
        raise RepositoryError(f"{public.parent} is not a repository; `torrentfs repo init` makes one")
    timestamp = _load(metadata / "timestamp.json", _SignedListing).signed
    snapshot = _load(metadata / f"{_version(timestamp, 'snapshot')}.snapshot.json", _SignedListing).signed
    role = _load(metadata / f"{_version(snapshot, DEFAULT.role)}.{DEFAULT.role}.json", _SignedTargets).signed
    return State(
        timestamp_version=timestamp.version,
        snapshot_version=snapshot.version,
        targets_version=_version(snapshot, "targets"),
        role_version=role.version,
        expires=int(min(timestamp.expires, snapshot.expires, role.expires).timestamp()),
        role_expires=int(role.expires.timestamp()),
        targets={path: target.hashes.get("sha256", "") for path, target in role.targets.items()},
    )


def target_path(public: Path, name: str, digest: str) -> Path:
    """Return where a target file lies: TUF's consistent snapshots put its hash into its name."""
    directory, _, base = name.rpartition("/")
    return public / "targets" / directory / f"{digest}.{base}"


def _read(public: Path, current: State) -> Catalog:
    files = {name: _target(public, name, digest) for name, digest in current.targets.items()}
    head = shards.read_head(files.pop(DEFAULT.head, b""))
    catalog = shards.join(head, files)
    return msgspec.structs.replace(catalog, version=current.timestamp_version, expires=current.expires)


def _target(public: Path, name: str, digest: str) -> bytes:
    if not re.fullmatch(rf"catalog/{DEFAULT.role}/[a-z0-9-]+", name) or not re.fullmatch(
        "[0-9a-f]{64}", digest
    ):
        raise FormatError(f"an unknown target {name[:80]!a}")
    data = target_path(public, name, digest).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise FormatError(f"{name} is damaged")
    return data


def _version(listing: _Listing, role: str) -> int:
    if f"{role}.json" not in listing.meta:
        raise RepositoryError(f"its metadata do not name a version of {role}")
    return listing.meta[f"{role}.json"].version


def _load(path: Path, kind: type[_T]) -> _T:
    if path.stat().st_size > METADATA_LENGTH_MAX:
        raise RepositoryError(f"{path} is longer than {METADATA_LENGTH_MAX} bytes")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RepositoryError(f"{path}: {error}") from error
