"""All the ways in which a mount ends, and what is left: nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, NATIVE_ONLY, Site, await_true, command, is_running
from mounts import FRONTS

from torrentfs.daemon import ending
from torrentfs.daemon.mountpoint import is_dead, is_mounted, mounts, unmount
from torrentfs.errors import MountError

pytestmark = [pytest.mark.root, pytest.mark.fuse]

READERS = 8
READER = """
import os, sys
file, count = os.open(sys.argv[1], os.O_RDONLY), 0
while True:
    try:
        data = os.pread(file, 1 << 16, count * 4096 % (1 << 20))
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        sys.exit(f"{error.errno}")
    count += 1
    if count == 10:
        print("reads", flush=True)
"""
"""Reads until there is an error, and says so when it has begun."""


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        yield made


@pytest.fixture
def readers(site: Site) -> Iterator[list["subprocess.Popen[str]"]]:
    """Many jobs that read a mount."""
    site.mount()
    with ExitStack() as stack:
        started = []
        for _ in range(READERS):
            words = [sys.executable, "-c", READER, str(site.data)]
            reader = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            started.append(stack.enter_context(reader))
            stack.callback(reader.kill)
        for reader in started:
            assert reader.stdout
            assert reader.stdout.readline() == "reads\n"
        yield started


# By itself


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "umount(8)", "fusermount3"])
def test_a_daemon_in_the_foreground_ends_cleanly_by(site: Site, how: str) -> None:
    with site.foreground() as daemon:
        assert site.data.read_bytes() == CONTENT

        if how in signal.Signals.__members__:
            daemon.send_signal(signal.Signals[how])
        elif how == "umount(8)":
            subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)
        else:
            subprocess.run(["fusermount3", "-u", site.mountpoint], timeout=DEADLINE_S, check=True)

        assert daemon.wait(DEADLINE_S) == 0
    site.assert_nothing_left()


def test_a_daemon_in_the_foreground_ends_although_its_mount_is_used(site: Site) -> None:
    with site.foreground() as daemon:
        held = os.open(site.data, os.O_RDONLY)
        try:
            daemon.terminate()

            assert daemon.wait(DEADLINE_S) == 0
        finally:
            with suppress(OSError):  # the kernel says ENOTCONN here, or nothing
                os.close(held)
    site.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_to_any_process_of_a_daemon_ends_it(site: Site, number: signal.Signals) -> None:
    for role in ("server", "keeper"):
        site.mount()
        os.kill(getattr(site, role) or site.server, number)

        site.wait_for_end()
        site.assert_nothing_left()


@pytest.mark.parametrize("program", [["umount"], ["fusermount3", "-u"], ["umount", "-l"]])
def test_a_daemon_in_the_background_ends_when_it_is_unmounted(site: Site, program: list[str]) -> None:
    site.mount()
    assert site.data.read_bytes() == CONTENT

    subprocess.run([*program, site.mountpoint], timeout=DEADLINE_S, check=True)

    site.wait_for_end()
    site.assert_nothing_left()


def test_a_mount_that_is_taken_away_lazily_serves_who_has_it_open(site: Site) -> None:
    site.mount()

    with site.data.open("rb", buffering=0) as held:
        subprocess.run(["umount", "-l", site.mountpoint], timeout=DEADLINE_S, check=True)
        assert not is_mounted(site.mountpoint)
        os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert held.read() == CONTENT
        assert site.stats()["mounted"] is False

    site.wait_for_end()
    site.assert_nothing_left()


# In use


def test_a_mount_in_use_is_not_ended(site: Site) -> None:
    site.mount()

    with site.data.open("rb") as held:
        refused = command("umount", site.mountpoint, check=False)
        again = held.read()

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert str(os.getpid()) in refused.stderr
    assert again == CONTENT
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_a_mount_in_use_ends_by_force(site: Site) -> None:
    site.mount()

    with site.data.open("rb") as held:
        command("umount", "--force", site.mountpoint)

        site.assert_nothing_left()
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.pread(held.fileno(), 1, 900_000)


def test_jobs_that_read_are_in_the_way_of_umount_but_not_of_force(
    site: Site, readers: list["subprocess.Popen[str]"]
) -> None:
    refused = command("umount", site.mountpoint, check=False)

    assert refused.returncode == 1
    assert "is in use by python" in refused.stderr
    assert all(reader.poll() is None for reader in readers)

    command("umount", "--force", site.mountpoint)

    # ECONNABORTED while it is cut, ENOTCONN after.
    assert all(reader.communicate(timeout=DEADLINE_S)[1].strip() in {"103", "107"} for reader in readers)
    site.assert_nothing_left()


def test_a_mount_that_jobs_read_ends_with_the_last_of_them_if_unmounted_lazily(
    site: Site, readers: list["subprocess.Popen[str]"]
) -> None:
    subprocess.run(["umount", "-l", site.mountpoint], timeout=DEADLINE_S, check=True)

    assert site.stats()["errors"] == 0
    assert all(reader.poll() is None for reader in readers)
    for reader in readers:
        reader.kill()
        reader.wait(DEADLINE_S)
    site.wait_for_end()
    site.assert_nothing_left()


# Held elsewhere


@pytest.mark.parametrize("hangs", [False, True])
def test_force_ends_a_bind_mount_too(site: Site, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    monkeypatch.setattr(ending, "FORCE_DEADLINE_S", 2.0)
    site.mount()
    bind = site.directory / "bind"
    bind.mkdir()
    subprocess.run(["mount", "--bind", site.mountpoint, bind], timeout=DEADLINE_S, check=True)
    refused = command("umount", site.mountpoint, check=False)
    assert f"is held by the mount at {bind}; " in refused.stderr
    if hangs:
        os.kill(site.server, signal.SIGSTOP)
        assert command("umount", site.mountpoint, check=False).stderr == refused.stderr

    ending.end(site.mountpoint, force=True)

    assert not any(record.mountpoint == str(bind) for record in mounts())
    assert not is_mounted(site.mountpoint)
    assert site.processes() == []


# When it hangs, or was killed


@pytest.mark.parametrize("hanging", [["keeper"], ["server", "keeper"]])
@NATIVE_ONLY
def test_force_ends_a_keeper_that_hangs(
    site: Site, monkeypatch: pytest.MonkeyPatch, hanging: list[str]
) -> None:
    monkeypatch.setattr(ending, "FORCE_DEADLINE_S", 2.0)
    site.mount()
    for role in hanging:
        os.kill(getattr(site, role), signal.SIGSTOP)

    ending.end(site.mountpoint, force=True)

    assert not is_mounted(site.mountpoint)
    site.wait_for_end()


def test_force_ends_a_daemon_that_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "FORCE_DEADLINE_S", 2.0)
    site.mount()
    os.kill(site.server, signal.SIGSTOP)

    ending.end(site.mountpoint, force=True)

    assert not is_mounted(site.mountpoint)
    site.wait_for_end()


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_a_killed_daemons_mount_can_be_taken_away(site: Site, options: list[str]) -> None:
    site.mount()
    site.kill_all()
    assert is_dead(site.mountpoint)

    command("umount", *options, site.mountpoint)

    assert not is_mounted(site.mountpoint)


def test_a_killed_daemons_mount_in_use_goes_by_force(site: Site) -> None:
    site.mount()
    with site.data.open("rb"):
        site.kill_all()

        refused = command("umount", site.mountpoint, check=False)
        command("umount", "--force", site.mountpoint)

    assert refused.returncode == 1
    assert "is in use by python" in refused.stderr
    assert not is_mounted(site.mountpoint)


def test_a_killed_daemons_mount_in_use_does_not_hinder_the_next(site: Site) -> None:
    site.mount()
    with site.data.open("rb") as held:
        site.kill_all()

        site.mount()

        assert site.data.read_bytes() == CONTENT
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.pread(held.fileno(), 1, 900_000)
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_what_killed_daemons_left_on_top_of_each_other_is_cleared(site: Site) -> None:
    site.mount()
    site.kill_all()
    for _ in range(2):
        subprocess.run(["mount", "--bind", site.mountpoint, site.mountpoint], timeout=DEADLINE_S, check=True)

    site.mount()

    assert [one.mountpoint for one in mounts()].count(str(site.mountpoint)) == 1
    assert site.data.read_bytes() == CONTENT
    command("umount", site.mountpoint)
    site.assert_nothing_left()


# What is not there


def test_unmounting_what_is_not_mounted_is_refused(site: Site) -> None:
    with pytest.raises(MountError):
        unmount(site.mountpoint)

    refused = command("umount", site.mountpoint, check=False)

    assert refused.returncode == 1
    assert "is not a mount of torrentfs" in refused.stderr


def test_a_mountpoint_is_free_at_once_when_umount_returns(site: Site) -> None:
    for _ in range(5):
        site.mount()
        assert site.data.read_bytes() == CONTENT
        command("umount", site.mountpoint)
        site.assert_nothing_left()
    await_true(lambda: not is_mounted(site.mountpoint))


# What came after it


@pytest.fixture
def stopped(site: Site) -> Iterator[None]:
    """A mount that is gone, by lazy umount, before its server noticed: it goes on after the block."""
    site.mount()
    os.kill(site.server, signal.SIGSTOP)
    unmount(site.mountpoint, lazy=True)
    yield
    with suppress(ProcessLookupError):
        os.kill(site.server, signal.SIGCONT)


@pytest.fixture
def other(site: Site, stopped: None) -> Iterator[Path]:
    """Another filesystem there, which has the number that the kernel knew the mount by."""
    subprocess.run(["mount", "-t", "tmpfs", "none", site.mountpoint], timeout=DEADLINE_S, check=True)
    yield site.mountpoint
    subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)


@pytest.mark.parametrize("number", [signal.SIGCONT, signal.SIGKILL])
def test_what_was_mounted_there_since_is_left_alone(site: Site, other: Path, number: signal.Signals) -> None:
    (other / "file").touch()

    os.kill(site.server, number)

    site.wait_for_end()
    assert [one.kind for one in mounts() if one.mountpoint == str(other)] == ["tmpfs"]
    assert (other / "file").exists()


def test_another_mount_with_the_number_of_one_that_is_gone_is_not_taken_for_it(
    site: Site, stopped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "FORCE_DEADLINE_S", 2.0)
    monkeypatch.setattr(ending, "END_DEADLINE_S", 3.0)
    gone, place = site.server, site.place("other")
    words = ["--cache", site.directory / "another"]
    site.mount(*words, at=place)

    with pytest.raises(MountError, match="has not ended yet"):
        ending.end(site.mountpoint)
    ending.end(site.mountpoint, force=True)

    await_true(lambda: not is_running(gone))
    assert (place / "TEST/v1/data").read_bytes() == CONTENT
    command("umount", place)
    site.wait_for_end()
