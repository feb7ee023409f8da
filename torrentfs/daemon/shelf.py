"""This module lays out what a node has verified of a repository as `public/` does, for others to fetch.

The TUF client's own directory cannot be served: an update that fails half-way leaves a newer timestamp in it
beside an older snapshot. Here files are hard links, so that what the client replaces stays; the timestamp,
which names all others, comes last.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from torrentfs.daemon.refresh import TIMESTAMP
from torrentfs.errors import CacheError

PAGE = "index.html"
_SAFE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


class _Target(msgspec.Struct, frozen=True):
    hashes: dict[str, str]


class _Signed(msgspec.Struct, frozen=True):
    version: int
    targets: dict[str, _Target] = {}


class _Metadata(msgspec.Struct, frozen=True):
    signed: _Signed


class Shelf:
    """The directory that is served, `public`, below the one that keeps what is known of a repository."""

    def __init__(self, directory: Path) -> None:
        self.public = directory / "public"
        self._directory = directory
        self._before: set[str] = set()

    def fill(self, page: bytes = b"") -> None:
        """Show what was verified last, and *page* to people. Blocks; no update may run meanwhile.

        What was shown before stays until the next time: others are in the middle of reading it.

        Raises: CacheError: it cannot be written.
        """
        try:
            timestamp = self._directory / "metadata" / TIMESTAMP
            if timestamp.read_bytes() != (self._directory / TIMESTAMP).read_bytes():
                return
            files = dict(self._files())
            for name, source in files.items():
                _link(source, self.public / name)
            _link(timestamp, self.public / "metadata" / TIMESTAMP)
            part = self.public / f".{PAGE}.new"
            part.write_bytes(page)
            part.replace(self.public / PAGE)
            self._remove_others({*files, f"metadata/{TIMESTAMP}", PAGE} | self._before)
            self._before = set(files)
        except OSError as error:
            raise CacheError(f"{error.filename or self.public}: {error.strerror or error}") from error
        except msgspec.DecodeError as error:
            raise CacheError(
                f"{self._directory}: metadata that was verified cannot be read: {error}"
            ) from error

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Yield name and source of all files but the timestamp."""
        metadata, targets = self._directory / "metadata", self._directory / "targets"
        for source in (metadata / "root_history").glob("*.root.json"):
            yield f"metadata/{source.name}", source
        for source in metadata.glob("*.json"):
            if source.stem in ("root", "timestamp"):
                continue
            signed = msgspec.json.decode(source.read_bytes(), type=_Metadata).signed
            yield f"metadata/{signed.version}.{source.name}", source
            for path, target in signed.targets.items():
                # Only what its bytes were named by is here; a path is somebody's word until it is checked.
                digest = target.hashes.get("sha256", "")
                if _SAFE.fullmatch(path) and _SAFE.fullmatch(digest) and (targets / digest).is_file():
                    parent, slash, base = path.rpartition("/")
                    yield f"targets/{parent}{slash}{digest}.{base}", targets / digest

    def _remove_others(self, names: set[str]) -> None:
        for path in self.public.rglob("*"):
            if path.is_file() and str(path.relative_to(self.public)) not in names:
                path.unlink()


def _link(source: Path, place: Path) -> None:
    """Have *place* be the file that *source* is now."""
    if place.exists() and place.samefile(source):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    # A name that is not served, in case we die now.
    temporary = place.with_name(f".{place.name}")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    temporary.replace(place)
