"""Who holds a mount that is unmounted here; containers and bind mounts are in test_daemon_mount."""

from pathlib import Path

from torrentfs.daemon.holders import Hold, goes_on, hold, mounted_at
from torrentfs.daemon.mountpoint import device_at


def test_what_is_mounted_nowhere_is_held_by_nobody(tmp_path: Path) -> None:
    assert hold(tmp_path, "0:999999") == Hold(mounted=False, device="0:999999")


def test_without_a_device_nobody_is_named(tmp_path: Path) -> None:
    assert hold(tmp_path, "") == Hold(mounted=False, device="")


def test_other_filesystems_are_not_ours() -> None:
    device = device_at(Path("/proc"))

    assert device
    assert mounted_at(device) == []


def test_the_way_out_is_named() -> None:
    said = str(goes_on(Path("/opt/alice"), 7, ("sleep (8)", "the mount at /mnt")))

    assert "process 7, is held by sleep (8), the mount at /mnt; " in said
    assert said.endswith("torrentfs umount --force /opt/alice ends it")
    assert "has not ended yet" in str(goes_on(Path("/opt/alice"), 7, ()))
