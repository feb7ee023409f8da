"""`torrentfs repo check`: every kind of damage is found, and mended where that can be."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from torrentfs.cli.app import run
from torrentfs.repository.metainfo import Kind
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository.create(tmp_path / "repository", "alice")
    source = tmp_path / "source"
    for number in range(5):
        (source / f"d{number}").mkdir(parents=True)
        (source / f"d{number}" / "data").write_bytes(random.Random(number).randbytes(200_000))
    publish(made, source, "A/v1")
    (source / "d1" / "data").write_bytes(b"new")
    publish(made, source, "A/v1")
    return made


def checked(
    repository: Repository, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(["repo", "check", str(repository.directory), "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def files(repository: Repository, kind: Kind) -> list[Path]:
    return sorted((repository.public / f"{kind.value}s").glob(f"*{kind.suffix}"))


def test_a_whole_repository_is_right(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(repository, capsys)

    assert (code, found["faults"], found["mended"]) == (0, [], [])
    assert found["torrents"] == 4
    assert found["bytes_checked"] == sum(
        path.stat().st_size for kind in Kind for path in files(repository, kind)
    )


def test_a_repository_may_be_named_from_where_one_is(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository.directory.parent)

    assert checked(Repository(Path(repository.directory.name)), capsys)[0] == 0


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "flip torrent", "lose torrent"])
def test_damage_is_found_and_mended_from_a_copy(
    repository: Repository, tmp_path: Path, kind: Kind, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(repository.public, tmp_path / "copy")
    victim = files(repository, kind)[0]
    if "torrent" in damage:
        victim = victim.with_name(victim.name.removesuffix(kind.suffix) + ".torrent")
    if "flip" in damage:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "cut":
        os.truncate(victim, victim.stat().st_size - 1)
    else:
        victim.unlink()

    code, found = checked(repository, capsys)
    assert code == 1
    assert any(victim.name.partition(".")[0] in fault for fault in found["faults"])
    code, found = checked(repository, capsys, "--repair")
    if "torrent" in damage:
        assert (code, len(found["mended"])) == (0, 1)
    else:
        assert code == 1
        assert "--from a copy" in found["faults"][0]
        code, found = checked(repository, capsys, "--repair", "--from", str(tmp_path / "copy"))
        assert (code, found["faults"]) == (0, [])
    assert checked(repository, capsys)[0] == 0
    assert not list(repository.public.rglob(".*"))


def test_a_copy_that_is_damaged_too_is_not_taken(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = files(repository, Kind.PACK)[0]
    os.truncate(victim, 1000)
    shutil.copytree(repository.public, tmp_path / "copy")

    code, found = checked(repository, capsys, "--repair", "--from", str(tmp_path / "copy"))

    assert (code, found["mended"]) == (1, [])
    assert victim.stat().st_size == 1000


def test_signatures_are_checked_as_nodes_do(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    root = repository.public / "root.json"
    signed = json.loads(root.read_bytes())
    signed["signatures"][0]["sig"] = "00" + signed["signatures"][0]["sig"][2:]
    root.write_text(json.dumps(signed))

    code, found = checked(repository, capsys)

    assert code == 1
    assert found["faults"][0].startswith("signatures:")
