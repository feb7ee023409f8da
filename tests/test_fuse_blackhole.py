"""This module tests a mount whose source is silent under many readers: others are served, readers can die.

Each reader is a process of its own. The figures behind it are printed by contrib.bench.blackhole.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounts import Mount, mounted

from torrentfs.repository.metainfo import Kind
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.fuse, pytest.mark.root]

READERS = 200
WARM = 50
WAIT_S = 50.0
"""Longer than anything here takes: who waits this long has hung. The breaker comes later."""

LOOK = """
import json, os, sys
hot, dark = sys.argv[1:]
def read(path):
    file = os.open(path, os.O_RDONLY)
    shown = os.read(file, 1 << 20)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    return len(shown)
def absent(path):
    try: os.stat(path)
    except FileNotFoundError: return True
names = sorted(os.listdir(hot))
paths = [os.path.join(hot, name) for name in names]
print("ready", flush=True)
for line in sys.stdin:
    shown = {
        "listed": [len(os.listdir(hot)), len(os.listdir(dark))],
        "sizes": [os.stat(path).st_size for path in paths],
        "read": [read(path) for path in paths],
        "linked": os.readlink(os.path.join(os.path.dirname(hot), "link")),
        "absent": [absent(path + line.strip()) for path in paths],
        "new": [os.stat(os.path.join(dark, name)).st_size for name in os.listdir(dark)[-5:]],
    }
    print(json.dumps(shown), flush=True)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    made = Repository.create(directory / "alice", "alice")
    dark, hot = directory / "dark", directory / "hot"
    dark.mkdir()
    for number in range(READERS):
        (dark / f"{number:03}").write_bytes(os.urandom(8192))
    (hot / "files").mkdir(parents=True)
    for number in range(WARM):
        (hot / f"files/{number:02}").write_bytes(os.urandom(number * 100))
    (hot / "link").symlink_to("files/01")
    publish(made, dark, "dark/v1")
    publish(made, dark, "unknown/v1")
    publish(made, hot, "hot/v1")
    return made


@contextmanager
def readers_of(paths: Sequence[Path]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Start a process for each path that reads it; kill those that are left."""
    made = [subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) for path in paths]
    try:
        yield made
    finally:
        for process in made:
            process.kill()
        for process in made:
            process.wait(WAIT_S)


@contextmanager
def onlooker(hot: Path, dark: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that looks at everything which needs no source, for each line that it gets."""
    made = subprocess.Popen(
        [sys.executable, "-S", "-c", LOOK, hot, dark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert made.stdin and made.stdout
    try:
        assert made.stdout.readline() == "ready\n"
        yield made
    finally:
        made.kill()
        made.communicate(timeout=WAIT_S)


def ask(looking: "subprocess.Popen[str]", word: str) -> dict[str, object]:
    """Have everything looked at; return what was seen."""
    assert looking.stdin and looking.stdout
    looking.stdin.write(word + "\n")
    looking.stdin.flush()
    shown = json.loads(looking.stdout.readline())
    assert isinstance(shown, dict)
    return shown


def until(mount: Mount, waiting: int) -> None:
    """Return when so many requests wait."""
    end = time.monotonic() + WAIT_S
    while mount.stats()["waiting"] != waiting:
        assert time.monotonic() < end, mount.stats()
        time.sleep(0.02)


EXPECTED = {
    "listed": [WARM, READERS],
    "sizes": [number * 100 for number in range(WARM)],
    "read": [number * 100 for number in range(WARM)],
    "linked": "files/01",
    "absent": [True] * WARM,
    "new": [8192] * 5,
}


@pytest.fixture
def mount(repository: Repository, tmp_path: Path) -> Iterator[Mount]:
    with mounted(repository.public, repository.catalog(), tmp_path, breaker_s=4 * WAIT_S) as made:
        yield made


# Who waits for bytes waits for a page; who waits for a name, for our very answer: only we can let go of it.
@pytest.mark.parametrize(("held", "package"), [(Kind.PACK, "dark/v1"), (Kind.MANIFEST, "unknown/v1")])
def test_readers_of_a_silent_source_hold_nobody_up_and_die_when_killed(
    mount: Mount, held: Kind, package: str
) -> None:
    with onlooker(mount.path / "hot/v1/files", mount.path / "dark/v1") as looking:
        assert ask(looking, "before") == EXPECTED
        mount.tell(f"hold {held.value}")
        with readers_of([mount.path / package / f"{number:03}" for number in range(READERS)]) as readers:
            until(mount, READERS)
            read = mount.stats()["bytes_read"]

            # Pages are dropped each time, and absent names are new: the server is asked, unless it pushed.
            for turn in range(5):
                assert ask(looking, f"turn {turn}") == EXPECTED

            assert mount.stats()["bytes_read"] > read
            assert mount.stats()["waiting"] == READERS
            assert [process.poll() for process in readers] == [None] * READERS

            for process in readers:
                process.kill()

            assert {process.wait(WAIT_S) for process in readers} == {-signal.SIGKILL}
            until(mount, 0)
        assert ask(looking, "after") == EXPECTED
    assert mount.stats()["errors"] == 0
    assert "ERROR" not in mount.log()


@pytest.mark.parametrize("held", [Kind.PACK, Kind.MANIFEST])
def test_readers_of_a_silent_source_are_answered_once_it_speaks(mount: Mount, held: Kind) -> None:
    mount.tell(f"hold {held.value}")
    with readers_of([mount.path / "dark/v1" / f"{number:03}" for number in range(READERS)]) as readers:
        until(mount, READERS)

        mount.tell("release")

        assert {process.wait(WAIT_S) for process in readers} == {0}
        until(mount, 0)
