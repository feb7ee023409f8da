"""`torrentfs repo gc`: what goes, when, and what must stay."""

import json
import random
from pathlib import Path

import pytest
from trees import assert_same, open_revision

from torrentfs.cli.app import run
from torrentfs.errors import RepositoryError
from torrentfs.repository.cleaning import POLICY_FILE, clean
from torrentfs.repository.curation import DAY_S, retired, with_alias
from torrentfs.repository.metainfo import Kind
from torrentfs.repository.publisher import Wanted, publish, publish_all
from torrentfs.repository.workshop import Repository

GRACE_S = 10.0 * DAY_S


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repository", "alice")


def release(repository: Repository, tmp_path: Path, path: str, seed: int, *shared: int) -> None:
    """Publish a directory of files of random bytes, one for each seed."""
    source = tmp_path / "sources" / path
    source.mkdir(parents=True, exist_ok=True)
    for old in source.iterdir():
        old.unlink()
    for number in (seed, *shared):
        (source / str(number)).write_bytes(random.Random(number).randbytes(50_000))
    publish(repository, source, path)


def files(repository: Repository) -> set[str]:
    return {path.name for name in ("packs", "manifests") for path in (repository.public / name).iterdir()}


def assert_whole(repository: Repository, tmp_path: Path, path: str) -> None:
    """Check that a path's current revision can be read, all of it."""
    ref = repository.catalog().versions[path].current.ref
    assert_same(open_revision(repository.public, ref), tmp_path / "sources" / path)


def now(repository: Repository) -> float:
    return max(one.current.published for one in repository.catalog().versions.values()) + 1.0


def test_without_a_policy_and_nothing_retired_nothing_goes(repository: Repository, tmp_path: Path) -> None:
    for seed in range(3):
        release(repository, tmp_path, "A/v1", seed)
    before, catalog = files(repository), repository.catalog()

    report = clean(repository, grace_s=0, dry_run=False)

    assert (files(repository), repository.catalog()) == (before, catalog)
    assert not report.dropped


def test_old_revisions_leave_the_catalog_and_later_the_disk(repository: Repository, tmp_path: Path) -> None:
    for seed in range(4):
        release(repository, tmp_path, "A/v1", seed, 100)
    (repository.directory / POLICY_FILE).write_text('[[keep]]\npaths = "A/*"\nrevisions = 2\n')
    before, today = files(repository), now(repository)

    report = clean(repository, grace_s=GRACE_S, dry_run=False, now_s=today)

    assert report.dropped == ["A/v1@1", "A/v1@2"]
    assert [one.number for one in repository.catalog().versions["A/v1"].revisions] == [3, 4]
    assert files(repository) == before
    # The first pack has what all share; the second and two manifests are needed by nobody.
    assert len(report.waiting) == 6
    early = clean(repository, grace_s=GRACE_S, dry_run=False, now_s=today + GRACE_S - 1)
    assert (early.deleted, files(repository)) == ([], before)
    late = clean(repository, grace_s=GRACE_S, dry_run=False, now_s=today + GRACE_S + 1)
    assert before - files(repository) <= {Path(name).name for name in late.deleted}
    assert len(before - files(repository)) == 6
    assert_whole(repository, tmp_path, "A/v1")
    release(repository, tmp_path, "A/v1", 1, 100)
    assert_whole(repository, tmp_path, "A/v1")


def test_old_versions_are_retired_but_for_what_aliases_lead_to(
    repository: Repository, tmp_path: Path
) -> None:
    for number in range(4):
        release(repository, tmp_path, f"A/v{number}", number)
    release(repository, tmp_path, "B/v0", 9)
    repository.change(lambda catalog: with_alias(catalog, "A/old", "A/v0"))
    text = '[[keep]]\npaths = "A/*"\nversions = 2\nretire_after_days = 3\n[[keep]]\npaths = "*"\n'
    (repository.directory / POLICY_FILE).write_text(text)
    today = now(repository)

    report = clean(repository, grace_s=GRACE_S, dry_run=False, now_s=today)

    versions = repository.catalog().versions
    assert {path for path, one in versions.items() if one.state == "retired"} == {"A/v1"}
    assert versions["A/v1"].retires == int(today + 3 * DAY_S)
    assert "alias A/old leads to A/v0" in report.kept[0]
    assert clean(repository, grace_s=GRACE_S, dry_run=False, now_s=today + 12 * DAY_S).dropped == []
    assert clean(repository, grace_s=GRACE_S, dry_run=False, now_s=today + 14 * DAY_S).dropped == ["A/v1"]
    assert "A/v1" not in repository.catalog().versions


