"""This module finds what a repository needs no more, by its policy, and removes it after a grace period.

Old revisions and retired paths leave the catalog first, in one commit; what no revision points into any more
is remembered with the day, and deleted once nodes and jobs have had time to turn away from it.
"""

import posixpath
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from torrentfs.errors import FormatError, RepositoryError, UsageError
from torrentfs.repository import durable, published
from torrentfs.repository.catalog import REVISION_COUNT_MAX, Catalog, Revision, Version
from torrentfs.repository.curation import DAY_S, retired
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.metainfo import InfoHash, Kind
from torrentfs.repository.shards import DEFAULT
from torrentfs.repository.workshop import Repository

POLICY_FILE: Final = "policy.toml"
POLICY_LENGTH_MAX: Final = 1024 * 1024
METADATA_GRACE_S: Final = 3600.0
"""How long replaced metadata stay at least: a node may have just read the timestamp that names them."""

_TORRENT_FILE: Final = re.compile(r"([0-9a-f]{64})\.(torrent|tar\.zst|manifest)")
_METADATA_FILE: Final = re.compile(rf"([0-9]+)\.(snapshot|{DEFAULT.role})\.json")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stays of paths that match the shell pattern *paths*: the last *revisions* of each, and the last
    *versions* of each directory; others are retired, to be gone after *retire_after_days*.
    """

    paths: Annotated[str, Meta(min_length=1, max_length=4096)]
    revisions: Annotated[int, Meta(ge=1, le=REVISION_COUNT_MAX)] | None = None
    versions: Annotated[int, Meta(ge=1)] | None = None
    retire_after_days: Annotated[float, Meta(ge=0, le=36_500)] = 30.0


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stays; of rules that match a path, the first counts. New paths that match a pattern of *link* are
    published in place as links.
    """

    keep: Annotated[list[Rule], Meta(max_length=10_000)] = []
    link: Annotated[list[str], Meta(max_length=10_000)] = []

    def rule(self, path: str) -> Rule | None:
        """Return what holds for *path*."""
        return next((rule for rule in self.keep if fnmatchcase(path, rule.paths)), None)

    def is_link(self, path: str) -> bool:
        """Tell whether a new *path* is to be a link to its current revision."""
        return any(fnmatchcase(path, pattern) for pattern in self.link)


@dataclass(slots=True)
class Report:
    """What goes: paths that are retired now, paths and revisions that leave the catalog, files that wait for
    the end of their grace, and files that are deleted, with their bytes.
    """

    retired: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """What should go and cannot, and why."""
    waiting: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    bytes_waiting: int = 0
    bytes_deleted: int = 0


