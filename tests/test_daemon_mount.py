"""A real daemon with a real mount, from its start to every way in which it ends.

The mount is read from here: another process than the one that serves it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from torrentfs.config import SwarmSettings, format_address, parse_address
from torrentfs.daemon import ending
from torrentfs.daemon.mountpoint import is_mounted, mounts, resolve, unmount
from torrentfs.errors import MountError
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.root, pytest.mark.fuse]

DEADLINE_S = 60
CONTENT = bytes(range(256)) * 4096


def command(*arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "torrentfs", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@dataclass
class Site:
    """A repository with one package, and a place for a mount of it."""

    directory: Path
    repository: Repository
    mountpoint: Path
    pids: list[int] = field(default_factory=list)

    @property
    def options(self) -> list[object]:
        """What `torrentfs mount` needs beside the mountpoint."""
        return [
            *("--repository", self.repository.public.as_uri()),
            *("--trust", self.repository.public / "root.json"),
            *("--cache", self.directory / "cache"),
            *("--listen", "127.0.0.1:0"),
        ]

    def mount(self, *more: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Mount, and keep the daemon's number for the breaker."""
        done = command("mount", self.mountpoint, *self.options, *more, check=check)
        if done.returncode == 0:
            self.pids.append(self.stats()["pid"])
        return done

    def stats(self) -> dict[str, Any]:
        """Return what the daemon tells of itself."""
        record = json.loads(command("stats", self.mountpoint, "--json").stdout)
        assert isinstance(record, dict)
        return record

    def wait_for_end(self) -> None:
        """Return when the last daemon has gone."""
        deadline = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{self.pids[-1]}").exists() and _is_ours(self.pids[-1]):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def assert_nothing_left(self) -> None:
        """Check that neither mount nor process nor socket remains."""
        assert not is_mounted(self.mountpoint)
        assert list((self.directory / "run").glob("*")) == []
        assert not any(_is_ours(pid) for pid in self.pids)

    def break_up(self) -> None:
        """End whatever is still there."""
        for pid in self.pids:
            if _is_ours(pid):
                os.kill(pid, signal.SIGKILL)
        while is_mounted(self.mountpoint):
            unmount(self.mountpoint, lazy=True)


