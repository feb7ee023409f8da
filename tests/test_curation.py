"""Reverting, aliases and retirement: what the catalog becomes, and what is refused."""

import json
from pathlib import Path

import pytest
from catalogs import catalog

from torrentfs.cli.app import run
from torrentfs.errors import UsageError
from torrentfs.repository.catalog import check
from torrentfs.repository.curation import restored, retired, reverted, with_alias, without_alias
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """ROOT/v6 with three revisions, ROOT/v7 with one."""
    made = Repository.create(tmp_path / "repository", "alice")
    source = tmp_path / "source"
    source.mkdir()
    for number in (1, 2, 3):
        (source / "data").write_text(f"revision {number}")
        publish(made, source, "ROOT/v6")
    publish(made, source, "ROOT/v7")
    return made


def test_an_earlier_revision_becomes_the_current_one_as_a_new_one(repository: Repository) -> None:
    before = repository.catalog()
    packs = sorted((repository.public / "packs").iterdir())

    assert run(["revert", str(repository.directory), "ROOT/v6", "1"]) == 0

    version = repository.catalog().versions["ROOT/v6"]
    assert [revision.number for revision in version.revisions] == [1, 2, 3, 4]
    assert version.current.manifest == version.revisions[0].manifest
    assert version.current.ordinal > before.versions["ROOT/v7"].current.ordinal
    assert sorted((repository.public / "packs").iterdir()) == packs
    check(repository.catalog())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["revert", "ROOT/v6", "9"], "has no revision 9; it has 1, 2, 3"),
        (["revert", "ROOT/v6", "3"], "is the current one already"),
        (["revert", "ROOT/v9", "1"], "nothing is published as ROOT/v9"),
        (["alias", "ROOT/v7", "ROOT/v6"], "an alias would hide it"),
        (["alias", "ROOT/latest", "ROOT/v8"], "nothing is at ROOT/v8"),
        (["alias", "ROOT/latest", "ROOT/latest"], "in a circle"),
        (["alias", "ROOT/v6/bin", "ROOT/v7"], "in the way"),
        (["alias", "../up", "ROOT/v7"], "path '../up'"),
        (["alias", "ROOT/latest", "ROOT/v6", "--remove"], "either TARGET or --remove"),
        (["alias", "ROOT/latest"], "either TARGET or --remove"),
        (["alias", "ROOT/latest", "--remove"], "there is no alias ROOT/latest"),
        (["retire", "ROOT/v8"], "nothing is published as ROOT/v8"),
        (["retire", "ROOT/v6", "--undo"], "is not retired"),
        (["retire", "ROOT/v6", "--undo", "--after", "3"], "either --after or --undo"),
        (["retire", "ROOT/v6", "--after", "-1"], "--after"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    repository: Repository, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = repository.catalog()

    code = run([words[0], str(repository.directory), *words[1:]])

    [line] = capsys.readouterr().err.splitlines()
    assert code == 2
    assert reason in line
    assert repository.catalog() == before


def test_an_alias_is_made_moved_and_removed(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(repository.directory)
    for target in ("ROOT/v6", "ROOT/v7"):
        assert run(["alias", place, "ROOT/latest", target]) == 0
        assert repository.catalog().aliases == {"ROOT/latest": target}
    assert run(["alias", place, "stable", "ROOT"]) == 0
    run(["list", place])
    assert "ROOT/latest -> ROOT/v7\nstable -> ROOT" in capsys.readouterr().out
    assert run(["alias", place, "ROOT/latest", "--remove"]) == 0
    assert repository.catalog().aliases == {"stable": "ROOT"}


def test_aliases_hold_what_they_lead_to() -> None:
    made = with_alias(with_alias(catalog("ROOT/v6"), "latest", "ROOT/v6"), "newest", "latest")

    with pytest.raises(UsageError, match="alias newest leads to latest"):
        without_alias(made, "latest")
    with pytest.raises(UsageError, match="alias latest leads to ROOT/v6"):
        retired(made, "ROOT/v6", 1)
    with pytest.raises(UsageError, match="circle"):
        with_alias(made, "latest", "newest")


def test_a_path_is_retired_by_a_day_and_stays_after_all(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(repository.directory)
    assert run(["retire", place, "ROOT/v6", "--after", "7"]) == 0

    version = repository.catalog().versions["ROOT/v6"]
    day_s = version.current.published + 7 * 86_400
    assert (version.state, abs(version.retires - day_s) < 3600) == ("retired", True)
    assert not version.is_gone(version.retires - 1)
    assert version.is_gone(version.retires)
    capsys.readouterr()
    run(["list", place, "--json"])
    [listed, _] = json.loads(capsys.readouterr().out)
    assert (listed["state"], listed["retires"]) == ("retired", version.retires)

    assert run(["retire", place, "ROOT/v6", "--undo"]) == 0
    assert repository.catalog().versions["ROOT/v6"].state == "live"


def test_publishing_a_retired_path_makes_it_live(repository: Repository, tmp_path: Path) -> None:
    repository.change(lambda before: retired(before, "ROOT/v6", 1))

    publish(repository, tmp_path / "source", "ROOT/v6")

    version = repository.catalog().versions["ROOT/v6"]
    assert (version.state, version.retires) == ("live", 0)


def test_pure_changes_leave_the_old_catalog_alone() -> None:
    made = catalog("ROOT/v6", "ROOT/v7")

    changed = restored(retired(made, "ROOT/v6", 5), "ROOT/v6")
    with pytest.raises(UsageError):
        reverted(changed, "ROOT/v6", 1, 0)

    assert changed == made


def test_publishing_moves_aliases_in_the_same_commit(repository: Repository, tmp_path: Path) -> None:
    source, place = str(tmp_path / "source"), str(repository.directory)
    before = repository.catalog().version

    assert (
        run(
            [
                "publish",
                place,
                source,
                "ROOT/v8",
                "--alias",
                "latest",
                "--alias",
                "a/b",
                "--requires",
                "ROOT/v7",
            ]
        )
        == 0
    )

    after = repository.catalog()
    assert after.version == before + 1
    assert after.aliases == {"ROOT/latest": "ROOT/v8", "a/b": "ROOT/v8"}
    assert after.versions["ROOT/v8"].requires == ("ROOT/v7",)
    assert run(["publish", place, source, "ROOT/v8"]) == 0
    assert repository.catalog().versions["ROOT/v8"].requires == ("ROOT/v7",)


def test_new_paths_become_links_by_pattern(repository: Repository, tmp_path: Path) -> None:
    source, place = str(tmp_path / "source"), str(repository.directory)
    (repository.directory / "policy.toml").write_text('link = ["tools/*", "ROOT/*"]\n[[keep]]\npaths = "*"\n')

    for path, more in (
        ("tools/a", []),
        ("tools/b", ["--in-place", "replace"]),
        ("ROOT/v6", []),
        ("X/v1", []),
    ):
        assert run(["publish", place, source, path, *more]) == 0
        assert run(["publish", place, source, path]) == 0

    versions = repository.catalog().versions
    assert {path for path, one in versions.items() if one.in_place == "link"} == {"tools/a"}


def test_a_batch_is_one_commit(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, before = tmp_path / "batch.toml", repository.catalog().version
    batch.write_text(
        '[[publish]]\nsource = "source"\npath = "A/v1"\nalias = ["latest"]\nrequires = ["B/v1"]\n'
        '[[publish]]\nsource = "source/data"\npath = "B/v1"\n'
    )

    assert run(["publish", str(repository.directory), "--batch", str(batch), "--json"]) == 0

    assert [record["path"] for record in json.loads(capsys.readouterr().out)] == ["A/v1", "B/v1"]
    after = repository.catalog()
    assert after.version == before + 1
    assert after.aliases == {"A/latest": "A/v1"}
    assert after.versions["A/v1"].current.ordinal < after.versions["B/v1"].current.ordinal


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            '[[publish]]\nsource = "source"\npath = "A/v1"\n[[publish]]\nsource = "absent"\npath = "B/v1"\n',
            "absent",
        ),
        ('[[publish]]\nsource = "source"\npath = "A/v1"\nalias = ["x/../y"]\n', "path 'x/../y'"),
        ('[[publish]]\nsource = "source"\npath = "A/v1"\nrequires = ["Z"]\n', "requires Z"),
        ('[[publish]]\nsource = "source"\npath = "../up"\n', "'../up'"),
        ('[[publish]]\nsource = "source"\n', "path"),
        ("publish = 7\n", "array"),
        ("publish = []\n", "length"),
        ("[[publish\n", "batch.toml"),
        ("\xff", "batch.toml"),
    ],
)
def test_a_batch_that_fails_leaves_everything_as_it_was(
    repository: Repository, tmp_path: Path, text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, before = tmp_path / "batch.toml", repository.catalog()
    batch.write_text(text, "latin-1")

    assert run(["publish", str(repository.directory), "--batch", str(batch)]) in {1, 2}

    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert repository.catalog() == before
    # And what it left is not in the way.
    assert run(["publish", str(repository.directory), str(tmp_path / "source"), "A/v1"]) == 0
