"""Mounts live through the death of their server, of its keeper, and what jobs have open goes on."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, Site, await_true, command, is_running

from torrentfs.daemon.mountpoint import is_mounted
from torrentfs.daemon.programs import keeper_command, server_command
from torrentfs.daemon.request import CONFIG, encode, in_memory, made
from torrentfs.daemon.runtime import key_of
from torrentfs.repository.publisher import publish

pytestmark = [pytest.mark.root, pytest.mark.fuse]

JOB = """
import hashlib, os, sys
os.chdir(sys.argv[1])
file = os.open("data", os.O_RDONLY)
directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
for line in sys.stdin:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    by_descriptor = hashlib.sha256(os.pread(file, 1 << 30, 0)).hexdigest()
    by_name = hashlib.sha256(open("data", "rb").read()).hexdigest()
    print(by_descriptor, by_name, *sorted(os.listdir(directory)), flush=True)
"""
"""Lives in a directory, with a file there open, and reads what it has each time that it is told to."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, "native") as made_site:
        yield made_site


class Job:
    """A job in a package's directory."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def look(self) -> list[str]:
        """Return the checksum of the open file, of the file of that name, and the names beside it."""
        assert self._process.stdin
        assert self._process.stdout
        print(file=self._process.stdin, flush=True)
        return self._process.stdout.readline().split()


@contextmanager
def job(directory: Path) -> Iterator[Job]:
    words = [sys.executable, "-c", JOB, str(directory)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Job(process)
        finally:
            process.kill()


def republish(site: Site, content: bytes = b"new") -> None:
    """Publish another revision of TEST/v1."""
    (site.directory / "source/data").write_bytes(content)
    (site.directory / "source/more").touch()
    publish(site.repository, site.directory / "source", "TEST/v1", progress=None)


SEEN = [hashlib.sha256(CONTENT).hexdigest()] * 2 + ["data", "job"]


# The server dies


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_server_that_dies_is_replaced(site: Site, number: signal.Signals) -> None:
    site.mount()
    keeper, inode = site.keeper, site.data.stat().st_ino

    site.kill_server(number)

    stats = site.stats()
    assert stats["server"] == {
        "pid": site.server,
        "keeper": keeper,
        "restarts": 1,
        "last_end": f"killed by {number.name}",
    }
    assert site.data.read_bytes() == CONTENT
    assert site.data.stat().st_ino == inode
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_a_mount_lives_through_many_deaths(site: Site) -> None:
    site.mount()

    with job(site.mountpoint / "TEST/v1") as running:
        for count in range(1, 6):
            site.kill_server()
            assert running.look() == SEEN
            assert site.stats()["server"]["restarts"] == count

    assert site.stats()["errors"] == 0
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_a_server_that_dies_in_the_foreground_is_replaced(site: Site) -> None:
    with site.foreground() as keeper:
        site.kill_server()

        assert site.keeper == keeper.pid
        assert site.data.read_bytes() == CONTENT
        keeper.terminate()
        assert keeper.wait(DEADLINE_S) == 0
    site.assert_nothing_left()


def test_a_server_that_hangs_is_replaced(site: Site) -> None:
    """As by `torrentfs mount`, but for a watchdog that waits for less than 30 s."""
    values = {
        "repository": site.repository.public.as_uri(),
        "trust": str(site.repository.public / "root.json"),
        "cache": str(site.directory / "cache"),
        "node": {"swarm": {"listen": "127.0.0.1:0"}},
    }
    held = in_memory(CONFIG, encode(made(site.mountpoint, None, values)))
    given = f"{key_of(site.mountpoint)}.{CONFIG}={held}"
    with subprocess.Popen(
        [*keeper_command(), "--watchdog", "2", given, "--", *server_command()],
        stdout=subprocess.PIPE,
        pass_fds=[held],
    ) as keeper:
        assert keeper.stdout
        assert json.loads(keeper.stdout.readline())["ready"]
        site.note()
        with job(site.mountpoint / "TEST/v1") as running:
            before = site.server

            os.kill(before, signal.SIGSTOP)

            assert running.look() == SEEN
            await_true(lambda: site.stats()["pid"] != before)
        assert "gave no sign of life for 2 s" in site.stats()["server"]["last_end"]
        command("umount", site.mountpoint)
        assert keeper.wait(DEADLINE_S) == 0
    site.assert_nothing_left()


def test_umount_right_after_a_servers_death_leaves_nothing(site: Site) -> None:
    for _ in range(3):
        site.mount()
        os.kill(site.server, signal.SIGKILL)

        command("umount", site.mountpoint)

        site.assert_nothing_left()


def test_an_unmount_from_outside_is_noticed_by_the_next_server(site: Site) -> None:
    site.mount()
    os.kill(site.server, signal.SIGSTOP)
    subprocess.run(["umount", "-l", site.mountpoint], timeout=DEADLINE_S, check=True)

    os.kill(site.server, signal.SIGKILL)

    site.wait_for_end()
    site.assert_nothing_left()


# The keeper dies


def wait_for_another_keeper(site: Site) -> None:
    before = site.keeper
    await_true(lambda: site.stats()["server"]["keeper"] not in (0, before))
    site.note()


def test_a_keeper_that_dies_is_replaced(site: Site) -> None:
    site.mount()
    server = site.server
    with job(site.mountpoint / "TEST/v1") as running:
        os.kill(site.keeper, signal.SIGKILL)

        wait_for_another_keeper(site)

        assert running.look() == SEEN
        assert site.server == server
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_the_second_keeper_does_as_the_first(site: Site) -> None:
    site.mount()
    with job(site.mountpoint / "TEST/v1") as running:
        for _ in range(2):
            os.kill(site.keeper, signal.SIGKILL)
            wait_for_another_keeper(site)
            site.kill_server()
            assert running.look() == SEEN
        command("reload", site.mountpoint)
        assert running.look() == SEEN
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_a_mount_ends_while_it_has_no_keeper(site: Site) -> None:
    site.mount()
    os.kill(site.keeper, signal.SIGKILL)

    command("umount", site.mountpoint)

    site.wait_for_end()
    site.assert_nothing_left()


def test_a_mount_in_the_foreground_lives_through_its_keepers_death(site: Site) -> None:
    with site.foreground() as keeper:
        site.note()
        keeper.kill()
        keeper.wait(DEADLINE_S)

        wait_for_another_keeper(site)

        assert site.data.read_bytes() == CONTENT
    command("umount", site.mountpoint)
    site.wait_for_end()
    site.assert_nothing_left()


# What jobs see


def test_a_job_in_an_old_revision_keeps_its_bytes(site: Site) -> None:
    site.mount()
    with job(site.mountpoint / "TEST/v1") as running:
        assert running.look() == SEEN
        republish(site)
        command("refresh", site.mountpoint)
        assert site.data.read_bytes() == b"new"

        site.kill_server()

        assert running.look() == SEEN
        assert site.data.read_bytes() == b"new"


def test_a_refresh_after_the_servers_death_shows_what_is_new_to_new_jobs_only(site: Site) -> None:
    site.mount()
    with job(site.mountpoint / "TEST/v1") as running:
        assert running.look() == SEEN
        republish(site)

        site.kill_server()
        command("refresh", site.mountpoint)

        assert running.look() == SEEN
        assert site.data.read_bytes() == b"new"
        assert (site.mountpoint / ".revisions/TEST/v1@1/data").read_bytes() == CONTENT
        site.kill_server()
        assert running.look() == SEEN


def test_a_new_server_looks_for_a_newer_catalog_by_itself(site: Site) -> None:
    site.mount("--set", "mount.refresh_interval_s=86400")
    assert site.data.read_bytes() == CONTENT
    republish(site)

    site.kill_server()

    await_true(lambda: site.data.read_bytes() == b"new")


def test_without_the_repository_the_next_server_shows_what_the_last_one_did(site: Site) -> None:
    site.mount("--set", "node.readahead_pieces_max=64")
    assert site.data.read_bytes() == CONTENT
    republish(site)
    command("refresh", site.mountpoint)
    assert site.data.read_bytes() == b"new"
    version = site.stats()["catalog"]["version"]
    site.repository.public.rename(site.directory / "away")

    site.kill_server()

    assert site.stats()["catalog"]["version"] == version
    assert sorted(path.name for path in (site.mountpoint / "TEST/v1").iterdir()) == ["data", "job", "more"]
    assert site.data.read_bytes() == b"new"
    [listed] = json.loads(command("list", site.mountpoint, "--json").stdout)
    assert listed["revision"] == 2


def test_the_next_server_needs_nothing_on_disk_but_the_cache(site: Site) -> None:
    """Not even the trust file, or where it was started."""
    site.mount()
    with job(site.mountpoint / "TEST/v1") as running:
        assert running.look() == SEEN
        site.repository.directory.rename(site.directory / "away")

        site.kill_server()

        assert running.look() == SEEN


@pytest.mark.parametrize("how", ["gone", "full"])
def test_mounts_serve_on_whatever_becomes_of_the_runtime_directory(site: Site, how: str) -> None:
    """It only tells others who serves: unmounting as one does for any filesystem still ends all."""
    run = site.directory / "run"
    run.mkdir(mode=0o700)
    with ExitStack() as stack:
        if how == "full":
            options = ["-o", "size=16k,mode=700,nr_inodes=32"]
            subprocess.run(["mount", "-t", "tmpfs", *options, "none", run], timeout=DEADLINE_S, check=True)
            stack.callback(subprocess.run, ["umount", "-l", run], timeout=DEADLINE_S, check=True)
        site.mount()
        if how == "gone":
            shutil.rmtree(run)
        else:
            with suppress(OSError), (run / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1024))
        assert site.data.read_bytes() == CONTENT

        os.kill(site.server, signal.SIGKILL)
        assert site.data.read_bytes() == CONTENT
        await_true(lambda: len(site.processes()) == 2 and not is_running(site.server))

        subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)
        site.wait_for_end()
        assert not is_mounted(site.mountpoint)


# The cache


def test_what_was_fetched_is_not_fetched_again(site: Site) -> None:
    site.mount()
    assert site.data.read_bytes() == CONTENT
    cached = site.stats()["bytes"]["cached"]

    site.kill_server()

    with site.data.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == CONTENT
    stats = site.stats()
    assert stats["bytes"]["cached"] == cached
    assert stats["bytes"]["from_mirrors"] == stats["bytes"]["from_peers"] == 0
