"""Sites of real hosts and mounts: who speaks with whom, by packet counters, and jobs that faults befall."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from contrib.crew import HTTP_PORT, Crew, peer, url
from contrib.grid import Node, Repository, await_true, end_processes, process
from contrib.lab import Distance, Host, Laboratory, Site

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.needs("ip")]

FILES, LENGTH = 24, 300_000
SLOW = Distance(0.014, 2_000_000)
"""The package takes 3.6 s: time for something to happen in the middle."""
FAST = Distance(0.014, 12_500_000)
DEADLINE_S = 90
OUTAGE_S = 30

GARBAGE = """
import os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        wanted = self.headers.get("Range", "")
        first, last = map(int, wanted.removeprefix("bytes=").split("-")) if wanted else (0, 999)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{os.environ['LENGTH']}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(os.urandom(last - first + 1))

ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("site")
    source = directory / "source"
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:02}").write_bytes(random.Random(number).randbytes(LENGTH))
    made = Repository(directory / "repository")
    made.create("alice")
    made.publish(source, "PKG/v1")
    return made


@pytest.fixture(scope="module")
def digest() -> str:
    """The digest of all files of the package, one after the other."""
    whole = hashlib.sha256()
    for number in range(FILES):
        whole.update(random.Random(number).randbytes(LENGTH))
    return whole.hexdigest()


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ExitStack]:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))
    with ExitStack() as everything:
        yield everything


@pytest.fixture
def crew(repository: Repository, tmp_path: Path) -> Crew:
    return Crew(repository, tmp_path)


class Job:
    """A job that reads the whole package, file by file."""

    def __init__(self, stack: ExitStack, node: Node) -> None:
        words = ["sh", "-c", 'cat "$0"/PKG/v1/* | sha256sum', str(node.mountpoint)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)

    def digest(self) -> str:
        """Return what it printed, once it has ended."""
        told, complaints = self._process.communicate(timeout=DEADLINE_S)
        assert not complaints
        return told.split()[0]

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None


def networks(site: Site) -> str:
    return f'node.site.networks=["{site.network}"]'


def trackers(host: Host) -> str:
    return f'node.site.trackers=["{url(host)}/announce"]'


def through(box: Host, site: Site) -> list[str]:
    """Return the settings of workers of *site* that has a *box*."""
    return [networks(site), f'node.site.seeders=["{peer(box)}"]', f'node.site.mirrors=["{url(box)}"]']


def cached(node: Node) -> int:
    return int(node.stats()["bytes"]["cached"])


# Who speaks with whom


@pytest.mark.parametrize("is_bounded", [True, False], ids=["sites", "no sites"])
def test_workers_of_two_sites_exchange_not_one_packet(
    stack: ExitStack, crew: Crew, digest: str, tmp_path: Path, is_bounded: bool
) -> None:
    """All of them are told of all others: by one tracker, and by name."""
    laboratory = Laboratory(stack, [2, 2], FAST, tmp_path)
    first, second = laboratory.sites
    stack.enter_context(
        crew.origin(laboratory.origin, "--tracker", "--site", first.network, "--site", second.network)
    )
    laboratory.forbid(first.network, second.network)
    laboratory.forbid(second.network, first.network)
    everybody = [host for site in laboratory.sites for host in site.hosts]
    nodes = []
    for site in laboratory.sites:
        for host in site.hosts:
            settings = [trackers(laboratory.origin), *([networks(site)] if is_bounded else [])]
            nodes.append(stack.enter_context(crew.worker(host, settings, laboratory.origin)))
    before = laboratory.lost_packets()
    for node in nodes:
        node.mount()

    jobs = [Job(stack, node) for node in nodes]

    assert [job.digest() for job in jobs] == [digest] * len(everybody)
    if is_bounded:
        assert laboratory.lost_packets() == before
        assert all(node.stats()["sources"]["upstream"] == 0 for node in nodes)
        assert sum(node.stats()["peers"] for node in nodes) > 0, "they found nobody at all"
    else:
        assert laboratory.lost_packets() > before, "this test cannot fail"


def test_workers_that_may_reach_only_the_box_send_the_origin_not_one_packet(
    stack: ExitStack, crew: Crew, digest: str, tmp_path: Path
) -> None:
    laboratory = Laboratory(stack, [3], FAST, tmp_path)
    [site] = laboratory.sites
    box, *workers = site.hosts
    top = laboratory.origin.four
    stack.enter_context(crew.origin(laboratory.origin))
    laboratory.forbid(site.network, top)
    laboratory.allow(box.four, top)
    stack.enter_context(crew.box(box, [site.network], laboratory.origin))
    nodes = [
        stack.enter_context(crew.worker(host, through(box, site), laboratory.origin)) for host in workers
    ]
    before = laboratory.lost_packets()
    for node in nodes:
        node.mount()

    jobs = [Job(stack, node) for node in nodes]

    assert [job.digest() for job in jobs] == [digest, digest]
    assert laboratory.lost_packets() == before, [node.stats()["sources"] for node in nodes]
    # Nothing was fetched twice: packets have headers, and there is the catalog.
    assert laboratory.wide_area_bytes() < 1.05 * FILES * LENGTH


# What befalls jobs


def test_the_origin_goes_when_neighbours_have_all(
    stack: ExitStack, crew: Crew, digest: str, tmp_path: Path
) -> None:
    laboratory = Laboratory(stack, [3], FAST, tmp_path)
    [site] = laboratory.sites
    origin = stack.enter_context(crew.origin(laboratory.origin))
    nodes = [
        stack.enter_context(crew.worker(host, [networks(site)], laboratory.origin)) for host in site.hosts
    ]
    for node in nodes:
        node.mount()
    assert Job(stack, nodes[0]).digest() == digest
    jobs = [Job(stack, node) for node in nodes[1:]]
    await_true(lambda: cached(nodes[1]) > LENGTH, "nothing came")

    origin.kill()

    assert [job.digest() for job in jobs] == [digest, digest]
    assert cached(nodes[1]) == cached(nodes[0])