def read_policy(directory: Path) -> Policy:
    """Return the policy of the repository in *directory*; without a file nothing goes by itself.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    path = directory / POLICY_FILE
    try:
        with path.open("rb") as file:
            text = file.read(POLICY_LENGTH_MAX + 1)
        if len(text) > POLICY_LENGTH_MAX:
            raise UsageError(f"{path} is longer than {POLICY_LENGTH_MAX} bytes")
        return msgspec.toml.decode(text, type=Policy)
    except FileNotFoundError:
        return Policy()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def clean(repository: Repository, *, grace_s: float, dry_run: bool, now_s: float | None = None) -> Report:
    """Do it, or with *dry_run* only say what would be done; *now_s* is Unix time.

    Raises:
        UsageError: the policy cannot be read.
        RepositoryError: a manifest cannot be read, so that nobody knows which packs it needs; or as `commit`.
    """
    now, report = time.time() if now_s is None else now_s, Report()
    policy = read_policy(repository.directory)
    with repository.lock():
        catalog = repository.catalog()
        changed = curated(catalog, policy, now, grace_s, report)
        needed = _needed(repository.public, changed)
        if changed != catalog and not dry_run:
            repository.commit(changed)
        _sweep(repository, needed, grace_s, now, dry_run=dry_run, report=report)
        if not dry_run:
            repository.remove_litter()
    return report


def curated(catalog: Catalog, policy: Policy, now_s: float, grace_s: float, report: Report) -> Catalog:
    """Return what is left of *catalog* by its policy, and *report* what is not. Pure."""
    for path, days in _surplus(catalog, policy):
        try:
            catalog = retired(catalog, path, int(now_s + days * DAY_S))
        except UsageError as error:  # an alias leads there
            report.kept.append(str(error))
        else:
            report.retired.append(path)
    versions: dict[str, Version] = {}
    required = {path for one in catalog.versions.values() if one.state == "live" for path in one.requires}
    for path, version in catalog.versions.items():
        if version.is_gone(now_s - grace_s) and path not in required:
            report.dropped.append(path)
            continue
        if version.is_gone(now_s - grace_s):
            report.kept.append(f"{path} is required by a path that is not retired")
        rule = policy.rule(path)
        kept = version.revisions[-rule.revisions :] if rule and rule.revisions else version.revisions
        dropped = version.revisions[: len(version.revisions) - len(kept)]
        report.dropped += [f"{path}@{revision.number}" for revision in dropped]
        versions[path] = msgspec.structs.replace(version, revisions=kept)
    return msgspec.structs.replace(catalog, versions=versions)


def _surplus(catalog: Catalog, policy: Policy) -> Iterator[tuple[str, float]]:
    """Yield paths that are more than their directory is to have, and after how many days each goes."""
    groups: dict[tuple[str, str], list[Version]] = {}
    rules: dict[tuple[str, str], Rule] = {}
    for path, version in catalog.versions.items():
        rule = policy.rule(path)
        if rule and rule.versions and version.state == "live":
            key = rule.paths, posixpath.dirname(path)
            groups.setdefault(key, []).append(version)
            rules[key] = rule
    for key, versions in groups.items():
        rule = rules[key]
        by_age = sorted(versions, key=lambda version: version.current.ordinal, reverse=True)
        for version in by_age[rule.versions :]:
            yield version.path, rule.retire_after_days


def _needed(public: Path, catalog: Catalog) -> set[InfoHash]:
    """Return the manifests and packs of all revisions. Raises: RepositoryError."""
    found: set[InfoHash] = set()
    for revision in _revisions(catalog.versions.values()):
        if revision.manifest in found:
            continue
        found.add(revision.manifest)
        try:
            with open_manifest(public, revision.ref) as manifest:
                found.update(pack.info_hash for pack in manifest.packs)
        except (OSError, FormatError) as error:
            path = public / revision.ref.kind.url_path(revision.manifest)
            raise RepositoryError(
                f"{path}: {error}: restore it, or nobody knows which packs it needs: nothing was deleted"
            ) from error
    return found


def _revisions(versions: Iterable[Version]) -> Iterator[Revision]:
    for version in versions:
        yield from version.revisions


def _sweep(
    repository: Repository,
    needed: set[InfoHash],
    grace_s: float,
    now_s: float,
    *,
    dry_run: bool,
    report: Report,
) -> None:
    """Delete what has been needed by nobody for the whole grace. Raises: RepositoryError."""
    memory = repository.private / "unneeded.json"
    try:
        since = _remembered(memory)
        left: dict[str, float] = {}
        for path in _unneeded(repository.public, needed):
            name = str(path.relative_to(repository.public))
            seen_s, length = min(since.get(name, now_s), now_s), path.stat().st_size
            if seen_s > now_s - grace_s:
                left[name] = seen_s
                report.waiting.append(name)
                report.bytes_waiting += length
                continue
            report.deleted.append(name)
            report.bytes_deleted += length
            if not dry_run:
                path.unlink(missing_ok=True)
        if not dry_run:
            durable.write({memory: msgspec.json.encode(left, order="sorted") + b"\n"}, 0o600)
        for path in _replaced(repository.public, now_s - max(grace_s, METADATA_GRACE_S)):
            report.deleted.append(str(path.relative_to(repository.public)))
            report.bytes_deleted += path.stat().st_size
            if not dry_run:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise RepositoryError(f"{error.filename}: {error.strerror}") from error


def _remembered(memory: Path) -> dict[str, float]:
    """Return since when files have not been needed; what is not known counts from now on."""
    try:
        return msgspec.json.decode(memory.read_bytes(), type=dict[str, float])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _unneeded(public: Path, needed: set[InfoHash]) -> Sequence[Path]:
    found = []
    for kind in Kind:
        for path in (public / kind.url_path(InfoHash(bytes(32)))).parent.iterdir():
            named = _TORRENT_FILE.fullmatch(path.name)
            if named and bytes.fromhex(named[1]) not in needed:
                found.append(path)
    return sorted(found)


def _replaced(public: Path, before_s: float) -> Iterator[Path]:
    """Yield metadata and target files that newer ones replaced before *before_s*."""
    current = published.state(public)
    versions = {"snapshot": current.snapshot_version, DEFAULT.role: current.role_version}
    for path in (public / "metadata").iterdir():
        named = _METADATA_FILE.fullmatch(path.name)
        if named and int(named[1]) < versions[named[2]] and path.stat().st_mtime < before_s:
            yield path
    there = {published.target_path(public, name, digest) for name, digest in current.targets.items()}
    for path in (public / "targets" / "catalog" / DEFAULT.role).iterdir():
        if path not in there and not path.name.startswith(".") and path.stat().st_mtime < before_s:
            yield path
