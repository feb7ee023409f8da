"""This module checks a whole repository as the most suspicious node would, and mends what can be mended.

Signatures from the root on, every manifest, every entry of them, every byte of every pack. What is damaged is
made anew where that is possible (metainfo), or taken from a copy of `public/`, once that was checked.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from torrentfs.errors import FormatError, TorrentfsError
from torrentfs.repository import durable
from torrentfs.repository.catalog import Catalog, Revision
from torrentfs.repository.manifest import BlockCache, Manifest
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.metainfo import TORRENT_LENGTH_MAX, Hasher, Metainfo, TorrentRef, parse
from torrentfs.repository.workshop import Repository

Progress = Callable[[int, int], None]
"""Takes the bytes that were checked, and all that will be."""


@dataclass(slots=True)
class Findings:
    """What a check found: *faults* that are left, what was *mended*, and how much was looked at."""

    faults: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    torrents: int = 0
    bytes_checked: int = 0


def check(
    repository: Repository,
    *,
    mend: bool,
    copy: Path | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Findings:
    """Check everything; with *mend* make right what can be, from *copy* of `public/` if it is given.

    Raises:
        RepositoryError: the catalog cannot be read, or another process publishes.
    """
    findings = Findings()
    with repository.lock():
        catalog = repository.catalog()
        _check_signatures(repository, findings)
        checker = _Checker(repository.public, findings, mend=mend, copy=copy, progress=progress)
        checker.run(catalog)
    return findings


def _check_signatures(repository: Repository, findings: Findings) -> None:
    """Do what a node does that has nothing but root.json."""
    from torrentfs.repository.update import update

    public = repository.public.resolve()
    with TemporaryDirectory(prefix="torrentfs-check-") as place:
        try:
            update(public.as_uri(), Path(place) / "node", public / "root.json")
        except TorrentfsError as error:
            findings.faults.append(f"signatures: {error}")


class _Checker:
    def __init__(
        self, public: Path, findings: Findings, *, mend: bool, copy: Path | None, progress: Progress
    ) -> None:
        self._public = public
        self._findings = findings
        self._mend = mend
        self._copy = copy
        self._progress = progress
        self._total = 0
        self._seen: set[TorrentRef] = set()

    def run(self, catalog: Catalog) -> None:
        revisions = {
            revision.manifest: revision
            for version in catalog.versions.values()
            for revision in version.revisions
        }
        self._total = sum(revision.length for revision in revisions.values())
        packs: dict[TorrentRef, None] = {}
        for revision in revisions.values():
            if self._torrent(revision.ref):
                packs.update(dict.fromkeys(self._manifest(revision)))
        self._total += sum(ref.length for ref in packs)
        for ref in packs:
            self._torrent(ref)

    def _torrent(self, ref: TorrentRef) -> bool:
        """Check metainfo and data of a torrent, mended if need be; tell whether both are right."""
        self._findings.torrents += 1
        fault = self._fault(ref)
        if fault and self._mend:
            if self._made_anew(ref) or self._taken_from_copy(ref):
                self._findings.mended.append(f"{self._path(ref)}: {fault}")
                return True
            if self._copy is None:
                fault += "; --from a copy of public/ may mend it"
        if fault:
            self._findings.faults.append(f"{self._path(ref)}: {fault}")
        return not fault

    def _fault(self, ref: TorrentRef, public: Path | None = None) -> str:
        """Say what is wrong with a torrent's files, "" if nothing is."""
        place = public or self._public
        try:
            metainfo = _metainfo(place, ref)
        except (OSError, FormatError) as error:
            return f"its .torrent: {_reason(error)}"
        try:
            with (place / ref.kind.url_path(ref.info_hash)).open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != ref.length:
                    return f"it has {os.fstat(file.fileno()).st_size} bytes, not {ref.length}"
                return next(self._bad_pieces(metainfo, file.fileno()), "")
        except OSError as error:
            return _reason(error)

    def _bad_pieces(self, metainfo: Metainfo, file: int) -> Iterator[str]:
        for number in range(metainfo.piece_count):
            data = os.pread(file, metainfo.piece_length, number * metainfo.piece_length)
            self._findings.bytes_checked += len(data)
            self._progress(self._findings.bytes_checked, max(self._total, self._findings.bytes_checked))
            if not metainfo.verify(number, data):  # type: ignore[arg-type]
                yield f"bytes {number * metainfo.piece_length} and on are damaged"

    def _made_anew(self, ref: TorrentRef) -> bool:
        """Make a torrent's metainfo from its data, if they are what they should be."""
        path = self._public / ref.kind.url_path(ref.info_hash)
        hasher = Hasher()
        try:
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    hasher.update(data)
            metainfo = hasher.finish(ref.kind.suffix)
            if metainfo.info_hash != ref.info_hash:
                return False
            durable.write({self._public / ref.kind.torrent_path(ref.info_hash): metainfo.torrent()})
        except (OSError, FormatError):
            return False
        return not self._fault(ref)

    def _taken_from_copy(self, ref: TorrentRef) -> bool:
        if self._copy is None or self._fault(ref, self._copy):
            return False
        for name in (ref.kind.url_path(ref.info_hash), ref.kind.torrent_path(ref.info_hash)):
            target = self._public / name
            part = target.with_name(f".{target.name}.{os.getpid()}.new")
            try:
                shutil.copyfile(self._copy / name, part)
                durable.sync(part)
                part.replace(target)
            except OSError:
                part.unlink(missing_ok=True)
                return False
        durable.sync(target.parent)
        return not self._fault(ref)

    def _manifest(self, revision: Revision) -> tuple[TorrentRef, ...]:
        """Check every entry of a manifest whose bytes are right; return its packs."""
        path = self._path(revision.ref)
        try:
            with open_manifest(self._public, revision.ref, BlockCache()) as manifest:
                _walk(manifest, revision)
                return manifest.packs
        except (OSError, FormatError) as error:
            self._findings.faults.append(f"{path}: {_reason(error)}")
            return ()

    def _path(self, ref: TorrentRef) -> str:
        return ref.kind.url_path(ref.info_hash)


def _metainfo(public: Path, ref: TorrentRef) -> Metainfo:
    with (public / ref.kind.torrent_path(ref.info_hash)).open("rb") as file:
        return parse(file.read(TORRENT_LENGTH_MAX + 1), ref)


def _walk(manifest: Manifest, revision: Revision) -> None:
    """Read all of a manifest, as no node ever does. Raises: FormatError."""
    if manifest.entry_count != revision.entries:
        raise FormatError(f"it has {manifest.entry_count} entries, not {revision.entries} as is signed")
    directories = 0
    for number in range(manifest.entry_count):
        entry = manifest.entry(number)
        if stat.S_ISDIR(entry.mode):
            directories += 1
            for _ in manifest.children(number):
                pass
        elif stat.S_ISREG(entry.mode) and entry.size:
            length = sum(extent.length for _, extent in manifest.extents(entry, 0, entry.size))
            if length != entry.size:
                raise FormatError(f"entry {number} has {entry.size} bytes, and extents for {length}")


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
