"""This module asks for a repository's newest catalog, and knows the last one that was verified.

Fetching and verifying is the work of a short-lived child process, `torrentfs.repository.update`: neither the
memory of a TUF library nor a mirror's tricks come into the daemon. When to ask is the caller's.
"""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess
from typing import Final

import msgspec
import trio

from torrentfs.errors import (
    CacheError,
    DeadlineError,
    ExpiredError,
    FetchError,
    FormatError,
    TorrentfsError,
    TrustError,
    VersionError,
)
from torrentfs.node.mirrors import Mirror
from torrentfs.repository.catalog import Catalog, decode

CATALOG: Final = "catalog"
TIMESTAMP: Final = "timestamp.json"
TIMESTAMP_LENGTH_MAX: Final = 16 * 1024
CHILD_GRACE_S: Final = 1.0
"""The child gives up by itself and says why; it is killed this long afterwards."""
KINDS: Final = {
    kind.__name__: kind
    for kind in (
        CacheError,
        DeadlineError,
        ExpiredError,
        FetchError,
        FormatError,
        TrustError,
        VersionError,
    )
}

log = logging.getLogger(__name__)


class _Answer(msgspec.Struct, frozen=True):
    ok: bool
    version: int = 0
    changed: bool = False
    error: str = ""
    kind: str = ""


class _Signed(msgspec.Struct, frozen=True):
    expires: datetime


class _Timestamp(msgspec.Struct, frozen=True):
    signed: _Signed


async def refresh(url: str, directory: Path, trust: Path, deadline_s: float) -> Catalog:
    """Fetch, verify and keep in *directory* what *url* offers, and return it.

    Raises:
        TrustError: the chain of trust does not vouch for it, or it is older than what was seen before.
        FormatError: it is signed, and cannot be read.
        FetchError: it could not be had; DeadlineError: not within *deadline_s*.
        CacheError: *directory* cannot be used.
    """
    options = [
        "--url",
        url,
        "--directory",
        str(directory),
        "--trust",
        str(trust),
        "--deadline",
        f"{deadline_s:.3f}",
    ]
    # -P: the working directory is whoever's started the daemon, and must not become a place for modules.
    command = [sys.executable, "-P", "-m", "torrentfs.repository.update", *options]
    with trio.move_on_after(deadline_s + CHILD_GRACE_S) as scope:
        done = await trio.run_process(
            command, stdin=DEVNULL, capture_stdout=True, capture_stderr=True, check=False
        )
    if scope.cancelled_caught:
        raise DeadlineError(f"{url}: no catalog within {deadline_s:g} s")
    _check(done, url)
    catalog = last_known(directory)
    if catalog is None:
        raise CacheError(f"{directory / CATALOG} vanished, or is damaged, right after it was written")
    return catalog


def last_known(directory: Path) -> Catalog | None:
    """Return the catalog that was verified last, expired or not; None if there is none to be read."""
    path = directory / CATALOG
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        log.warning("%s is of no use, and will be fetched again: %s", path, error)
        return None


def mark(directory: Path) -> object:
    """Return what is another as soon as another catalog is kept in *directory*; None if none is."""
    try:
        status = (directory / CATALOG).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


async def unchanged(mirror: Mirror, directory: Path) -> bool:
    """Tell by one small request whether *mirror* still offers what `last_known` is; `refresh` is spared then.

    An expired timestamp is never unchanged: `refresh` is to say that the repository or its mirror sleeps.

    Raises:
        FetchError: *mirror* does not answer.
    """
    try:
        known = (directory / TIMESTAMP).read_bytes()
        expires = msgspec.json.decode(known, type=_Timestamp).signed.expires
    except (OSError, msgspec.DecodeError):
        return False
    if expires <= datetime.now(UTC):
        return False
    return await mirror.whole("metadata/timestamp.json", TIMESTAMP_LENGTH_MAX) == known


def _check(done: "CompletedProcess[bytes]", url: str) -> None:
    """Raise what the child reports."""
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except msgspec.DecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:500] if lines else f"exit code {done.returncode}"
        raise FetchError(f"{url}: the update failed: {reason}") from None
    if not answer.ok:
        kind: type[TorrentfsError] = KINDS.get(answer.kind, FetchError)
        raise kind(answer.error)
