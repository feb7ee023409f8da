"""Real mounts on caches that fail: they vanish, have errors, no inodes left, flipped bits; and daemons that
are short of descriptors, or whose clock jumps. Jobs read right bytes all the while.
"""

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import daemons
import pytest
from big import FILES, LENGTH, digests, job, publish_big, run
from daemons import Site
from disks import disk
from mounts import FRONTS

pytestmark = pytest.mark.fuse

DISK_SIZE = 256 * 1024 * 1024

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <stdio.h>
#include <time.h>
static long jump(void)
{
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_JUMP"), "r");
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += jump();
    return result;
}
"""
"""Wall clocks that are wrong by what the file CLOCK_JUMP says, in seconds."""


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        publish_big(made)
        yield made


def start_job(site: Site) -> tuple["subprocess.Popen[str]", list[str]]:
    """Return a job in its midst, and what it printed yet."""
    reader = job(site)
    assert reader.stdout is not None
    return reader, [reader.stdout.readline().strip() for _ in range(5)]


def finish(reader: "subprocess.Popen[str]", lines: list[str]) -> list[str]:
    told, _ = reader.communicate(timeout=daemons.DEADLINE_S)
    return [*lines, *told.split()]


def is_healed(site: Site) -> bool:
    """Tell whether another job's bytes come into the cache."""
    return run(site) == digests() and site.stats()["bytes"]["cached"] > FILES * LENGTH


def test_jobs_read_on_when_the_cache_directory_vanishes(site: Site) -> None:
    """And the node makes a new one, without another start."""
    site.mount()
    reader, lines = start_job(site)
    cache = site.directory / "cache"

    def gone() -> bool:
        # Again where the daemon put a new pack meanwhile.
        shutil.rmtree(cache, ignore_errors=True)
        return not cache.exists()

    daemons.await_true(gone)

    assert finish(reader, lines) == digests()
    daemons.await_true((cache / "state.sqlite").exists)
    daemons.await_true(lambda: is_healed(site))
    assert list((cache / "packs").iterdir())
    site.command("umount", site.mountpoint)
    site.wait_for_end()
    site.mount()
    assert site.stats()["bytes"]["cached"] > FILES * LENGTH


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_jobs_read_on_when_the_disk_fails_and_the_next_one_is_taken_into_use(
    site: Site, tmp_path: Path
) -> None:
    cache = site.directory / "cache"
    with disk(tmp_path / "first", cache, DISK_SIZE) as scratch:
        site.mount()
        try:
            reader, lines = start_job(site)

            scratch.fail()

            assert finish(reader, lines) == digests()
            assert run(site) == digests()
            figures = site.stats()
            assert figures["bytes"]["bypassed"] > 0
            assert figures["trouble"]
            scratch.unmount(lazily=True)
            with disk(tmp_path / "second", cache, DISK_SIZE):
                daemons.await_true(lambda: is_healed(site))
                assert not site.stats()["trouble"]
                site.command("umount", site.mountpoint)
                site.wait_for_end()
        finally:
            site.break_up()


@pytest.mark.root
def test_jobs_read_on_where_there_is_no_inode_left(site: Site) -> None:
    cache = site.directory / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", cache], check=True)
    try:
        site.mount()
        figures = os.statvfs(cache)
        inodes = figures.f_files - figures.f_ffree
        subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes}", cache], check=True)
        assert not os.statvfs(cache).f_ffree

        assert run(site) == digests()

        assert site.stats()["bytes"]["bypassed"] > FILES * LENGTH
        subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes + 1000}", cache], check=True)
        daemons.await_true(lambda: is_healed(site))
        site.command("umount", site.mountpoint)
        site.wait_for_end()
    finally:
        site.break_up()
        subprocess.run(["umount", cache], check=True)


def test_jobs_read_on_where_descriptors_are_short(site: Site) -> None:
    """Some for what is fetched, none for what the cache would keep open."""
    site.mount("--set", "node.open_files_max=2")
    assert site.data.read_bytes() == daemons.CONTENT
    used = len(list(Path(f"/proc/{site.server}/fd").iterdir()))
    _, most = resource.prlimit(site.server, resource.RLIMIT_NOFILE)
    resource.prlimit(site.server, resource.RLIMIT_NOFILE, (used + 12, most))

    assert run(site) == digests()

    resource.prlimit(site.server, resource.RLIMIT_NOFILE, (used, most))
    reader = job(site)
    assert reader.stdout is not None
    first = reader.stdout.readline().strip()
    resource.prlimit(site.server, resource.RLIMIT_NOFILE, (most, most))
    assert finish(reader, [first]) == digests()


@pytest.mark.needs("gcc")
def test_jobs_read_on_when_the_clock_jumps(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    source, library = site.directory / "clock.c", site.directory / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    jump = site.directory / "jump"
    jump.write_text("0")
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("CLOCK_JUMP", str(jump))
        site.mount("--set", f"node.cache_size_max={24 * 1024 * 1024}")
    assert str(library) in Path(f"/proc/{site.server}/maps").read_text()
    reader, lines = start_job(site)

    for hours in (-48, 72, -400_000, 0):
        jump.write_text(str(hours * 3600))
        assert reader.stdout is not None
        lines += [reader.stdout.readline().strip() for _ in range(5)]

    assert finish(reader, lines) == digests()
    jump.write_text(str(365 * 24 * 3600))
    assert run(site) == digests()
    assert site.stats()["errors"] == 0


def test_no_flipped_bit_reaches_a_job(site: Site) -> None:
    """In packs of a mount in use, and at rest in whatever lies in the cache. CVMFS hands such a byte out."""
    site.mount()
    assert run(site) == digests()
    cache, chance = site.directory / "cache", random.Random(7)
    for _ in range(5):
        for _ in range(20):
            flip(chance.choice([*(cache / "packs").iterdir()]), chance)
        assert run(site) == digests()
    assert site.stats()["damaged_pieces"] > 20
    assert "damaged" in site.command("stats", site.mountpoint).stdout
    for _ in range(4):
        site.command("umount", site.mountpoint)
        site.wait_for_end()
        for path in sorted(path for path in cache.rglob("*") if path.is_file()):
            flip(path, chance)
        site.mount()
        assert run(site) == digests()


def flip(path: Path, chance: random.Random) -> None:
    """Flip a bit of a file, not in a hole of it."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        length = os.fstat(file.fileno()).st_size
        for _ in range(100):
            place = chance.randrange(length) if length else 0
            file.seek(place)
            byte = file.read(1)
            if byte and byte != b"\0":
                file.seek(place)
                file.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))
                return