def die(nodes: Sequence[Node]) -> None:
    """Kill servers and keepers, and take the dead mounts away."""
    for node in nodes:
        os.kill(node.keeper, signal.SIGSTOP)
        end_processes(node.processes)


Fault = Callable[[Laboratory, Sequence[Node], "subprocess.Popen[bytes]"], None]


def silence(laboratory: Laboratory, nodes: Sequence[Node], _: object) -> None:
    for host in laboratory.sites[0].hosts[-len(nodes) + 1 :]:
        laboratory.silence(laboratory.sites[0], host)


FAULTS: dict[str, Fault] = {
    "the box is killed": lambda laboratory, nodes, box: box.kill(),
    "the box falls silent": lambda laboratory, nodes, box: laboratory.silence(
        laboratory.sites[0], laboratory.sites[0].hosts[0]
    ),
    "half of the workers are killed": lambda laboratory, nodes, box: die(nodes[len(nodes) // 2 :]),
    "all neighbours fall silent": silence,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_ends_right_when(stack: ExitStack, crew: Crew, digest: str, tmp_path: Path, fault: str) -> None:
    has_box = "box" in fault
    laboratory = Laboratory(stack, [4 + has_box], SLOW, tmp_path)
    [site] = laboratory.sites
    hosts = site.hosts[has_box:]
    seeder = stack.enter_context(crew.origin(laboratory.origin))
    if has_box:
        seeder = stack.enter_context(crew.box(site.hosts[0], [site.network], laboratory.origin))
    settings = through(site.hosts[0], site) if has_box else [networks(site)]
    nodes = [stack.enter_context(crew.worker(host, settings, laboratory.origin)) for host in hosts]
    for node in nodes:
        node.mount()
    jobs = [Job(stack, node) for node in nodes]
    await_true(lambda: cached(nodes[0]) > FILES * LENGTH / 4, "nothing came")
    assert not jobs[0].is_over

    FAULTS[fault](laboratory, nodes, seeder)

    survivors = {"half of the workers are killed": 2}.get(fault, 1 if "neighbours" in fault else 4)
    assert [job.digest() for job in jobs[:survivors]] == [digest] * survivors


def test_a_mirror_that_sends_garbage_is_put_aside(
    stack: ExitStack, crew: Crew, digest: str, tmp_path: Path, repository: Repository
) -> None:
    laboratory = Laboratory(stack, [2], FAST, tmp_path)
    [site] = laboratory.sites
    liar, host = site.hosts
    stack.enter_context(crew.origin(laboratory.origin))
    [pack] = (repository.directory / "public" / "packs").glob("*.tar.zst")
    words = [*liar.inside, "env", f"LENGTH={pack.stat().st_size}", sys.executable, "-c", GARBAGE]
    stack.enter_context(process([*words, liar.four, str(HTTP_PORT)], tmp_path / "liar.log"))
    node = stack.enter_context(
        crew.worker(host, [networks(site), f'node.site.mirrors=["{url(liar)}"]'], laboratory.origin)
    )
    node.mount()

    assert Job(stack, node).digest() == digest
    record = node.stats()
    assert record["sources"]["site_mirrors"] == 0
    assert record["failed_pieces"] + len(record["sources"]["aside"]) > 0


def test_a_tracker_that_goes_away_is_not_missed(
    stack: ExitStack, crew: Crew, digest: str, tmp_path: Path
) -> None:
    """Who found each other by it, and by nothing else, stay together."""
    laboratory = Laboratory(stack, [3], SLOW, tmp_path)
    [site] = laboratory.sites
    box, *workers = site.hosts
    stack.enter_context(crew.origin(laboratory.origin))
    tracker = stack.enter_context(
        crew.box(box, [site.network], laboratory.origin, "[seed.tracker]\nenabled = true\n")
    )
    settings = [
        *through(box, site),
        trackers(box),
        "node.site.local_discovery=false",
        "node.site.peer_exchange=false",
    ]
    nodes = [stack.enter_context(crew.worker(host, settings, laboratory.origin)) for host in workers]
    for node in nodes:
        node.mount()
    jobs = [Job(stack, node) for node in nodes]
    await_true(lambda: cached(nodes[0]) > FILES * LENGTH / 4, "nothing came")
    await_true(lambda: nodes[0].stats()["peers"] > 2, "they found only the box")

    tracker.kill()

    assert [job.digest() for job in jobs] == [digest, digest]


def test_jobs_outlive_a_network_that_is_gone_for_half_a_minute(
    stack: ExitStack, crew: Crew, digest: str, tmp_path: Path
) -> None:
    laboratory = Laboratory(stack, [2], SLOW, tmp_path)
    [site] = laboratory.sites
    stack.enter_context(crew.origin(laboratory.origin))
    nodes = [
        stack.enter_context(crew.worker(host, [networks(site)], laboratory.origin)) for host in site.hosts
    ]
    for node in nodes:
        node.mount()
    jobs = [Job(stack, node) for node in nodes]
    await_true(lambda: cached(nodes[0]) > FILES * LENGTH / 4, "nothing came")

    laboratory.forbid("all", laboratory.origin.four)
    for host in site.hosts:
        laboratory.silence(site, host)
    time.sleep(OUTAGE_S)
    assert not any(job.is_over for job in jobs)
    for host in site.hosts:
        laboratory.wake(site, host)
    laboratory.permit("all", laboratory.origin.four)

    assert [job.digest() for job in jobs] == [digest, digest]
