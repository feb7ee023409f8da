import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from catalogs import publish

from torrentfs.errors import FormatError, RepositoryError, UsageError
from torrentfs.repository import catalog, shards
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.update import update
from torrentfs.repository.workshop import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repo", "alice", ["127.0.0.1:6881"])


def verified(repository: Repository, directory: Path) -> int:
    """Return the version that a node at *directory* verifies."""
    return update(repository.public.as_uri(), directory, repository.public / "root.json").version


def test_new_repository_is_empty_signed_and_its_keys_are_private(
    repository: Repository, tmp_path: Path
) -> None:
    made = repository.catalog()

    assert (made.name, made.version, made.seeders, dict(made.versions)) == (
        "alice",
        1,
        ("127.0.0.1:6881",),
        {},
    )
    assert verified(repository, tmp_path / "node") == 1
    assert stat.S_IMODE(repository.private.stat().st_mode) == 0o700
    keys = sorted(repository.private.iterdir())
    assert [key.name for key in keys] == [
        "default.pem",
        "root.pem",
        "snapshot.pem",
        "targets.pem",
        "timestamp.pem",
    ]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    public = {path.relative_to(repository.public).as_posix() for path in repository.public.rglob("*")}
    assert {"root.json", "packs", "manifests", "targets/catalog/default"} <= public
    assert {
        f"metadata/{name}.json" for name in ("timestamp", "1.root", "1.targets", "1.default", "1.snapshot")
    } <= public
    assert b"PRIVATE KEY" not in b"".join(path.read_bytes() for path in repository.public.rglob("*.json"))


def test_making_a_repository_where_something_is_is_refused(repository: Repository, tmp_path: Path) -> None:
    before = (repository.public / "root.json").read_bytes()
    (tmp_path / "file").touch()

    with pytest.raises(RepositoryError, match="is a repository already"):
        Repository.create(repository.directory, "bob")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(RepositoryError):
            Repository.create(taken, "bob")

    assert (repository.public / "root.json").read_bytes() == before
    with pytest.raises(RepositoryError, match="repo init"):
        Repository(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "-a", "a b", "é", "a\n", "a" * 65])
def test_names_that_cannot_be_a_mountpoint_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Repository.create(tmp_path / "repo", name)
    assert not (tmp_path / "repo").exists()


def test_publishing_and_refreshing_need_no_offline_keys(repository: Repository, tmp_path: Path) -> None:
    (repository.private / "root.pem").unlink()
    (repository.private / "targets.pem").unlink()

    made = publish(repository, "ROOT/v6", "ROOT/v6", "AliRoot/v5")
    repository.refresh()
    repository.set_seeders(["a.example:1"])

    assert verified(repository, tmp_path / "node") == 4
    assert repository.catalog().versions == made.versions
    assert made.versions["ROOT/v6"].current.number == 2
    assert repository.catalog().seeders == ("a.example:1",)
    assert repository.can_commit
    (repository.private / "timestamp.pem").unlink()
    assert not repository.can_commit
    with pytest.raises(RepositoryError, match=r"timestamp\.pem"):
        repository.refresh()


def test_the_same_catalog_gives_the_same_target_files(repository: Repository) -> None:
    made = publish(repository, "ROOT/v6", "é")

    assert shards.write(made) == shards.write(repository.catalog())


def test_refresh_gives_a_full_life_and_renews_the_role_in_its_second_half(tmp_path: Path) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    now = start
    repository = Repository.create(tmp_path / "repo", "alice", clock=lambda: now)
    assert repository.catalog().expires == (start + timedelta(days=30)).timestamp()

    now = start + timedelta(days=20)
    assert repository.refresh().expires == (now + timedelta(days=30)).timestamp()
    assert not (repository.public / "metadata" / "2.default.json").exists()

    now = start + timedelta(days=200)
    assert repository.refresh().expires == (now + timedelta(days=30)).timestamp()
    assert (repository.public / "metadata" / "2.default.json").exists()


