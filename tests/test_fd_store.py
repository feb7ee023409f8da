"""What a keeper leaves with systemd lets mounts live through its own death.

The service manager here keeps the descriptors that a service sends it (sd_notify(3): FDSTORE=1), as systemd
does, and passes them when it starts the service again (sd_listen_fds(3)).
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, Site, await_true, command, torrentfs
from keepers import SYSTEMD

from torrentfs.daemon.mountpoint import is_mounted
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.root, pytest.mark.fuse]

DESCRIPTORS_MAX = 16
JOB = """
import os, sys
os.chdir(sys.argv[1])
file = os.open("data", os.O_RDONLY)
for line in sys.stdin:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    print(len(os.pread(file, 1 << 30, 0)), *sorted(os.listdir(".")), flush=True)
"""


class Manager:
    """A service manager with one service, `torrentfs mount MOUNTPOINT --foreground`."""

    def __init__(self, address: Path) -> None:
        self.store: dict[str, int] = {}
        self.said: list[str] = []
        self.process: subprocess.Popen[bytes]
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._ended = threading.Event()
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def start(self, *words: object) -> None:
        """Start the service, with what it left here, and return when it is ready."""
        self.said.clear()
        numbers = [str(number) for number in self.store.values()]
        shim = [sys.executable, "-I", "-S", "-c", SYSTEMD, str(len(numbers)), *numbers]
        self.process = subprocess.Popen(
            [*shim, *torrentfs("mount", *words, "--foreground")],
            pass_fds=[*self.store.values()],
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(self._address),
                "LISTEN_FDNAMES": ":".join(self.store),
            },
        )
        await_true(lambda: "READY=1" in self.said)

    def stop(self) -> int:
        """Stop the service as systemd does; return its exit code."""
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait(DEADLINE_S)
        self._ended.set()
        self._listening.join(DEADLINE_S)
        self._socket.close()
        for number in self.store.values():
            os.close(number)

    def _listen(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._socket], [], [], 0.05)[0]:
                continue
            data, descriptors, _, _ = socket.recv_fds(self._socket, 65_536, DESCRIPTORS_MAX)
            values = dict(line.split("=", 1) for line in data.decode().splitlines())
            name = values.get("FDNAME", "")
            if "FDSTOREREMOVE" in values:
                with suppress(KeyError):
                    os.close(self.store.pop(name))
            elif "FDSTORE" in values:
                # Were the name taken, systemd would keep both.
                assert name not in self.store
                [self.store[name]] = descriptors
            self.said += data.decode().splitlines()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, "native") as made:
        yield made


@pytest.fixture
def manager(site: Site) -> Iterator[Manager]:
    made = Manager(site.directory / "notify")
    yield made
    made.close()


@contextmanager
def job(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """Have a job in *directory*, with the file there open, that reads when it is told to."""
    words = [sys.executable, "-c", JOB, str(directory)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def look(process: "subprocess.Popen[str]") -> str:
    assert process.stdin
    assert process.stdout
    print(file=process.stdin, flush=True)
    return process.stdout.readline()


SEEN = f"{len(CONTENT)} data job\n"


def test_a_mount_lives_through_the_death_of_keeper_and_server(site: Site, manager: Manager) -> None:
    manager.start(site.mountpoint, *site.options)
    inode = site.data.stat().st_ino
    with job(site.mountpoint / "TEST/v1") as running:
        assert look(running) == SEEN
        for _ in range(3):
            site.kill_all()
            assert manager.process.wait(DEADLINE_S) == -signal.SIGKILL

            manager.start(site.mountpoint, *site.options)

            site.note()
            assert site.keeper == manager.process.pid
            assert look(running) == SEEN
    assert site.data.stat().st_ino == inode
    assert manager.stop() == 0
    site.assert_nothing_left()
    await_true(lambda: manager.store == {})


def test_a_mount_lives_through_the_death_of_its_keeper_alone(site: Site, manager: Manager) -> None:
    manager.start(site.mountpoint, *site.options)
    site.note()
    with job(site.mountpoint / "TEST/v1") as running:
        assert look(running) == SEEN
        manager.process.kill()
        manager.process.wait(DEADLINE_S)
        # It does not start a keeper: systemd does.
        site.wait_for_end()
        assert is_mounted(site.mountpoint)

        manager.start(site.mountpoint, *site.options)

        assert look(running) == SEEN
    site.note()
    assert site.keeper == manager.process.pid
    assert manager.stop() == 0
    site.assert_nothing_left()


def test_the_server_alone_is_the_keepers_to_replace(site: Site, manager: Manager) -> None:
    manager.start(site.mountpoint, *site.options)
    with job(site.mountpoint / "TEST/v1") as running:
        assert look(running) == SEEN

        site.kill_server()

        assert look(running) == SEEN
        assert site.keeper == manager.process.pid
        command("reload", site.mountpoint)
        assert look(running) == SEEN


def test_what_was_asked_while_nobody_served_is_answered(site: Site, manager: Manager) -> None:
    manager.start(site.mountpoint, *site.options)
    site.kill_all()
    manager.process.wait(DEADLINE_S)
    words = ["dd", f"if={site.data}", "bs=1M", "iflag=direct,fullblock", "status=none"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as reader:
        with subprocess.Popen(torrentfs("stats", site.mountpoint), stdout=subprocess.PIPE) as asker:
            manager.start(site.mountpoint, *site.options)

            assert reader.communicate(timeout=DEADLINE_S)[0] == CONTENT
            assert b"TEST/v1" in asker.communicate(timeout=DEADLINE_S)[0]
        assert (reader.returncode, asker.returncode) == (0, 0)


def test_other_mounts_of_the_service_live_on_too(site: Site, manager: Manager) -> None:
    bob = Repository.create(site.directory / "bob", "bob")
    publish(bob, site.directory / "source", "TEST/v1", progress=None)
    other = site.place("other")
    manager.start(site.mountpoint, *site.options)
    site.mount("--repository", bob.public.as_uri(), "--trust", bob.public / "root.json", at=other)
    with job(site.mountpoint / "TEST/v1") as first, job(other / "TEST/v1") as second:
        assert look(first) == look(second) == SEEN
        site.kill_all()
        manager.process.wait(DEADLINE_S)

        manager.start(site.mountpoint, *site.options)

        assert look(first) == look(second) == SEEN
    assert site.stats()["pid"] == site.stats(other)["pid"]
    assert manager.stop() == 0
    site.assert_nothing_left()
    await_true(lambda: manager.store == {})


def test_a_mount_that_was_taken_away_meanwhile_has_ended(site: Site, manager: Manager) -> None:
    manager.start(site.mountpoint, *site.options)
    site.kill_all()
    manager.process.wait(DEADLINE_S)
    subprocess.run(["umount", "-l", site.mountpoint], timeout=DEADLINE_S, check=True)

    manager.start(site.mountpoint, *site.options)

    assert manager.process.wait(DEADLINE_S) == 0
    site.assert_nothing_left()
    await_true(lambda: manager.store == {})
    manager.start(site.mountpoint, *site.options)
    assert site.data.read_bytes() == CONTENT
    assert manager.stop() == 0


def test_new_settings_are_those_of_the_new_start(site: Site, manager: Manager) -> None:
    manager.start(site.mountpoint, *site.options, "--set", "mount.owner_uid=7")
    assert (site.mountpoint / "TEST/v1/job").stat().st_uid == 7
    site.kill_all()
    manager.process.wait(DEADLINE_S)

    manager.start(site.mountpoint, *site.options, "--set", "mount.owner_uid=8")

    assert site.data.stat().st_uid == 8


def test_what_is_stopped_leaves_nothing_in_the_store(site: Site, manager: Manager) -> None:
    manager.start(site.mountpoint, *site.options)
    kinds = sorted(name.rpartition(".")[2] for name in manager.store)

    command("umount", site.mountpoint)

    assert manager.process.wait(DEADLINE_S) == 0
    assert kinds == ["catalog", "config", "control", "control", "fuse", "journal"]
    await_true(lambda: manager.store == {})
    site.assert_nothing_left()
