"""This module is the publisher's side of a repository on disk: making one, and committing new catalogs to it.

The rename of the timestamp is the only commit point: what was written before it is litter until then, and a
crash at any instant leaves the old catalog or the new one. Packs and manifests are the caller's, and durable
before the commit.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from torrentfs.errors import FormatError, RepositoryError, UsageError
from torrentfs.repository import durable, page, published, shards
from torrentfs.repository.catalog import Catalog, check
from torrentfs.repository.shards import DEFAULT

if TYPE_CHECKING:
    from torrentfs.repository.trust import Keys

LOCK_WAIT_S: Final = 10.0
LOCK_POLL_S: Final = 0.05
PUBLIC_DIRECTORIES: Final = (
    "metadata",
    "targets",
    "targets/catalog",
    "targets/catalog/default",
    "manifests",
    "packs",
)


_TEMPORARY: Final = re.compile(r"\..*\.new")
"""What packs, manifests and files are called until they are whole."""

log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Repository:
    """A directory with `public`, for any web server, and `private`, with the keys.

    The TUF library is imported by what signs, not by what only reads.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], datetime] = _now,
        notice: Callable[[str], None] = log.info,
    ) -> None:
        """Open a repository; *notice* takes the lines that the publisher should see though nothing failed.

        Raises:
            RepositoryError: there is none.
        """
        self.directory = directory
        self.public = directory / "public"
        self.private = directory / "private"
        self.notice = notice
        self._clock = clock
        self._locked = False
        if not (self.public / "metadata" / "timestamp.json").is_file():
            raise RepositoryError(f"{directory} is not a repository; `torrentfs repo init` makes one")

    @staticmethod
    def create(
        directory: Path, name: str, seeders: Sequence[str] = (), *, clock: Callable[[], datetime] = _now
    ) -> "Repository":
        """Make an empty repository, with new keys.

        Raises:
            UsageError: a name or seeder that cannot be.
            RepositoryError: something is there already, or cannot be made.
        """
        if not re.fullmatch(shards.NAME_PATTERN, name):
            raise UsageError(
                f"name {name[:80]!a}: up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
            )
        catalog = Catalog(name=name, seeders=_checked_seeders(seeders))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if (directory / "public" / "metadata" / "timestamp.json").exists():
                raise RepositoryError(f"{directory} is a repository already")
            if any(directory.iterdir()):
                raise RepositoryError(f"{directory} is not empty: a repository is made in a new directory")
            _found(directory, catalog, clock())
        except OSError as error:
            raise RepositoryError(f"{directory}: {error.strerror}") from error
        return Repository(directory, clock=clock)

    @property
    def can_commit(self) -> bool:
        """Whether this process can read the keys that a commit needs."""
        names = (DEFAULT.role, "snapshot", "timestamp")
        return all(os.access(self.private / f"{name}.pem", os.R_OK) for name in names)

    def catalog(self) -> Catalog:
        """Return the committed catalog, read from `public` as it is now.

        Raises:
            RepositoryError: it is damaged.
        """
        return published.read(self.public)

    @contextlib.contextmanager
    def lock(self, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
        """Keep other processes from committing; within it, this object may lock again.

        Raises:
            RepositoryError: another process kept it for *wait_s*; its number is named.
        """
        if self._locked:
            yield
            return
        path = self.private / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RepositoryError(f"{path}: {error.strerror}") from error
        try:
            self._acquire(descriptor, time.monotonic() + wait_s)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            self._locked = True
            yield
        finally:
            self._locked = False
            os.close(descriptor)

    def commit(self, catalog: Catalog) -> Catalog:
        """Publish *catalog*, which was made from the committed one within the same `lock`.

        Raises:
            RepositoryError: no lock is held, another commit came between, a counter would go back, or the
                files cannot be written.
            FormatError: *catalog* breaks a rule.
        """
        if not self._locked:
            raise RepositoryError("a commit needs the repository's lock")
        before = self.catalog()
        if catalog.version != before.version or catalog.name != before.name:
            raise RepositoryError(f"{self.directory} has changed meanwhile: try again")
        if any(catalog.counters.get(number, 0) < counter for number, counter in before.counters.items()):
            raise RepositoryError("a counter of ordinals cannot go back")
        _checked_seeders(catalog.seeders)
        return self._sign(_readable(catalog))

    def change(self, work: Callable[[Catalog], Catalog]) -> Catalog:
        """Commit what *work* makes of the catalog.

        Raises:
            UsageError: it cannot be changed so. RepositoryError: like `commit`.
        """
        with self.lock():
            return self.commit(work(self.catalog()))

    def check_keys(self) -> None:
        """Check that the online keys are there and are the ones that nodes will believe.

        Raises:
            RepositoryError: one is missing, cannot be used, or is not this repository's.
        """
        self._keys(published.state(self.public))

    def remove_litter(self) -> None:
        """Remove the temporary files of commits and publications that were killed; needs the `lock`.

        Raises:
            RepositoryError: no lock is held, or they cannot be removed.
        """
        if not self._locked:
            raise RepositoryError("litter is told from work only within the repository's lock")
        try:
            for name in PUBLIC_DIRECTORIES:
                for path in (self.public / name).iterdir():
                    if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
                        path.unlink()
        except OSError as error:
            raise RepositoryError(f"{error.filename}: {error.strerror}") from error

    def set_seeders(self, seeders: Sequence[str]) -> Catalog:
        """Commit the addresses ("HOST:PORT") that nodes shall ask.

        Raises:
            UsageError, RepositoryError: like `create` and `commit`.
        """
        checked = _checked_seeders(seeders)
        with self.lock():
            return self.commit(msgspec.structs.replace(self.catalog(), seeders=checked))

    def refresh(self, seeders: Sequence[str] | None = None) -> Catalog:
        """Sign snapshot and timestamp anew, for a full life; and the role, if half of its own is over.

        Raises:
            UsageError, RepositoryError: like `set_seeders`.
        """
        if seeders is not None:
            return self.set_seeders(seeders)
        with self.lock():
            return self._sign(None)

    def _acquire(self, descriptor: int, deadline: float) -> None:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                number = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                holder = f"process {number}" if number else "another process"
                if time.monotonic() >= deadline:
                    raise RepositoryError(
                        f"{self.directory} is in use by {holder}: try again when it has finished"
                    ) from error
            if not told:
                self.notice(f"{self.directory}: waiting for {holder}, which is publishing")
                told = True
            time.sleep(LOCK_POLL_S)

    def _keys(self, current: published.State) -> "Keys":
        """Return the online keys, checked."""
        from torrentfs.repository import trust  # 80 ms and 15 MB that readers do without

        metadata = self.public / "metadata"
        roots = [int(path.name.partition(".")[0]) for path in metadata.glob("[1-9]*.root.json")]
        try:
            root = (metadata / f"{max(roots, default=1)}.root.json").read_bytes()
            targets = (metadata / f"{current.targets_version}.targets.json").read_bytes()
        except OSError as error:
            raise RepositoryError(f"{error.filename}: {error.strerror}") from error
        return trust.load_online(self.private, root, targets)

    def _sign(self, files: dict[str, bytes] | None) -> Catalog:
        """Commit the target files *files*, or the same ones again."""
        from torrentfs.repository import trust

        current, now, metadata = published.state(self.public), self._clock(), self.public / "metadata"
        keys = self._keys(current)
        if files is None and current.role_expires < (now + trust.ROLE_RENEWAL).timestamp():
            files = _readable(self.catalog())
        role = None
        new: dict[Path, bytes] = {}
        if files is not None:
            new |= _target_files(self.public, files)
            role = (current.role_version + 1, trust.sign_role(keys, current.role_version + 1, files, now))
            new[metadata / f"{role[0]}.{DEFAULT.role}.json"] = role[1]
        last = (metadata / f"{current.snapshot_version}.snapshot.json").read_bytes()
        snapshot = (current.snapshot_version + 1, trust.next_snapshot(keys, last, role, now))
        new[metadata / f"{snapshot[0]}.snapshot.json"] = snapshot[1]
        timestamp = trust.sign_timestamp(keys, current.timestamp_version + 1, snapshot, now)
        try:
            durable.write(new)
            # Files that a crashed commit left behind are used again, but their names may not be on disk yet.
            durable.sync(self.public / "targets" / "catalog" / DEFAULT.role)
            durable.write({metadata / "timestamp.json": timestamp})
        except OSError as error:
            raise RepositoryError(f"{error.filename or self.public}: {error.strerror}") from error
        catalog = self.catalog()
        self._show(catalog)
        return catalog

    def _show(self, catalog: Catalog) -> None:
        """Write the page for people. What it lacks is no harm to anybody, so that nothing fails with it."""
        try:
            page.write(self.public, self.private, catalog, self._clock().timestamp())
        except OSError as error:
            self.notice(f"{self.public / 'index.html'}: {error.strerror}: people see an older page")


def _found(directory: Path, catalog: Catalog, now: datetime) -> None:
    from torrentfs.repository import trust

    public, private = directory / "public", directory / "private"
    durable.make_directory(private, 0o700)
    durable.make_directory(public)
    for name in PUBLIC_DIRECTORIES:
        durable.make_directory(public / name)
    keys, pem = trust.generate()
    trust.save(private, pem)
    files = shards.write(catalog)
    metadata = trust.found(keys, now)
    metadata["1.default.json"] = trust.sign_role(keys, 1, files, now)
    metadata["1.snapshot.json"] = trust.first_snapshot(
        keys, metadata["1.targets.json"], metadata["1.default.json"], now
    )
    durable.write(
        {public / "metadata" / name: data for name, data in metadata.items()}
        | _target_files(public, files)
        | {public / "root.json": metadata["1.root.json"]}
    )
    timestamp = trust.sign_timestamp(keys, 1, (1, metadata["1.snapshot.json"]), now)
    durable.write({public / "metadata" / "timestamp.json": timestamp})


def _readable(catalog: Catalog) -> dict[str, bytes]:
    """Return the target files of *catalog*, read back: what no reader takes must never be committed.

    Raises:
        FormatError: it breaks a rule, or a file of it would be over a limit.
    """
    files = shards.write(check(catalog))
    rest = dict(files)
    shards.join(shards.read_head(rest.pop(DEFAULT.head)), rest)
    return files


def _target_files(public: Path, files: dict[str, bytes]) -> dict[Path, bytes]:
    """Return those target files that are not there yet: named by their hash, they are never changed."""
    paths = {
        published.target_path(public, name, hashlib.sha256(data).hexdigest()): data
        for name, data in files.items()
    }
    return {path: data for path, data in paths.items() if not path.exists()}


def _checked_seeders(seeders: Sequence[str]) -> tuple[str, ...]:
    try:
        shards.check_seeders(seeders)
    except FormatError as error:
        raise UsageError(str(error).removeprefix("catalog: ")) from error
    return tuple(seeders)
