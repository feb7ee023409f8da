"""This module tests a real mount: waiting readers, catalog swaps, ends of all kinds.

It is read from this process and served by another.
"""

# Names alone are wanted here, and `stat` for its own sake.
# ruff: noqa: PTH116, PTH208

import errno
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from mounts import FRONTS, Mount, mounted

from torrentfs.config import MountSettings
from torrentfs.errors import MountError
from torrentfs.fuse import kernel
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.metainfo import Kind
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = pytest.mark.fuse

READERS = 200
WAIT_S = 30.0
"""Longer than anything here takes: who waits this long has hung."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    made = Repository.create(directory / "alice", "alice")
    source = directory / "source"
    source.mkdir()
    for number in range(READERS):
        (source / f"{number}").write_bytes(os.urandom(8192))
    publish(made, source, "soft/v1")
    (source / "0").write_text("second")
    publish(made, source, "soft/v1")
    (source / "new").write_text("of v2")
    publish(made, source, "soft/v2")
    return made


@pytest.fixture(scope="module")
def latest(repository: Repository) -> Catalog:
    return repository.catalog()


@pytest.fixture(scope="module")
def first(latest: Catalog) -> Catalog:
    """The catalog when v1 had one revision and v2 none."""
    version = latest.versions["soft/v1"]
    shown = msgspec.structs.replace(version, revisions=version.revisions[:1])
    return msgspec.structs.replace(latest, versions={"soft/v1": shown})


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def mount(repository: Repository, latest: Catalog, tmp_path: Path, front: str) -> Iterator[Mount]:
    with mounted(repository.public, latest, tmp_path, front=front) as made:
        yield made


def read_all(files: list[Path]) -> subprocess.Popen[str]:
    """Start a process that reads each file in a thread, and writes a line for each: bytes or errno."""
    program = """
import os, sys, threading
def read(path):
    try:
        with open(path, "rb", 0) as file: shown = str(len(file.read()))
    except OSError as error: shown = "errno " + str(error.errno)
    os.write(1, (shown + "\\n").encode())
threads = [threading.Thread(target=read, args=(path,)) for path in sys.argv[1:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, files)], stdout=subprocess.PIPE, text=True
    )


def until(mount: Mount, waiting: int) -> None:
    """Return when so many readers wait."""
    end = time.monotonic() + WAIT_S
    while mount.stats()["waiting"] != waiting:
        assert time.monotonic() < end, mount.stats()
        time.sleep(0.02)


def test_readers_of_a_dead_source_hold_nobody_up(mount: Mount, tmp_path: Path) -> None:
    package = mount.path / "soft/v1"
    cached = (package / "0").read_bytes()
    os.stat(package / "1")
    mount.tell("hold pack")
    readers = read_all([package / str(number) for number in range(1, READERS)] + [mount.path / "soft/v2/new"])
    try:
        until(mount, READERS)

        # New names, known names, listings and cached bytes are answered while every reader still waits.
        assert (mount.path / "soft/v1/199").stat().st_size == 8192
        assert len(os.listdir(mount.path / "soft/v2")) == READERS + 1
        assert not (package / "absent").exists()
        assert (package / "0").read_bytes() == cached
        # Not in the page cache, but the frame is here: v2 has the same content in another inode.
        assert (mount.path / "soft/v2/0").read_bytes() == cached
        assert mount.stats()["waiting"] == READERS
        assert readers.stdout
        assert not select.select([readers.stdout], [], [], 0)[0]

        mount.tell("release")
        lines = readers.stdout.read().split()
        assert sorted(set(lines)) == ["5", "8192"]
        assert len(lines) == READERS
    finally:
        readers.kill()
        readers.communicate()


def test_a_dead_source_is_eio_at_the_deadline(
    repository: Repository, latest: Catalog, tmp_path: Path, front: str
) -> None:
    settings = MountSettings(read_deadline_s=0.5)
    with mounted(repository.public, latest, tmp_path, settings, held=(Kind.PACK,), front=front) as mount:
        path = mount.path / "soft/v1/5"

        with pytest.raises(OSError) as caught:
            path.read_bytes()

        assert caught.value.errno == errno.EIO
        assert mount.stats()["errors"] == 1
        assert "read of soft/v1@2/5 failed: " in mount.log()
        mount.tell("release")
        time.sleep(1.1)
        assert len(path.read_bytes()) == 8192


def test_above_packages_nothing_is_fetched(
    repository: Repository, latest: Catalog, tmp_path: Path, front: str
) -> None:
    with mounted(repository.public, latest, tmp_path, held=(Kind.MANIFEST, Kind.PACK), front=front) as mount:
        listing = subprocess.check_output(
            ["ls", "-lan", mount.path, mount.path / "soft"], text=True, timeout=WAIT_S
        )

        assert "v1" in listing
        assert mount.stats()["asked"] == 0


