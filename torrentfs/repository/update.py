"""This module is a program: it fetches and verifies a repository's catalog for a node, and ends.

A process of its own: TUF and cryptography would cost a daemon 20 MB for what it needs a second a day, and it
can be killed whatever a mirror does to it. It prints one line of JSON: ok, version, changed, error, kind.
"""

import argparse
import contextlib
import fcntl
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import msgspec
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]  # a re-export
from tuf.ngclient import Updater, UpdaterConfig  # type: ignore[attr-defined]  # re-exports

from torrentfs.errors import (
    CacheError,
    DeadlineError,
    ExpiredError,
    FetchError,
    FormatError,
    TorrentfsError,
    TrustError,
)
from torrentfs.repository import durable, shards
from torrentfs.repository.catalog import Catalog, encode
from torrentfs.repository.download import Downloads
from torrentfs.repository.shards import DEFAULT, Namespace

ROOT_LENGTH_MAX: Final = 512 * 1024
TIMESTAMP_LENGTH_MAX: Final = 16 * 1024
SNAPSHOT_LENGTH_MAX: Final = 2 * 1024 * 1024
TARGETS_LENGTH_MAX: Final = 32 * 1024 * 1024
CATALOG_LENGTH_MAX: Final = 512 * 1024 * 1024
"""All shards together."""
ROOT_ROTATIONS_MAX: Final = 256
DOWNLOADS_MAX: Final = 8
"""Shards fetched side by side: a first mount from far away waits for round trips, not for bytes."""
DEADLINE_S: Final = 60.0

CATALOG: Final = "catalog"
TIMESTAMP: Final = "timestamp.json"
"""A copy of the timestamp that the file `CATALOG` was made from."""


class Answer(msgspec.Struct, frozen=True):
    """What the program prints; *kind* is the name of the exception, *error* its text."""

    ok: bool
    version: int = 0
    changed: bool = False
    error: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a node keeps what it knows of a repository."""

    directory: Path

    @property
    def metadata(self) -> Path:
        return self.directory / "metadata"

    @property
    def targets(self) -> Path:
        return self.directory / "targets"


class _Signed(msgspec.Struct, frozen=True):
    version: int
    expires: datetime


class _Metadata(msgspec.Struct, frozen=True):
    signed: _Signed


def update(url: str, directory: Path, trust: Path) -> Answer:
    """Bring the catalog in *directory* up to what *url* offers, if *trust* vouches for it.

    Raises:
        TrustError: something is not signed as it must be, or older than what was seen before.
        ExpiredError: it is no longer good.
        FormatError: what is signed cannot be read.
        FetchError: it could not be had.
        CacheError: *directory* cannot be used.
    """
    places = _Places(directory)
    try:
        places.metadata.mkdir(parents=True, exist_ok=True)
        places.targets.mkdir(exist_ok=True)
        with _alone(directory), _translated(url):
            _remove_litter(places)
            catalog = _fetch(url, places, _read_trust(trust))
            return _keep(catalog, places)
    except OSError as error:
        raise CacheError(f"{error.filename or directory}: {error.strerror or error}") from error


def _fetch(url: str, places: _Places, root: bytes) -> Catalog:
    """Return the verified catalog; the files that it was made from are left in *places*."""
    base = url.rstrip("/")
    updater = Updater(
        metadata_dir=str(places.metadata),
        metadata_base_url=f"{base}/metadata/",
        target_base_url=f"{base}/targets/",
        fetcher=Downloads(),
        config=UpdaterConfig(
            max_root_rotations=ROOT_ROTATIONS_MAX,
            root_max_length=ROOT_LENGTH_MAX,
            timestamp_max_length=TIMESTAMP_LENGTH_MAX,
            snapshot_max_length=SNAPSHOT_LENGTH_MAX,
            targets_max_length=TARGETS_LENGTH_MAX,
        ),
        bootstrap=root,
    )
    updater.refresh()
    catalog, kept = _namespace(updater, DEFAULT, places)
    for old in places.targets.iterdir():
        if old.name not in kept:
            old.unlink()
    roles = ("timestamp", "snapshot", "targets", DEFAULT.role)
    signed = [_signed(places.metadata / f"{role}.json") for role in roles]
    expires = min(role.expires for role in signed)
    return msgspec.structs.replace(catalog, version=signed[0].version, expires=int(expires.timestamp()))


def _namespace(updater: Updater, namespace: Namespace, places: _Places) -> tuple[Catalog, set[str]]:
    """Return a namespace's catalog, and the names of the files that hold it."""
    head_info = updater.get_targetinfo(namespace.head)
    if head_info is None:
        raise TrustError(f"{namespace.head} is not signed by anybody who may")
    head = shards.read_head(_target(updater, head_info, places, shards.NAMESPACE_LENGTH_MAX))
    infos = {name: updater.get_targetinfo(name) for name in shards.shard_targets(namespace, head)}
    there = {name: info for name, info in infos.items() if info is not None}
    if sum(info.length for info in there.values()) > CATALOG_LENGTH_MAX:
        raise FormatError(f"catalog: more than {CATALOG_LENGTH_MAX} bytes")

    def fetch(info: TargetFile) -> bytes:
        return _target(updater, info, places, shards.SHARD_LENGTH_MAX)

    with ThreadPoolExecutor(DOWNLOADS_MAX) as pool:
        files = dict(zip(there, pool.map(fetch, there.values()), strict=True))
    return shards.join(head, files, namespace), {_sha256(info) for info in (head_info, *there.values())}


