"""A real mount whose cache is smaller than what its jobs read."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import daemons
import pytest
from big import FILES, LENGTH, digests, job, publish_big, run
from daemons import Site
from mounts import FRONTS

pytestmark = pytest.mark.fuse

BOUND = 32 * 1024 * 1024
KILLS = max(int(os.environ.get("TORRENTFS_KILLS", "100")) // 20, 1)
"""As slow as kills of other tests are fast."""


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    breaker_s = daemons.BREAKER_S + 6 * KILLS
    with daemons.site(tmp_path, monkeypatch, request.param, breaker_s=breaker_s) as made:
        publish_big(made)
        yield made


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


def bounded(site: Site) -> None:
    site.mount("--set", f"node.cache_size_max={BOUND}")


def test_jobs_read_more_than_fits_and_the_cache_stays_within_its_bound(site: Site) -> None:
    bounded(site)
    with watched(site.directory / "cache") as most:
        for _ in range(2):
            assert run(site) == digests()

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
        assert run(site) == digests()

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
    """The server's successor goes on under the running job."""
    bounded(site)
    chance = random.Random(5)
    for _ in range(KILLS):
        reader = job(site)
        time.sleep(chance.uniform(0.05, 1.2))
        site.kill_server(signal.SIGKILL)
        told, _ = reader.communicate(timeout=daemons.DEADLINE_S)
        assert told.split() == digests()
        # What the kill left half-way is given back by the successor.
        daemons.await_true(lambda: taken(site.directory / "cache") <= BOUND)


def test_kills_of_all_processes_while_things_go_cost_no_byte(site: Site) -> None:
    """The job dies with its mount; the next one, on a new mount, compares all."""
    chance = random.Random(6)
    for _ in range(KILLS):
        bounded(site)
        reader = job(site)
        time.sleep(chance.uniform(0.05, 1.2))
        site.kill_all()
        reader.communicate(timeout=daemons.DEADLINE_S)
        bounded(site)
        assert run(site) == digests()
        daemons.await_true(lambda: taken(site.directory / "cache") <= BOUND)
        site.command("umount", site.mountpoint)
        site.wait_for_end()