def test_a_swap_shows_new_names_and_keeps_open_files(
    repository: Repository, first: Catalog, latest: Catalog, tmp_path: Path, front: str
) -> None:
    with mounted(repository.public, first, tmp_path, front=front) as mount:
        soft = mount.path / "soft"
        old = (soft / "v1/0").read_bytes()
        assert not (soft / "v2").exists()
        assert not (mount.path / ".revisions/soft/v1@2").exists()
        working = os.open(soft / "v1", os.O_RDONLY)
        with (soft / "v1/0").open("rb") as file:
            file.read(1)

            mount.swap(latest)

            assert file.read() == old[1:]
        assert sorted(os.listdir(soft)) == ["v1", "v2"]
        assert (soft / "v1/0").read_text() == "second"
        assert (soft / "v2/new").read_text() == "of v2"
        assert (mount.path / ".revisions/soft/v1@1/0").read_bytes() == old
        assert (mount.path / ".revisions/soft/v1@2/0").read_text() == "second"
        with open("0", "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=working)) as file:
            assert file.read() == old
        os.close(working)


def test_a_swap_back_takes_names_away(
    repository: Repository, first: Catalog, latest: Catalog, tmp_path: Path, front: str
) -> None:
    with mounted(repository.public, latest, tmp_path, front=front) as mount:
        assert (mount.path / "soft/v2/new").exists()

        mount.swap(first)

        assert not (mount.path / "soft/v2").exists()
        assert os.listdir(mount.path / "soft") == ["v1"]


def test_inodes_are_the_same_after_a_restart(
    repository: Repository, latest: Catalog, tmp_path: Path, front: str
) -> None:
    inodes = []
    for name in ("first", "second"):
        with mounted(repository.public, latest, tmp_path / name, front=front) as mount:
            inodes.append(
                [os.lstat(mount.path / path).st_ino for path in ("", "soft", "soft/v1", "soft/v1/7")]
            )

    assert inodes[0] == inodes[1]


def test_umount_ends_the_server(mount: Mount) -> None:
    assert (mount.path / "soft").is_dir()

    subprocess.run(["umount", mount.path], check=True, timeout=WAIT_S)

    assert mount.process.wait(WAIT_S) == 0


@pytest.mark.parametrize("front", ["pyfuse3"])  # the native one leaves them to a successor
def test_a_server_that_ends_unmounts_and_frees_its_readers(mount: Mount) -> None:
    os.listdir(mount.path / "soft/v1")
    mount.tell("hold pack")
    readers = read_all([mount.path / "soft/v1" / str(number) for number in range(8)])
    until(mount, 8)
    assert mount.process.stdin

    mount.process.stdin.close()

    assert mount.process.wait(WAIT_S) == 0
    output, _ = readers.communicate(timeout=WAIT_S)
    assert len(output.splitlines()) == 8
    assert all(line.startswith("errno ") for line in output.splitlines())
    with pytest.raises(MountError):
        kernel.device_of(mount.path)


@pytest.mark.root
def test_an_aborted_connection_ends_a_server_whose_readers_wait(mount: Mount, front: str) -> None:
    os.listdir(mount.path / "soft/v1")
    mount.tell("hold pack")
    readers = read_all([mount.path / "soft/v1/3"])
    until(mount, 1)

    kernel.abort(kernel.device_of(mount.path))

    assert mount.process.wait(WAIT_S) == 0
    assert readers.communicate(timeout=WAIT_S)[0].startswith("errno ")
    if front == "pyfuse3":  # the native one leaves mount and unmount to the daemon
        with pytest.raises(MountError):
            kernel.device_of(mount.path)


@pytest.mark.root
def test_the_kernel_was_told_how_much_may_wait_and_be_read_ahead(mount: Mount) -> None:
    settings = MountSettings()
    device = kernel.device_of(mount.path)
    connection = kernel.CONNECTIONS / device.rpartition(":")[2]

    assert int((connection / "max_background").read_text()) == settings.background_max
    assert int((connection / "congestion_threshold").read_text()) == settings.background_max * 3 // 4
    assert int((kernel.BACKING_DEVICES / device / "read_ahead_kb").read_text()) == settings.read_ahead_kib


def test_what_is_not_mounted_has_no_device(tmp_path: Path) -> None:
    with pytest.raises(MountError):
        kernel.device_of(tmp_path)


def test_a_mountpoint_with_odd_characters_is_found(
    repository: Repository, latest: Catalog, tmp_path: Path, front: str
) -> None:
    with mounted(repository.public, latest, tmp_path / "a b\\c\tü,d", front=front) as mount:
        assert kernel.device_of(mount.path)
        assert os.listdir(mount.path) == ["soft"]
