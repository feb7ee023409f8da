"""Tests of neighbours that find each other by a tracker: real sessions, each host a network namespace.

The seeder's tracker, and Debian's opentracker with the whitelist that we print.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from test_seed import publish_bytes

from contrib.grid import GridError, process, run
from contrib.lab import Host, lan
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.root, pytest.mark.needs("ip")]

DEADLINE_S = 15
HTTP_PORT, TRACKER_PORT = 8080, 6969
TORRENTFS = [sys.executable, "-m", "torrentfs"]
WORKER = Path(__file__).with_name("tracker_worker.py")


class Worker:
    """A running tracker_worker.py."""

    def __init__(self, stack: ExitStack, at: Host, address: str, pack: Path, tracker: str) -> None:
        words = [
            address,
            str(pack).replace(".tar.zst", ".torrent"),
            pack.name.partition(".")[0],
            str(pack),
            tracker,
        ]
        self._process = stack.enter_context(
            subprocess.Popen(
                [*at.inside, sys.executable, WORKER, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        stack.callback(reader.join)
        stack.callback(self._process.kill)
        self.port: int = self.until("listening")[-1]["listening"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))

    def do(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")

    def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Return what happens up to the first event of one of *kinds*."""
        events = [self._events.get(timeout=DEADLINE_S)]
        while not any(kind in events[-1] for kind in kinds):
            events.append(self._events.get(timeout=DEADLINE_S))
        return events


class Site:
    """A seeder's host and two workers' with the repository of the seeder."""

    def __init__(self, stack: ExitStack, directory: Path, hosts: list[Host]) -> None:
        self.seeder, self.first, self.second = hosts
        self.directory = directory
        self._stack = stack
        repository = Repository.create(directory / "repository", "alice")
        publish_bytes(repository, "data/a")
        (pack,) = (repository.public / "packs").glob("*.tar.zst")
        self.repository = repository.directory
        self.whitelist = directory / "opentracker" / "whitelist.txt"
        self.whitelist.parent.mkdir()
        self.whitelist.touch()
        # Not the repository's own: those who fetch put theirs beside it.
        self.pack = directory / pack.name
        shutil.copy(pack, self.pack)
        shutil.copy(str(pack).replace(".tar.zst", ".torrent"), directory)

    def worker(self, at: Host, tracker: str, *, six: bool = False) -> Worker:
        return Worker(self._stack, at, at.six if six else at.four, self.pack, tracker)

    def run_seeder(self, *networks: str, listen: str = "0.0.0.0:6881") -> None:
        options = ["--listen", listen, "--http", f"[::]:{HTTP_PORT}", "--tracker"]
        sites = [word for network in networks for word in ("--site", network)]
        self._run([*TORRENTFS, "seed", str(self.repository), *options, *sites], HTTP_PORT)

    def run_opentracker(self) -> int:
        """Run Debian's tracker; started by root, it shuts itself in, as nobody. Return its process."""
        options = ["-i", self.seeder.four, "-p", str(TRACKER_PORT)]
        options += ["-d", str(self.whitelist.parent), "-w", self.whitelist.name]
        return self._run(["opentracker", *options], TRACKER_PORT)

    def write_whitelist(self) -> None:
        self.whitelist.write_text(run([*TORRENTFS, "list", str(self.repository), "--whitelist"]))

    def _run(self, command: list[str], port: int) -> int:
        """Run *command* on the seeder's host, until the end; return when it listens at *port*."""
        log = self.directory / f"{port}.log"
        running = self._stack.enter_context(process([*self.seeder.inside, *command], log))
        knock = f"import socket; socket.create_connection(({self.seeder.four!r}, {port}), 5).close()"
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                run([*self.seeder.inside, sys.executable, "-c", knock])
                return running.pid
            except GridError:
                assert running.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """What is to end with the test; control sockets are its own."""
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))
    with ExitStack() as made:
        yield made


@pytest.fixture
def site(stack: ExitStack, tmp_path: Path) -> Site:
    """Three hosts of one network, none of them knows of another."""
    return Site(stack, tmp_path, stack.enter_context(lan("10.99.0.1", "10.99.0.2", "10.99.0.3")))