def test_what_a_live_path_requires_stays(repository: Repository, tmp_path: Path) -> None:
    release(repository, tmp_path, "A/v1", 1)
    publish_all(repository, [Wanted(tmp_path / "sources" / "A/v1", "B/v1", requires=["A/v1"])])
    repository.change(lambda catalog: retired(catalog, "A/v1", 1))

    report = clean(repository, grace_s=0, dry_run=False)

    assert report.kept == ["A/v1 is required by a path that is not retired"]
    assert "A/v1" in repository.catalog().versions


def test_a_pack_that_another_path_points_into_stays(repository: Repository, tmp_path: Path) -> None:
    release(repository, tmp_path, "A/v1", 1, 2)
    release(repository, tmp_path, "B/v1", 3, 2)
    repository.change(lambda catalog: retired(catalog, "A/v1", 1))

    clean(repository, grace_s=0, dry_run=False)

    assert set(repository.catalog().versions) == {"B/v1"}
    assert_whole(repository, tmp_path, "B/v1")


def test_a_dry_run_says_it_all_and_does_nothing(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        release(repository, tmp_path, "A/v1", seed)
    (repository.directory / POLICY_FILE).write_text('[[keep]]\npaths = "*"\nrevisions = 1\n')
    everything = {path: path.stat().st_mtime_ns for path in repository.directory.rglob("*") if path.is_file()}
    capsys.readouterr()

    place = str(repository.directory)
    assert run(["repo", "gc", place, "--dry-run", "--grace", "0"]) == 0

    told = capsys.readouterr().out
    assert "out of the catalog: A/v1@1" in told
    assert "would be deleted" in told
    after = {path: path.stat().st_mtime_ns for path in repository.directory.rglob("*") if path.is_file()}
    assert {path for path in everything if everything[path] != after.get(path)} <= {
        repository.private / "lock"
    }
    assert run(["repo", "gc", place, "--grace", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["dropped"] == ["A/v1@1", "A/v1@2"]
    assert len(files(repository)) == 4


def test_a_manifest_that_cannot_be_read_stops_it(repository: Repository, tmp_path: Path) -> None:
    release(repository, tmp_path, "A/v1", 1)
    release(repository, tmp_path, "A/v2", 2)
    ref = repository.catalog().versions["A/v1"].current.ref
    (repository.public / Kind.MANIFEST.url_path(ref.info_hash)).unlink()
    before = files(repository)

    with pytest.raises(RepositoryError, match="restore it"):
        clean(repository, grace_s=0, dry_run=False)

    assert files(repository) == before


@pytest.mark.parametrize(
    "text", ["keep = 3", "[[keep]]\n", '[[keep]]\npaths="*"\nrevisions=0\n', "[[", "x=1"]
)
def test_a_policy_that_is_none_is_one_line(
    repository: Repository, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository.directory / POLICY_FILE).write_text(text)

    assert run(["repo", "gc", str(repository.directory)]) == 2

    [line] = capsys.readouterr().err.splitlines()
    assert POLICY_FILE in line


def test_replaced_metadata_goes_once_nobody_can_be_reading_it(repository: Repository, tmp_path: Path) -> None:
    for seed in range(3):
        release(repository, tmp_path, "A/v1", seed)
    catalog = repository.catalog()

    clean(repository, grace_s=0, dry_run=False, now_s=now(repository))
    assert len(list((repository.public / "metadata").glob("*.snapshot.json"))) > 1
    clean(repository, grace_s=0, dry_run=False, now_s=now(repository) + 7200)

    assert len(list((repository.public / "metadata").glob("*.snapshot.json"))) == 1
    assert len(list((repository.public / "metadata").glob("*.root.json"))) == 1
    assert repository.catalog().versions == catalog.versions
    release(repository, tmp_path, "A/v1", 7)
