"""Tests of swarms that keep to their site: each node a network namespace, all on one switch."""

import json
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from contrib.grid import run
from contrib.lab import Host, lan
from torrentfs.repository.metainfo import PIECE_LENGTH, Hasher, Metainfo

pytestmark = [pytest.mark.root, pytest.mark.needs("ip")]

DEADLINE_S = 75
"""Peers tell of each other once a minute."""
PORT = 6881
PIECES = 12
WORKER = Path(__file__).with_name("swarm_worker.py")
OURS = ["192.0.2.0/24", "fd99::/64"]
RATE = 1_000_000


class Worker:
    """A running swarm_worker.py."""

    def __init__(self, stack: ExitStack, at: Host, files: "Files", listen: str = "", **site: Any) -> None:
        listen = listen or f"{at.four}:{PORT}"
        words = [listen, files.torrent, files.metainfo.info_hash.hex(), files.whole, json.dumps(site)]
        self._process = stack.enter_context(
            subprocess.Popen(
                [*at.inside, sys.executable, WORKER, *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        self.at = at
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        stack.callback(reader.join)
        stack.callback(self._process.kill)
        self.port: int = self.until("listening")["listening"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))

    def do(self, *words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")

    def until(self, kind: str) -> dict[str, Any]:
        """Return the next event of a *kind*."""
        while kind not in (event := self._events.get(timeout=DEADLINE_S)):
            pass
        return event

    def asked(self, word: str, kind: str) -> dict[str, Any]:
        self.do(word)
        return self.until(kind)

    def said(self) -> list[dict[str, Any]]:
        """Return what has happened and was not looked at."""
        events = []
        while not self._events.empty():
            events.append(self._events.get())
        return events


class Files:
    """A torrent, whole, in files that all namespaces see."""

    def __init__(self, directory: Path) -> None:
        content = random.Random(3).randbytes(PIECES * PIECE_LENGTH)
        hasher = Hasher()
        hasher.update(content)
        self.metainfo: Metainfo = hasher.finish(".tar.zst")
        self.whole, self.torrent = directory / "whole", directory / "torrent"
        self.whole.write_bytes(content)
        self.torrent.write_bytes(self.metainfo.torrent())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def hosts(stack: ExitStack, *fours: str) -> list[Host]:
    return stack.enter_context(lan(*fours))


def dials_accepted(at: Host) -> int:
    """Return how many TCP connections from others a host's kernel has answered (proc(5), net/snmp)."""
    done = run([*at.inside, "cat", "/proc/net/snmp"])
    heads, values = (line.split() for line in done.splitlines() if line.startswith("Tcp:"))
    return int(values[heads.index("PassiveOpens")])


def sockets(at: Host) -> list[str]:
    """Return the TCP and UDP sockets in a host, as lines of /proc/net."""
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        found += run([*at.inside, "cat", f"/proc/net/{table}"]).splitlines()[1:]
    return found


def test_neighbours_find_each_other_by_multicast(stack: ExitStack, files: Files) -> None:
    first, second = hosts(stack, "192.0.2.1", "192.0.2.2")
    seeder = Worker(stack, first, files, networks=OURS)
    seeder.do("seed")
    fetcher = Worker(stack, second, files, networks=OURS)

    fetcher.do("fetch")

    print("found by multicast: first piece after", fetcher.until("piece")["ms"], "ms")


def test_one_that_comes_later_is_found_too(stack: ExitStack, files: Files) -> None:
    first, second = hosts(stack, "192.0.2.1", "192.0.2.2")
    fetcher = Worker(stack, second, files, networks=OURS)
    fetcher.do("fetch")
    seeder = Worker(stack, first, files, networks=OURS)

    seeder.do("seed")

    fetcher.until("piece")


def test_neighbours_tell_each_other_of_others(stack: ExitStack, files: Files) -> None:
    first, second, third = hosts(stack, "192.0.2.1", "192.0.2.2", "192.0.2.3")
    quiet = {"networks": OURS, "local_discovery": False}
    middle = Worker(stack, first, files, **quiet)
    middle.do("fetch")
    for at in (second, third):
        Worker(stack, at, files, **quiet).do("fetch", f"{first.four}:{PORT}")

    connected = 0
    while connected < 2:
        connected = middle.until("connected")["connected"]
    others: list[str] = []
    deadline = time.monotonic() + 100  # peer exchange has its own pace: each minute (BEP 11)
    last = Worker(stack, third, files, listen=f"{third.four}:{PORT + 1}", **quiet)
    last.do("fetch", f"{first.four}:{PORT}")
    while second.four not in others and time.monotonic() < deadline:
        others = last.asked("company", "own")["others"]
        time.sleep(0.2)

    assert second.four in others


def test_who_is_outside_is_neither_dialled_nor_accepted(stack: ExitStack, files: Files) -> None:
    inside, outside, near = hosts(stack, "192.0.2.1", "198.51.100.1", "192.0.2.2")
    fetcher = Worker(stack, inside, files, networks=["192.0.2.0/24"])
    fetcher.do("fetch")
    # Unbounded itself, looking for neighbours everywhere, and told of one.
    stranger = Worker(stack, outside, files, networks=["0.0.0.0/0", "::/0"])
    stranger.do("seed")
    nosy = Worker(stack, outside, files, listen=f"{outside.four}:{PORT + 1}")
    nosy.do("fetch", f"{inside.four}:{PORT}")

    # Somebody whom it may have tells when it has done what it would do.
    friend = Worker(stack, near, files, networks=["192.0.2.0/24"])
    friend.do("seed")
    fetcher.until("piece")
    assert near.four in fetcher.asked("company", "own")["others"]
    time.sleep(1.5)  # and libtorrent dials once a second

    assert outside.four not in fetcher.asked("company", "own")["others"]
    assert dials_accepted(outside) == 0
    assert not any("piece" in event for event in nosy.said())


def test_a_seeder_outside_that_is_told_of_is_reached(stack: ExitStack, files: Files) -> None:
    inside, outside = hosts(stack, "192.0.2.1", "198.51.100.1")
    Worker(stack, outside, files).do("seed")
    fetcher = Worker(stack, inside, files, networks=["192.0.2.0/24"])

    fetcher.do("fetch", f"{outside.four}:{PORT}")

    fetcher.until("piece")
    assert fetcher.asked("company", "own")["others"] == []


def test_nodes_know_each_other_and_themselves_and_seeders_are_no_neighbours(
    stack: ExitStack, files: Files
) -> None:
    box, first, second = hosts(stack, "192.0.2.9", "192.0.2.1", "192.0.2.2")
    Worker(stack, box, files, networks=OURS).do("seed")
    site = {"networks": OURS, "seeders": [f"{box.four}:{PORT}"]}
    workers = [Worker(stack, at, files, **site) for at in (first, second)]
    for worker in workers:
        worker.do("fetch", f"{box.four}:{PORT}")

    for worker, other in zip(workers, reversed(workers), strict=True):
        deadline = time.monotonic() + DEADLINE_S
        company: dict[str, Any] = {}
        while other.at.four not in company.get("others", ()) and time.monotonic() < deadline:
            company = worker.asked("company", "own")
        assert (company["own"], company["others"]) == (worker.at.four, [other.at.four])


@pytest.mark.parametrize(
    ("site", "bounded"),
    [
        ({"networks": OURS, "within": {"download": RATE}}, True),
        ({"networks": OURS, "beyond": {"download": RATE}}, False),
        ({"networks": ["203.0.113.0/24"], "beyond": {"download": RATE}}, True),
        ({"networks": ["203.0.113.0/24"], "within": {"download": RATE}}, False),
    ],
)
def test_rates_bound_peers_within_and_beyond_apart(
    stack: ExitStack, files: Files, site: dict[str, Any], bounded: bool
) -> None:
    first, second = hosts(stack, "192.0.2.1", "192.0.2.2")
    Worker(stack, first, files).do("seed")
    fetcher = Worker(stack, second, files, **site)

    fetcher.do("fetch", f"{first.four}:{PORT}")
    took_s = max(fetcher.until("piece")["ms"] for _ in range(PIECES)) / 1000

    # Never faster, whatever the machine; unbounded, even a slow machine takes a fraction of that.
    assert (took_s > 0.7 * PIECES * PIECE_LENGTH / RATE) is bounded


@pytest.mark.parametrize("trackers", [[], ["http://192.0.2.1:6969/announce"]])
def test_without_bittorrent_there_is_no_socket(
    stack: ExitStack, files: Files, trackers: Sequence[str]
) -> None:
    first, second = hosts(stack, "192.0.2.1", "192.0.2.2")
    Worker(stack, first, files, networks=OURS).do("seed")
    fetcher = Worker(stack, second, files, networks=OURS, trackers=trackers, install_method="http")

    fetcher.do("fetch", f"{first.four}:{PORT}")
    fetcher.asked("company", "own")
    time.sleep(1.5)  # libtorrent does things once a second

    assert fetcher.port == 0
    assert sockets(second) == []
    assert not any("connected" in event for event in fetcher.said())
