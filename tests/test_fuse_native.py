"""This module tests what only the native front does: no open files, dying servers, readers that are killed.

The test process holds the mount's descriptors, as a keeper does, and is not the one that serves it.
"""

# Names alone are wanted here.
# ruff: noqa: PTH208

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, mounted

from torrentfs.config import MountSettings
from torrentfs.fuse import mounting
from torrentfs.fuse.journal import Journal
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.metainfo import Kind
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.fuse, pytest.mark.root]

FILES = 200
WAIT_S = 30.0
"""Longer than anything here takes: who waits this long has hung."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    made = Repository.create(directory / "alice", "alice")
    source = directory / "source"
    (source / "below").mkdir(parents=True)
    for number in range(FILES):
        (source / f"{number:03}").write_bytes(number.to_bytes(2, "big") * 4096)
    (source / "below/leaf").write_text("leaf")
    (source / "link").symlink_to("below/leaf")
    publish(made, source, "soft/v1")
    return made


@pytest.fixture(scope="module")
def catalog(repository: Repository) -> Catalog:
    return repository.catalog()


@pytest.fixture(params=[True, False], ids=["resend", "journal"])
def settings(request: pytest.FixtureRequest) -> MountSettings:
    """With the kernel sending again what was not answered, and without, as before Linux 6.9."""
    return MountSettings(resend=request.param)


@pytest.fixture
def mount(
    repository: Repository, catalog: Catalog, tmp_path: Path, settings: MountSettings
) -> Iterator[Mount]:
    with mounted(repository.public, catalog, tmp_path, settings) as made:
        yield made


READ_ALL = """
import os, sys, threading
def read(path):
    with open(path, "rb", 0) as file: shown = file.read()
    os.write(1, (os.path.basename(path) + " " + str(len(shown)) + " " + shown[:2].hex() + "\\n").encode())
threads = [threading.Thread(target=read, args=(path,)) for path in sys.argv[1:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def reading(program: str, *paths: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, paths)], stdout=subprocess.PIPE, text=True
    )


def until(mount: Mount, waiting: int) -> None:
    """Return when so many requests wait."""
    end = time.monotonic() + WAIT_S
    while mount.stats()["waiting"] != waiting:
        assert time.monotonic() < end, mount.stats()
        time.sleep(0.02)


def kill(mount: Mount) -> None:
    mount.process.kill()
    mount.process.wait(WAIT_S)


def test_readers_in_flight_are_answered_by_the_next_server(mount: Mount) -> None:
    package = mount.path / "soft/v1"
    os.listdir(package)
    mount.tell("hold pack")
    readers = reading(READ_ALL, *(package / f"{number:03}" for number in range(FILES)))
    until(mount, FILES)

    kill(mount)
    mount.succeed()

    output, _ = readers.communicate(timeout=WAIT_S)
    assert sorted(output.splitlines()) == [f"{n:03} 8192 {n:04x}" for n in range(FILES)]
    assert "ERROR" not in mount.log()


def test_many_servers_may_die_under_the_same_readers(mount: Mount) -> None:
    package = mount.path / "soft/v1"
    os.listdir(package)
    mount.tell("hold pack")
    readers = reading(READ_ALL, *(package / f"{number:03}" for number in range(8)))
    until(mount, 8)

    for _ in range(3):
        kill(mount)
        mount.succeed(Kind.PACK)
        until(mount, 8)
    mount.tell("release")

    output, _ = readers.communicate(timeout=WAIT_S)
    assert len(output.splitlines()) == 8


def test_a_lookup_made_while_no_server_lives_is_answered_by_the_next(mount: Mount) -> None:
    kill(mount)
    job = subprocess.Popen(["cat", mount.path / "soft/v1/link"], stdout=subprocess.PIPE)

    mount.succeed()

    assert job.communicate(timeout=WAIT_S)[0] == b"leaf"


