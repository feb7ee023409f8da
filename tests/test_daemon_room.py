"""A real mount whose cache is smaller than what its jobs read."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import daemons
import pytest
from daemons import Site
from mounts import FRONTS

from torrentfs.repository.publisher import publish

pytestmark = pytest.mark.fuse

FILES, LENGTH = 48, 1_500_000
BOUND = 32 * 1024 * 1024

READER = """
import hashlib, os, sys
for name in sorted(os.listdir(sys.argv[1])):
    with open(os.path.join(sys.argv[1], name), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        print(hashlib.sha256(file.read()).hexdigest(), flush=True)
"""
"""Reads files one by one, none from the page cache."""


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        source = tmp_path / "big"
        source.mkdir()
        for number in range(FILES):
            (source / f"{number:02}").write_bytes(random.Random(number).randbytes(LENGTH))
        publish(made.repository, source, "BIG/v1", progress=None)
        yield made


def digests() -> list[str]:
    return [hashlib.sha256(random.Random(n).randbytes(LENGTH)).hexdigest() for n in range(FILES)]


def taken(directory: Path) -> int:
    """Return what *directory* takes of its disk."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                total += 512 * Path(place, name).lstat().st_blocks
    return total


@contextmanager
def watched(directory: Path) -> Iterator[list[int]]:
    """Give the most that *directory* took meanwhile."""
    most, end = [0], threading.Event()

    def watch() -> None:
        while not end.wait(0.01):
            most[0] = max(most[0], taken(directory))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        end.set()
        watcher.join()


def job(site: Site) -> "subprocess.Popen[str]":
    words = ["python3", "-c", READER, str(site.mountpoint / "BIG/v1")]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def bounded(site: Site) -> None:
    site.mount("--set", f"node.cache_size_max={BOUND}")


def test_jobs_read_more_than_fits_and_the_cache_stays_within_its_bound(site: Site) -> None:
    bounded(site)
    with watched(site.directory / "cache") as most:
        for _ in range(2):
            told, _ = job(site).communicate(timeout=daemons.DEADLINE_S)
            assert told.split() == digests()

    figures = site.stats()["bytes"]
    assert BOUND / 2 < most[0] <= BOUND
    assert figures["evicted"] > FILES * LENGTH
    assert figures["refetched"] > 0
    assert figures["on_disk"] <= BOUND
    assert "evicted" in site.command("stats", site.mountpoint).stdout


@pytest.mark.root
def test_jobs_read_on_where_the_disk_is_full(site: Site) -> None:
    """Without a bound, on a filesystem smaller than what they read."""
    cache = site.directory / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", cache], check=True)
    try:
        site.mount()
        told, _ = job(site).communicate(timeout=daemons.DEADLINE_S)
        assert told.split() == digests()

        figures = site.stats()["bytes"]
        assert figures["bypassed"] > 0
        assert figures["cached"] > 0
        site.command("umount", site.mountpoint)
        site.wait_for_end()
    finally:
        site.break_up()
        subprocess.run(["umount", cache], check=True)


@daemons.NATIVE_ONLY
def test_kills_while_things_go_cost_no_byte(site: Site) -> None:
    bounded(site)
    reader = job(site)
    assert reader.stdout is not None
    lines = []
    for number, line in enumerate(reader.stdout):
        lines.append(line.strip())
        if number % 12 == 6:
            site.kill_server(signal.SIGKILL)
    assert reader.wait(daemons.DEADLINE_S) == 0
    assert lines == digests()
    # What the last kill left half-way is given back by the successor.
    daemons.await_true(lambda: taken(site.directory / "cache") <= BOUND)


def test_jobs_read_on_when_the_cache_directory_vanishes(site: Site) -> None:
    """And the node heals with the next start, at the latest."""
    site.mount()
    reader = job(site)
    assert reader.stdout is not None
    lines = [reader.stdout.readline().strip() for _ in range(5)]

    cache = site.directory / "cache"

    def gone() -> bool:
        # Again where the daemon put a new pack meanwhile.
        shutil.rmtree(cache, ignore_errors=True)
        return not cache.exists()

    daemons.await_true(gone)

    told, _ = reader.communicate(timeout=daemons.DEADLINE_S)
    assert [*lines, *told.split()] == digests()
    told, _ = job(site).communicate(timeout=daemons.DEADLINE_S)
    assert told.split() == digests()
    site.command("umount", site.mountpoint)
    site.wait_for_end()
    site.mount()
    told, _ = job(site).communicate(timeout=daemons.DEADLINE_S)
    assert told.split() == digests()
    assert site.stats()["bytes"]["cached"] > FILES * LENGTH
