"""Mountpoints: how they are resolved, and what is not a mount of ours."""

from pathlib import Path

import pytest

from torrentfs.daemon import mountpoint
from torrentfs.daemon.settings import check_mountpoint, default_cache
from torrentfs.errors import MountError


def test_links_on_the_way_and_at_the_end_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real/mnt").mkdir(parents=True)
    (tmp_path / "way").symlink_to("real")
    (tmp_path / "end").symlink_to("way/mnt")

    assert mountpoint.resolve(tmp_path / "way/mnt") == tmp_path / "real/mnt"
    assert mountpoint.resolve(tmp_path / "end") == tmp_path / "real/mnt"
    assert mountpoint.resolve(tmp_path / "real/mnt/..") == tmp_path / "real"
    assert mountpoint.resolve(tmp_path / "none") == tmp_path / "none"


def test_a_relative_mountpoint_is_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert mountpoint.resolve(Path("mnt")) == tmp_path / "mnt"


def test_other_filesystems_are_not_ours() -> None:
    assert any(record.mountpoint == "/" for record in mountpoint.mounts())
    assert not mountpoint.is_mounted(Path("/"))
    assert not mountpoint.is_mounted(Path("/proc"))


def test_a_living_directory_is_not_dead(tmp_path: Path) -> None:
    assert not mountpoint.is_dead(tmp_path)


def test_what_cannot_be_mounted_on_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(MountError, match="not a directory"):
        check_mountpoint(tmp_path / "file")
    with pytest.raises(MountError, match="No such file"):
        check_mountpoint(tmp_path / "none")


def test_default_caches_of_different_mountpoints_differ() -> None:
    names = {default_cache(Path(path)) for path in ("/opt/alice", "/opt-alice", "/srv/alice", "/opt/a/lice")}

    assert len(names) == 4