def connected(events: list[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(event["to"][0], event["to"][1]) for event in events if "connected" in event}


@pytest.mark.parametrize("six", [False, True])
def test_neighbours_find_each_other_by_the_seeders_tracker(site: Site, six: bool) -> None:
    # At IPv4 the seeder is a peer as well; at IPv6 it is not, and the neighbour alone has the piece.
    site.run_seeder("10.99.0.0/24", "fd99::/64")
    host = f"[{site.seeder.six}]" if six else site.seeder.four
    tracker = f"http://{host}:{HTTP_PORT}/announce"
    first, second = (site.worker(at, tracker, six=six) for at in (site.first, site.second))
    first.do("seed")
    first.until("announced")

    second.do("fetch")
    events = second.until("piece")

    neighbour = (site.first.six if six else site.first.four, first.port)
    seeders = set() if six else {(site.seeder.four, 6881)}
    assert [event["peers"] for event in events if "announced" in event] == [1 + len(seeders)]
    assert connected(events) == {neighbour, *seeders}


@pytest.mark.needs("opentracker")
def test_neighbours_find_each_other_by_debians_tracker_with_our_whitelist(site: Site) -> None:
    site.write_whitelist()
    site.run_opentracker()
    tracker = f"http://{site.seeder.four}:{TRACKER_PORT}/announce"
    first, second = (site.worker(at, tracker) for at in (site.first, site.second))
    first.do("seed")
    first.until("announced")

    second.do("fetch")
    events = second.until("piece")

    assert connected(events) >= {(site.first.four, first.port)}


@pytest.mark.needs("opentracker")
def test_debians_tracker_reads_the_whitelist_anew_when_told_to(site: Site) -> None:
    tracker = site.run_opentracker()
    worker = site.worker(site.first, f"http://{site.seeder.four}:{TRACKER_PORT}/announce")
    worker.do("seed")
    before = worker.until("announced", "refused")[-1]
    worker.do("remove")
    site.write_whitelist()

    os.kill(tracker, signal.SIGHUP)
    # It reads in a thread of its own, and tells nobody when it has.
    deadline = time.monotonic() + DEADLINE_S
    while True:
        worker.do("seed")
        after = worker.until("announced", "refused")[-1]
        if "announced" in after or time.monotonic() > deadline:
            break
        worker.do("remove")

    assert "refused" in before
    assert "announced" in after


def test_worker_of_another_network_is_refused_and_not_handed_on(site: Site) -> None:
    site.run_seeder("10.99.0.2/32", "fd99::/64")
    tracker = f"http://{site.seeder.four}:{HTTP_PORT}/announce"
    first, second = (site.worker(at, tracker) for at in (site.first, site.second))
    second.do("seed")
    refused = second.until("refused", "announced")[-1]

    first.do("fetch")
    events = first.until("piece")

    assert "not of the networks" in refused["why"]
    assert connected(events) == {(site.seeder.four, 6881)}


def test_who_leaves_is_not_handed_on(site: Site) -> None:
    site.run_seeder("10.99.0.0/24")
    tracker = f"http://{site.seeder.four}:{HTTP_PORT}/announce"
    first, second = (site.worker(at, tracker) for at in (site.first, site.second))
    first.do("fetch")
    first.until("piece")
    first.do("remove")

    def listed() -> int:
        answer = run([*TORRENTFS, "stats", str(site.repository), "--json"])
        count: int = json.loads(answer)["tracker"]["peers"]
        return count

    deadline = time.monotonic() + DEADLINE_S
    while listed():
        assert time.monotonic() < deadline
    second.do("fetch")

    assert connected(second.until("piece")) == {(site.seeder.four, 6881)}


def test_seeder_at_a_public_address_may_name_private_ones(stack: ExitStack, tmp_path: Path) -> None:
    hosts = stack.enter_context(lan("198.18.0.1", "10.99.0.2", "10.99.0.3"))
    site = Site(stack, tmp_path, hosts)
    site.run_seeder("10.99.0.0/24", listen="127.0.0.1:6881")
    tracker = f"http://{site.seeder.four}:{HTTP_PORT}/announce"
    first, second = (site.worker(at, tracker) for at in (site.first, site.second))
    first.do("seed")
    first.until("announced")

    second.do("fetch")

    assert (site.first.four, first.port) in connected(second.until("piece"))