def _is_ours(pid: int) -> bool:
    """Tell whether *pid* still is a daemon of torrentfs, and not a zombie."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"torrentfs" in words
    return False


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TORRENTFS_CONFIG_DIR", str(tmp_path / "etc"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(CONTENT)
    (source / "job").write_text("#!/bin/sh\necho done\n")
    (source / "job").chmod(0o755)
    repository = Repository.create(tmp_path / "repo", "alice")
    publish(repository, source, "TEST/v1", progress=None)
    (tmp_path / "mnt").mkdir()
    made = Site(tmp_path, repository, resolve(tmp_path / "mnt"))
    yield made
    made.break_up()


def test_a_mount_is_listed_whatever_its_paths_are_called(site: Site) -> None:
    publish(site.repository, site.directory / "source", "public/v1", progress=None)
    site.mount()

    listed = json.loads(command("list", site.mountpoint, "--json").stdout)

    assert [package["path"] for package in listed] == ["TEST/v1", "public/v1"]


def test_a_job_runs_from_a_mount_and_umount_leaves_nothing(site: Site) -> None:
    site.mount()

    done = subprocess.run(
        [site.mountpoint / "TEST/v1/job"], capture_output=True, timeout=DEADLINE_S, check=True
    )
    data = (site.mountpoint / "TEST/v1/data").read_bytes()
    stats = site.stats()
    command("umount", site.mountpoint)

    assert done.stdout == b"done\n"
    assert data == CONTENT
    assert stats["repository"] == "alice"
    assert stats["mountpoint"] == str(site.mountpoint)
    assert stats["bytes"]["cached"] == stats["bytes"]["from_mirrors"] + stats["bytes"]["from_peers"]
    assert stats["bytes"]["read"] >= len(CONTENT)
    [package] = stats["packages"]
    assert (package["path"], package["revision"]) == ("TEST/v1", 1)
    assert package["cached"] == package["size"] == stats["bytes"]["cached"]
    assert stats["errors"] == stats["reads"]["waiting"] == 0
    assert 0 < stats["reads"]["wait_p50_ms"] <= stats["reads"]["wait_p99_ms"]
    site.assert_nothing_left()


def test_a_mount_shows_in_list_and_stats_of_all_mounts(site: Site) -> None:
    site.mount()

    [listed] = json.loads(command("list", site.mountpoint, "--json").stdout)
    [record] = json.loads(command("stats", "--json").stdout)
    text = command("stats").stdout

    assert listed["path"] == "TEST/v1"
    assert record["pid"] == site.pids[0]
    assert "TEST/v1" in text


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGQUIT", "umount(8)"])
def test_a_daemon_ends_cleanly_by(site: Site, how: str) -> None:
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torrentfs",
            "mount",
            site.mountpoint,
            *map(str, site.options),
            "--foreground",
        ],
        stderr=subprocess.DEVNULL,
    )
    site.pids.append(daemon.pid)
    deadline = time.monotonic() + DEADLINE_S
    while not is_mounted(site.mountpoint):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT

    if how in signal.Signals.__members__:
        daemon.send_signal(signal.Signals[how])
    else:
        subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)

    assert daemon.wait(DEADLINE_S) == 0
    site.assert_nothing_left()


def test_after_sigkill_the_next_mount_has_everything(site: Site) -> None:
    site.mount()
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT
    inode = (site.mountpoint / "TEST/v1/data").stat().st_ino

    os.kill(site.pids[0], signal.SIGKILL)
    site.wait_for_end()
    site.mount()

    assert (site.mountpoint / "TEST/v1/data").stat().st_ino == inode
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT
    stats = site.stats()
    assert stats["bytes"]["from_mirrors"] == stats["bytes"]["from_peers"] == 0
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_a_killed_daemons_mount_can_be_taken_away(site: Site) -> None:
    site.mount()
    os.kill(site.pids[0], signal.SIGKILL)
    site.wait_for_end()

    command("umount", site.mountpoint)

    assert not is_mounted(site.mountpoint)


def test_a_mountpoint_is_not_mounted_twice(site: Site) -> None:
    site.mount()

    refused = command(
        "mount", site.mountpoint, *site.options, "--cache", site.directory / "other", check=False
    )

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"by process {site.pids[0]}" in refused.stderr
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT


def test_a_cache_is_not_used_twice(site: Site) -> None:
    site.mount()
    other = site.directory / "other"
    other.mkdir()

    refused = command("mount", other, *site.options, check=False)

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert str(site.pids[0]) in refused.stderr
    assert not is_mounted(other)


def test_only_the_default_port_gives_way_when_it_is_taken(site: Site) -> None:
    default = SwarmSettings().listen
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody else on this machine has it: as good
            taken.bind(parse_address(default))
            taken.listen()
        site.mount("--listen", default)
        at = site.stats()["listen"]
        command("umount", site.mountpoint)
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            refused = site.mount("--listen", format_address(*other.getsockname()), check=False)

    assert parse_address(at)[1] != parse_address(default)[1]
    assert refused.returncode == 1
    assert "cannot listen on" in refused.stderr
    site.assert_nothing_left()


def test_a_mount_in_use_is_not_ended(site: Site) -> None:
    site.mount()

    with (site.mountpoint / "TEST/v1/data").open("rb") as held:
        refused = command("umount", site.mountpoint, check=False)
        again = held.read()

    assert refused.returncode == 1
    assert str(os.getpid()) in refused.stderr
    assert again == CONTENT
    command("umount", site.mountpoint)
    site.assert_nothing_left()


@pytest.fixture
def container(site: Site) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Start a process with a mount namespace of its own, and end it."""
    with ExitStack() as stack:

        def start() -> "subprocess.Popen[bytes]":
            process = stack.enter_context(subprocess.Popen(["unshare", "-m", "sleep", str(DEADLINE_S)]))
            stack.callback(process.wait)
            stack.callback(process.kill)
            here = Path("/proc/self/ns/mnt").readlink()
            while Path(f"/proc/{process.pid}/ns/mnt").readlink() == here or not _is_run_as("sleep", process):
                time.sleep(0.01)
            return process

        yield start