def test_commit_without_lock_or_upon_another_commit_is_refused(repository: Repository) -> None:
    stale = repository.catalog()
    with pytest.raises(RepositoryError, match="lock"):
        repository.commit(stale)
    publish(repository, "ROOT/v6")

    with repository.lock(), pytest.raises(RepositoryError, match="try again"):
        repository.commit(stale)


def test_counters_never_go_back(repository: Repository) -> None:
    made = publish(repository, "ROOT/v6", "b")
    less = msgspec.structs.replace(made, versions={"ROOT/v6": made.versions["ROOT/v6"]}, counters={0: 1})

    with repository.lock(), pytest.raises(RepositoryError, match="cannot go back"):
        repository.commit(less)
    with repository.lock():
        kept = repository.commit(msgspec.structs.replace(less, counters=made.counters))
    assert kept.next_ordinal() == 3


def test_lock_is_for_one_process_and_names_it(repository: Repository) -> None:
    with repository.lock():
        with repository.lock():
            pass
        with (
            pytest.raises(RepositoryError, match=f"process {os.getpid()}"),
            Repository(repository.directory).lock(0),
        ):
            pass
    with Repository(repository.directory).lock(0):
        pass


def test_waiting_for_another_process_is_said_once(repository: Repository) -> None:
    said: list[str] = []
    waiting = Repository(repository.directory, notice=said.append)

    with repository.lock(), pytest.raises(RepositoryError, match="in use"), waiting.lock(0.3):
        pass

    assert said == [f"{repository.directory}: waiting for process {os.getpid()}, which is publishing"]