def _target(updater: Updater, info: TargetFile, places: _Places, length_max: int) -> bytes:
    """Return a verified target file, which is fetched unless it is here already."""
    if info.length > length_max:
        raise FormatError(f"{info.path} is {info.length} bytes long; at most {length_max} are read")
    path = places.targets / _sha256(info)
    if updater.find_cached_target(info, str(path)) is None:
        updater.download_target(info, str(path))
    return path.read_bytes()


def _sha256(info: TargetFile) -> str:
    digest = info.hashes.get("sha256", "")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise FormatError(f"{info.path} is signed without a SHA-256")
    return str(digest)


def _keep(catalog: Catalog, places: _Places) -> Answer:
    """Save the catalog; the copy of the timestamp comes last, and says that the catalog belongs to it."""
    for path in [*places.metadata.glob("*.json"), places.metadata]:
        durable.sync(path)
    path, data = places.directory / CATALOG, encode(catalog)
    changed = not path.exists() or path.read_bytes() != data
    if changed:
        durable.write({path: data})
    durable.write({places.directory / TIMESTAMP: (places.metadata / "timestamp.json").read_bytes()})
    return Answer(ok=True, version=catalog.version, changed=changed)


def _signed(path: Path) -> _Signed:
    return msgspec.json.decode(path.read_bytes(), type=_Metadata).signed


def _read_trust(trust: Path) -> bytes:
    try:
        with trust.open("rb") as file:
            return file.read(ROOT_LENGTH_MAX)
    except OSError as error:
        raise TrustError(f"trust file {trust}: {error.strerror}") from error


def _remove_litter(places: _Places) -> None:
    """Remove temporary files of updates that were killed: TUF's and ours."""
    for leftover in [*places.metadata.glob("tmp*"), *places.directory.glob(".*.new")]:
        leftover.unlink()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other updates out: TUF's client must be the only one in its directory."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheError(f"{directory}: another update is running") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn TUF's exceptions into ours."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise ExpiredError(
            f"{url}: the repository's signatures have expired ({error}): its publisher must run "
            "`torrentfs repo refresh`, unless only this mirror has been left behind"
        ) from error
    except tuf_errors.DownloadLengthMismatchError as error:
        raise TrustError(f"{url}: {error}") from error
    except tuf_errors.DownloadError as error:
        raise FetchError(f"{url}: {error}") from error
    except tuf_errors.RepositoryError as error:
        raise TrustError(f"{url}: {error}") from error


def _print(answer: Answer) -> None:
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


def _failure(error: TorrentfsError) -> Answer:
    return Answer(ok=False, error=re.sub(r"\s+", " ", str(error))[:500], kind=type(error).__name__)


def _end_by(deadline_s: float, url: str) -> None:
    """End this process when its time is up, whatever it waits for."""

    def end(_signal: int, _frame: FrameType | None) -> NoReturn:
        _print(_failure(DeadlineError(f"{url}: no catalog within {deadline_s:.3g} s")))
        os._exit(1)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(deadline_s, 0.001))  # 0 would be never


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m torrentfs.repository.update")
    parser.add_argument(
        "--url", required=True, help="where the repository's public/ is: http(s):// or file://"
    )
    parser.add_argument("--directory", required=True, type=Path, help="where the node keeps what it knows")
    parser.add_argument(
        "--trust", required=True, type=Path, help="the root.json that the publisher handed out"
    )
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, help="seconds until it gives up")
    options: Any = parser.parse_args(arguments)
    _end_by(options.deadline, options.url)
    try:
        answer = update(options.url, options.directory, options.trust)
    except TorrentfsError as error:
        answer = _failure(error)
    _print(answer)
    return 0 if answer.ok else 1


if __name__ == "__main__":
    sys.exit(main())