def _is_run_as(name: str, process: "subprocess.Popen[bytes]") -> bool:
    return Path(f"/proc/{process.pid}/comm").read_text().strip() == name


Container = Callable[[], "subprocess.Popen[bytes]"]


def test_a_container_that_holds_a_mount_is_named_by_every_command(site: Site, container: Container) -> None:
    site.mount()
    inside = container()
    words = f"is held by sleep ({inside.pid}) in a mount namespace of its own; torrentfs umount --force"

    refused = [
        command("umount", site.mountpoint, check=False),
        command("umount", site.mountpoint, check=False),
        site.mount(check=False),
    ]

    assert [done.returncode for done in refused] == [1, 1, 1]
    assert len({done.stderr for done in refused}) == 1
    assert refused[0].stderr.count("\n") == 1
    assert words in refused[0].stderr
    assert not is_mounted(site.mountpoint)
    assert site.stats()["mounted"] is False
    assert f"unmounted here, held by sleep ({inside.pid})" in command("stats").stdout
    data = Path(f"/proc/{inside.pid}/root{site.mountpoint}/TEST/v1/data")
    assert data.read_bytes() == CONTENT


def test_force_ends_what_a_container_holds(site: Site, container: Container) -> None:
    site.mount()
    container()
    command("umount", site.mountpoint, check=False)

    command("umount", "--force", site.mountpoint)

    site.assert_nothing_left()
    site.mount()
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT


def test_a_daemon_ends_with_the_container_that_held_it(site: Site, container: Container) -> None:
    site.mount()
    inside = container()
    command("umount", site.mountpoint, check=False)

    inside.kill()
    inside.wait()

    site.wait_for_end()
    site.assert_nothing_left()


@pytest.mark.parametrize("hangs", [False, True])
def test_force_ends_a_bind_mount_too(site: Site, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    monkeypatch.setattr(ending, "FORCE_DEADLINE_S", 2.0)
    site.mount()
    bind = site.directory / "bind"
    bind.mkdir()
    subprocess.run(["mount", "--bind", site.mountpoint, bind], timeout=DEADLINE_S, check=True)
    try:
        refused = command("umount", site.mountpoint, check=False)
        assert f"is held by the mount at {bind}; " in refused.stderr
        if hangs:
            os.kill(site.pids[0], signal.SIGSTOP)
            assert command("umount", site.mountpoint, check=False).stderr == refused.stderr

        ending.end(site.mountpoint, force=True)

        assert not any(record.mountpoint == str(bind) for record in mounts())
        assert not is_mounted(site.mountpoint)
        assert not any(_is_ours(pid) for pid in site.pids)
    finally:
        subprocess.run(["umount", "-l", bind], capture_output=True, timeout=DEADLINE_S, check=False)


def test_force_leaves_alone_what_was_mounted_there_since(site: Site, container: Container) -> None:
    site.mount()
    container()
    command("umount", site.mountpoint, check=False)
    subprocess.run(["mount", "-t", "tmpfs", "none", site.mountpoint], timeout=DEADLINE_S, check=True)
    try:
        command("umount", "--force", site.mountpoint)

        assert [one.kind for one in mounts() if one.mountpoint == str(site.mountpoint)] == ["tmpfs"]
        assert not any(_is_ours(pid) for pid in site.pids)
    finally:
        subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)


def test_a_mount_in_use_ends_by_force(site: Site) -> None:
    site.mount()

    with (site.mountpoint / "TEST/v1/data").open("rb") as held:
        command("umount", "--force", site.mountpoint)

        site.assert_nothing_left()
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.pread(held.fileno(), 1, 900_000)


def test_a_background_daemon_lives_on_after_sighup(site: Site) -> None:
    site.mount()

    os.kill(site.pids[0], signal.SIGHUP)

    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT
    assert site.stats()["pid"] == site.pids[0]


def test_refresh_shows_a_new_revision_at_once(site: Site) -> None:
    site.mount()
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT
    (site.directory / "source/data").write_bytes(b"new")
    publish(site.repository, site.directory / "source", "TEST/v1", progress=None)
    publish(site.repository, site.directory / "source", "TEST/v2", progress=None)

    command("refresh", site.mountpoint)

    assert (site.mountpoint / "TEST/v1/data").read_bytes() == b"new"
    assert (site.mountpoint / "TEST/v2/data").read_bytes() == b"new"
    assert (site.mountpoint / ".revisions/TEST/v1@1/data").read_bytes() == CONTENT
    assert [package["revision"] for package in site.stats()["packages"]] == [2, 1]


