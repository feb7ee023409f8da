"""Jobs read while their server is killed a hundred times and replaced twenty: not one error, the same bytes.

Three jobs at once: checksums over 20,000 files whose pages are dropped again and again, a C program that uses
the tree at random, and readers of a file that comes from a slow web server, so that at any instant cold reads
are in flight. The longest stalls are printed: `pytest -s`, or the summary of a failure.
"""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import c_jobs
import daemons
import pytest
from daemons import DEADLINE_S, Site, await_true, command

from torrentfs.daemon.control_client import daemon_pid
from torrentfs.repository.publisher import publish

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow, pytest.mark.needs("gcc", "nginx")]

KILLS = int(os.environ.get("TORRENTFS_KILLS", "100"))
RELOADS = KILLS // 5
FILES, DIRECTORIES = 20_000, 200
COLD_LENGTH = 96 * 1024 * 1024
BREAKER_S = 120.0 + 15 * KILLS
LIFE_MAX_S = 1.2
"""A server is killed at a random instant of so long a time after its process began: also while it starts."""

NGINX = """
daemon off; user root; worker_processes 1; pid {base}/pid; error_log {base}/errors;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {base}/body; proxy_temp_path {base}/proxy;
    fastcgi_temp_path {base}/fastcgi; uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
    server {{
        listen 127.0.0.1:{port}; root {public};
        location /packs/ {{ limit_rate 512k; }}
    }}
}}
"""

CHECKSUMS = """
import hashlib, os, signal, sys, time
root, wanted, ended = sys.argv[1], sys.argv[2], []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
longest, rounds = 0.0, 0
while not ended or not rounds:
    total = hashlib.sha256()
    for directory in sorted(os.listdir(root)):
        for name in sorted(os.listdir(f"{root}/{directory}")):
            began = time.monotonic()
            file = os.open(f"{root}/{directory}/{name}", os.O_RDONLY)
            total.update(os.read(file, 1 << 20))
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
            longest = max(longest, time.monotonic() - began)
    rounds += 1
    if total.hexdigest() != wanted:
        sys.exit(f"round {rounds}: other bytes")
print(f"{rounds} rounds of checksums, longest stall {longest:.2f} s")
"""

COLD = """
import os, random, signal, sys, threading, time
path, known, ended, longest, failures, count = sys.argv[1], sys.argv[2], [], [0.0], [], [0]
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
places = list(range(0, os.stat(known).st_size, 65536))
random.Random(4).shuffle(places)
def read():
    file, truth = os.open(path, os.O_RDONLY), os.open(known, os.O_RDONLY)
    while places and not ended and not failures:
        place = places.pop()
        began = time.monotonic()
        try:
            if os.pread(file, 4096, place) != os.pread(truth, 4096, place):
                failures.append(f"other bytes at {place}")
        except OSError as error:
            failures.append(f"{error} at {place}")
        longest[0] = max(longest[0], time.monotonic() - began)
        count[0] += 1
threads = [threading.Thread(target=read) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(f"{count[0]} cold reads, longest {longest[0]:.2f} s")
sys.exit("; ".join(failures) or None)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, "native", breaker_s=BREAKER_S) as made:
        yield made


def publish_material(site: Site) -> str:
    """Publish the tree and the large file; return the checksum of all the tree's files."""
    total, number = hashlib.sha256(), 0
    source = site.directory / "many"
    noise = random.Random(2).randbytes(1 << 16)
    for directory in range(DIRECTORIES):
        (source / f"{directory:03}").mkdir(parents=True)
        for name in range(FILES // DIRECTORIES):
            start = number * 2_654_435_761 % 60_000
            data = number.to_bytes(4, "big") + noise[start : start + number % 5000]
            (source / f"{directory:03}/{name:03}").write_bytes(data)
            total.update(data)
            number += 1
    publish(site.repository, source, "many/v1", progress=None)
    (site.directory / "cold").write_bytes(random.Random(3).randbytes(COLD_LENGTH))
    publish(site.repository, site.directory / "cold", "cold/file", progress=None)
    return total.hexdigest()


@contextmanager
def slow_mirror(site: Site) -> Iterator[str]:
    """Serve the repository slowly; give its URL."""
    base = site.directory / "nginx"
    base.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (base / "conf").write_text(NGINX.format(base=base, port=port, public=site.repository.public))
    with subprocess.Popen(["nginx", "-p", base, "-c", base / "conf", "-e", base / "errors"]) as server:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@contextmanager
def job(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run a job until the end of the block, where it must have ended well; print what it says."""
    words = [str(argument) for argument in arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
            running.terminate()
            said, wrong = running.communicate(timeout=DEADLINE_S)
            print(said.strip())
            assert (running.returncode, wrong) == (0, "")
        finally:
            running.kill()


def children(pid: int) -> list[int]:
    """Return the child processes of *pid* (proc(5))."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_the_server(keeper: int, chance: random.Random) -> None:
    """Kill the keeper's child at a random instant of its life, and return when another is there."""
    await_true(lambda: bool(children(keeper)))
    [server] = children(keeper)[-1:]
    time.sleep(chance.uniform(0, LIFE_MAX_S))
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)
    await_true(lambda: children(keeper)[-1:] not in ([server], []))


def test_jobs_do_not_notice_that_servers_die(site: Site, tmp_path: Path) -> None:
    checksum = publish_material(site)
    chance = random.Random(1)
    program = c_jobs.compiled("random_reader", tmp_path)
    reader = c_jobs.RandomReader(
        program,
        site.mountpoint / "many/v1",
        site.directory / "many",
        c_jobs.write_list(site.directory / "many", tmp_path / "list"),
    )
    with slow_mirror(site) as url:
        site.mount("--repository", url, "--set", "node.readahead_pieces_max=0")
        keeper = site.stats()["server"]["keeper"]
        with (
            job(sys.executable, "-c", CHECKSUMS, site.mountpoint / "many/v1", checksum) as checking,
            job(sys.executable, "-c", COLD, site.mountpoint / "cold/file", site.directory / "cold") as cold,
        ):
            random_reader = reader.start(dropping=True)
            try:
                for number in range(KILLS):
                    kill_the_server(keeper, chance)
                    if number % (KILLS // RELOADS) == 0:
                        await_true(lambda: daemon_pid(site.mountpoint) in children(keeper))
                        command("reload", site.mountpoint)
                    assert checking.poll() is None
                    assert random_reader.poll() is None
                assert cold.poll() is None, "the cold file was all read before the last kill: make it longer"
            finally:
                outcome = c_jobs.end(random_reader)
        site.note()
        longest = f"{outcome.longest_ms / 1e3:.2f} s: {outcome.longest}"
        print(f"{outcome.operations} random operations, longest {longest}")

    assert outcome.failures == []
    assert site.stats()["errors"] == 0
    command("umount", site.mountpoint)
    site.wait_for_end()
    site.assert_nothing_left()