def test_what_was_open_before_a_kill_is_read_after_it(mount: Mount) -> None:
    # Not open here: the next server is started from here, would close it, and the kernel asks about that.
    job = subprocess.Popen(
        ["sh", "-c", f'exec 3<"{mount.path}/soft/v1/007"; echo opened; read go; cat <&3'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert job.stdout
    assert job.stdout.readline() == b"opened\n"
    kill(mount)
    mount.succeed()

    output, _ = job.communicate(b"go\n", timeout=WAIT_S)

    assert output == b"\0\x07" * 4096


def test_hot_files_are_opened_and_read_without_a_server(mount: Mount) -> None:
    package = mount.path / "soft/v1"
    wanted = look(package)

    kill(mount)

    # Whoever asks a server now waits for ever: another process, then, with a deadline.
    script = f'cd "{package}" && ls && cat 0* 1* link && test ! -e absent && readlink link'
    try:
        assert subprocess.check_output(["sh", "-c", script], timeout=WAIT_S) == wanted
    finally:
        mount.succeed()


def look(package: Path) -> bytes:
    """Return what the same script shows, which makes it hot."""
    script = f'cd "{package}" && ls && cat 0* 1* link && test ! -e absent && readlink link'
    return subprocess.check_output(["sh", "-c", script], timeout=WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_readers_of_a_dead_source_die_when_they_are_told_to(mount: Mount, number: signal.Signals) -> None:
    package = mount.path / "soft/v1"
    os.listdir(package)
    mount.tell("hold pack")
    readers = reading(READ_ALL, *(package / f"{number:03}" for number in range(FILES)))
    until(mount, FILES)

    readers.send_signal(number)

    # Python has a handler for Ctrl-C, which runs once a read of its main thread comes back.
    if number is not signal.SIGINT:
        readers.wait(WAIT_S)
    else:
        readers.kill()
        readers.wait(WAIT_S)
    until(mount, 0)
    assert "ERROR" not in mount.log()


@pytest.mark.parametrize("held", [Kind.PACK, Kind.MANIFEST])
def test_ctrl_c_ends_a_python_that_waits(
    repository: Repository, catalog: Catalog, tmp_path: Path, held: Kind
) -> None:
    read = "import sys; open(sys.argv[1]).read()"
    with mounted(repository.public, catalog, tmp_path, held=(held,)) as mount:
        job = subprocess.Popen(
            [sys.executable, "-c", read, mount.path / "soft/v1/003"], stderr=subprocess.PIPE, text=True
        )
        until(mount, 1)

        job.send_signal(signal.SIGINT)

        assert "KeyboardInterrupt" in job.communicate(timeout=WAIT_S)[1]
        until(mount, 0)


def test_a_signal_that_does_not_end_a_job_does_not_disturb_its_read(mount: Mount) -> None:
    program = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
os.write(1, b"begin\\n")
print(os.stat(sys.argv[1]).st_size, len(os.read(os.open(sys.argv[1], os.O_RDONLY), 10000)))
"""
    mount.tell("hold manifest")
    mount.tell("hold pack")
    job = reading(program, mount.path / "soft/v1/005")
    until(mount, 1)
    time.sleep(0.5)  # ten signals

    mount.tell("release")

    assert job.communicate(timeout=WAIT_S)[0] == "begin\n8192 8192\n"


def test_a_walk_gets_files_before_it_asks(mount: Mount, settings: MountSettings) -> None:
    package = mount.path / "soft/v1"
    names = sorted(name for name in os.listdir(package) if name.isdigit())
    for name in names[:20]:
        (package / name).read_bytes()
    end, read = time.monotonic() + WAIT_S, 0
    while time.monotonic() < end:
        # Each round reads a few more: sooner or later the process that pushes is up.
        before = mount.stats()["bytes_read"]
        for name in names[20 + read : 30 + read]:
            assert (package / name).read_bytes() == int(name).to_bytes(2, "big") * 4096
            time.sleep(0.01)
        if mount.stats()["bytes_read"] - before < 10 * 8192:
            return
        read = (read + 10) % (FILES - 40)
        if not read:
            Path("/proc/sys/vm/drop_caches").write_text("1\n")
    pytest.fail("no file was pushed")


def test_a_plain_users_mount_is_made_by_fusermount(
    repository: Repository, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "mount", mounting.by_fusermount)

    with mounted(repository.public, catalog, tmp_path) as mount:
        assert (mount.path / "soft/v1/below/leaf").read_text() == "leaf"
        shown = next(
            line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.path) in line
        )

    assert {"ro", "nosuid", "nodev"} <= set(shown.split()[3].split(","))
    assert shown.split()[2] == "fuse.torrentfs"


def test_requests_beyond_the_journal_wait_for_a_slot(
    repository: Repository, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Journal.create
    monkeypatch.setattr(Journal, "create", lambda _: make(4))
    with mounted(repository.public, catalog, tmp_path) as mount:
        package = mount.path / "soft/v1"
        os.listdir(package)
        mount.tell("hold pack")
        readers = reading(READ_ALL, *(package / f"{number:03}" for number in range(20)))
        until(mount, 4)

        mount.tell("release")

        assert len(readers.communicate(timeout=WAIT_S)[0].splitlines()) == 20