def test_without_the_repository_the_last_known_catalog_serves(site: Site) -> None:
    site.mount()
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT
    command("umount", site.mountpoint)
    trust = site.directory / "root.json"
    trust.write_bytes((site.repository.public / "root.json").read_bytes())
    site.repository.public.rename(site.directory / "away")

    done = site.mount("--trust", trust)

    assert done.stderr.startswith("torrentfs: starting with the last known catalog, version 2: ")
    assert done.stderr.count("\n") == 1
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT


def _missing(site: Site) -> None:
    site.mountpoint.rmdir()


def _file(site: Site) -> None:
    site.mountpoint.rmdir()
    site.mountpoint.touch()


def _no_repository(site: Site) -> None:
    site.repository.public.joinpath("metadata").rename(site.directory / "away")


def _wrong_trust(site: Site) -> None:
    other = Repository.create(site.directory / "other", "alice")
    (site.repository.public / "root.json").write_bytes((other.public / "root.json").read_bytes())


def _rubbish_trust(site: Site) -> None:
    (site.repository.public / "root.json").write_text("rubbish")


@pytest.mark.parametrize("hinder", [_missing, _file, _no_repository, _wrong_trust, _rubbish_trust])
def test_what_hinders_a_mount_is_one_line_and_nothing_is_left(site: Site, hinder: Any) -> None:
    hinder(site)

    refused = site.mount(check=False)

    assert refused.returncode == 1, refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stderr
    site.assert_nothing_left()


def test_a_directory_that_is_not_empty_is_hidden_while_mounted(site: Site) -> None:
    (site.mountpoint / "below").touch()
    site.mount()

    assert [path.name for path in site.mountpoint.iterdir()] == ["TEST"]

    command("umount", site.mountpoint)
    assert [path.name for path in site.mountpoint.iterdir()] == ["below"]


def test_unmounting_what_is_not_mounted_is_refused(site: Site) -> None:
    with pytest.raises(MountError):
        unmount(site.mountpoint)


def test_the_helper_of_mount_8_mounts_by_name(site: Site) -> None:
    (site.directory / "etc").mkdir()
    (site.directory / "etc/alice.toml").write_text(
        f'repository = "{site.repository.public.as_uri()}"\ntrust = "{site.repository.public}/root.json"\n'
        f'cache = "{site.directory}/cache"\n'
    )
    helper = Path(__file__).parent.parent / "mount-helpers/mount.torrentfs"
    options = "rw,_netdev,nofail,x-systemd.automount,mount.read_deadline_s=7,listen=127.0.0.1:0"
    torrentfs = Path(sys.executable).parent / "torrentfs"

    subprocess.run(
        [helper, "alice", site.mountpoint, "-v", "-o", options],
        env={**os.environ, "TORRENTFS": str(torrentfs)},
        timeout=DEADLINE_S,
        check=True,
    )

    site.pids.append(site.stats()["pid"])
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT
    fields = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert ["alice", str(site.mountpoint), "fuse.torrentfs"] in [line[:3] for line in fields]


def test_the_helper_of_mount_8_names_an_unknown_option(site: Site) -> None:
    helper = Path(__file__).parent.parent / "mount-helpers/mount.torrentfs"

    done = subprocess.run(
        [helper, "alice", site.mountpoint, "-o", "rw,dance"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr == "mount.torrentfs: unknown option dance\n"


def test_the_helper_of_mount_8_says_where_torrentfs_belongs(site: Site) -> None:
    helper = Path(__file__).parent.parent / "mount-helpers/mount.torrentfs"

    done = subprocess.run(
        [helper, "alice", site.mountpoint],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TORRENTFS": "torrentfs-that-is-not-there"},
    )

    assert done.returncode == 1
    assert 'ln -s "$PWD/.venv/bin/torrentfs" /usr/local/bin/torrentfs' in done.stderr
    assert done.stderr.count("\n") == 1