@pytest.mark.parametrize("role", ["default", "snapshot", "timestamp"])
def test_keys_of_another_repository_sign_nothing(repository: Repository, tmp_path: Path, role: str) -> None:
    other = Repository.create(tmp_path / "other", "alice")
    shutil.copy(other.private / f"{role}.pem", repository.private)
    before = {path: path.read_bytes() for path in repository.public.rglob("*") if path.is_file()}

    for work in (repository.check_keys, repository.refresh, lambda: repository.set_seeders(["a.b:1"])):
        with pytest.raises(RepositoryError, match=rf"{role}\.pem is not this repository's key"):
            work()

    assert {path: path.read_bytes() for path in repository.public.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "pem", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_key_that_is_damaged_is_named_in_our_words(repository: Repository, pem: bytes) -> None:
    path = repository.private / "snapshot.pem"
    path.write_bytes(pem)

    with pytest.raises(RepositoryError) as caught:
        repository.refresh()

    assert str(caught.value) == f"{path} is damaged, or no private key in PEM: restore it"


def test_seeders_that_are_no_addresses_are_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        repository.set_seeders(["origin"])
    with pytest.raises(UsageError):
        Repository.create(tmp_path / "other", "bob", ["origin:x"])


def test_damaged_repository_says_what_is_damaged(repository: Repository) -> None:
    publish(repository, "ROOT/v6")
    for path in (repository.public / "targets/catalog/default").glob("*.shard-0"):
        path.write_bytes(path.read_bytes().replace(b"live", b"dead"))
    with pytest.raises(RepositoryError, match="shard-0 is damaged"):
        repository.catalog()

    (repository.public / "metadata" / "2.snapshot.json").unlink()
    with pytest.raises(RepositoryError, match=r"2\.snapshot\.json is missing"):
        repository.catalog()


def run_until(operation: int, work: Callable[[], object]) -> bool:
    """Do *work* in a forked process that dies right before its *operation*-th call that changes a disk.

    Return whether it died.
    """
    child = os.fork()
    if child == 0:
        left = operation

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*args: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return call(*args, **options)

            return counted

        try:
            for name in ("open", "fsync", "replace", "rename", "unlink", "mkdir", "truncate", "pwrite"):
                setattr(os, name, dying(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_commit_killed_anywhere_leaves_the_old_catalog_or_the_new_one(
    repository: Repository, tmp_path: Path
) -> None:
    before = publish(repository, *(f"p/{index}" for index in range(64)))
    outcomes: list[bool] = []
    died = True
    while died:
        copy = Repository(shutil.copytree(repository.directory, tmp_path / f"repo{len(outcomes)}"))
        died = run_until(len(outcomes), lambda copy=copy: publish(copy, "p/0", "p/1"))  # type: ignore[misc]
        after = copy.catalog()
        outcomes.append(after != before)

        assert verified(copy, tmp_path / f"node{len(outcomes)}") == after.version
        assert (
            len(after.versions["p/0"].revisions) == len(after.versions["p/1"].revisions) == 1 + outcomes[-1]
        )
        assert publish(copy, "p/2").version == after.version + 1

    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 15
    assert outcomes.count(True) > 1


def test_creation_killed_anywhere_leaves_no_repository_or_a_whole_one(tmp_path: Path) -> None:
    operation = 0
    died = True
    while died:
        directory = tmp_path / f"repo{operation}"
        died = run_until(operation, lambda directory=directory: Repository.create(directory, "alice"))  # type: ignore[misc]
        try:
            repository = Repository(directory)
        except RepositoryError:
            assert died
        else:
            assert verified(repository, tmp_path / f"node{operation}") == 1
        operation += 3
    assert operation > 60


def test_all_that_a_timestamp_names_is_on_disk_before_it(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def noted_replace(source: Path, target: Path) -> None:
        assert ("sync", str(source)) in done or Path(target).name in {"packs.json", "index.html"}
        replace(source, target)
        done.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)

    publish(repository, "ROOT/v6")

    metadata = repository.public / "metadata"
    commit = done.index(("rename", str(metadata / "timestamp.json")))
    renamed = [Path(path) for kind, path in done if kind == "rename"]
    *before, last, memory, shown = renamed
    assert last == metadata / "timestamp.json"
    assert len(before) == 4
    for path in before:
        assert ("sync", str(path.parent)) in done[done.index(("rename", str(path))) : commit]
    assert done[commit + 1] == ("sync", str(metadata))
    # For people, and no part of the commit.
    assert (memory.name, shown.name) == ("packs.json", "index.html")


def test_listing_a_repository_needs_no_tuf(repository: Repository) -> None:
    program = (
        "import sys; from pathlib import Path; from torrentfs.repository.workshop import Repository\n"
        f"print(Repository(Path({str(repository.directory)!r})).catalog().name)\n"
        "print([name for name in ('tuf', 'securesystemslib', 'cryptography') if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "alice\n[]\n"


def test_ten_thousand_paths_are_spread_over_files_of_which_a_commit_writes_few(
    repository: Repository,
) -> None:
    versions = publish(repository, "p").versions["p"]
    many = {
        f"q/{index}": msgspec.structs.replace(
            versions,
            path=f"q/{index}",
            revisions=(msgspec.structs.replace(versions.current, ordinal=index + 2),),
        )
        for index in range(10_000)
    }
    with repository.lock():
        made: Catalog = repository.commit(
            msgspec.structs.replace(repository.catalog(), versions=many, counters={0: 10_001})
        )
    directory = repository.public / "targets/catalog/default"
    before = set(directory.iterdir())

    publish(repository, "q/17")

    assert len(made.versions) == 10_000
    assert len(set(directory.iterdir()) - before) == 2
    assert max(path.stat().st_size for path in directory.iterdir()) < 64 * 1024


def test_what_no_reader_takes_is_never_committed(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(repository, "ROOT/v6")
    monkeypatch.setattr(shards, "SHARD_LENGTH_MAX", 600)

    with pytest.raises(FormatError, match="at most 600 are read"):
        publish(repository, "ROOT/v6", "ROOT/v6")

    assert repository.catalog() == made
    with pytest.raises(UsageError):
        Repository.create(tmp_path / "other", "alice", ["h" * 300_000 + ":1"])
    assert not (tmp_path / "other").exists()


def test_a_path_takes_no_more_revisions_than_can_be_read(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "REVISION_COUNT_MAX", 2)
    publish(repository, "ROOT/v6", "ROOT/v6")

    with pytest.raises(UsageError, match="has 2 revisions"):
        publish(repository, "ROOT/v6")
