"""What publishers move, as jobs on a real mount see it: aliases, reverts, retirement, updates under way."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, Site
from mounts import FRONTS

from torrentfs.repository.curation import retired, with_alias
from torrentfs.repository.publisher import publish

pytestmark = pytest.mark.fuse

UPDATES = int(os.environ.get("TORRENTFS_UPDATES", "10"))

HOLDER = """
import os, sys
os.chdir(sys.argv[1])
with open("data", "rb") as file:
    print(len(os.listdir(".")), flush=True)
    sys.stdin.readline()
    assert file.read() == open("data", "rb").read()
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    print(len(file.read()), sorted(os.listdir(".")), open("job").read().split()[-1], flush=True)
"""
"""Works in a directory, with a file open; reads all of it once it is told to."""

LOOPER = """
import hashlib, os, sys
while not os.path.exists(sys.argv[2]):
    directory = os.open(sys.argv[1], os.O_RDONLY)
    one, two = (os.open(name, os.O_RDONLY, dir_fd=directory) for name in ("one", "two"))
    assert sorted(os.listdir(directory)) == ["one", "two"]
    first, second = os.read(one, 100), os.read(two, 100)
    assert first == second and first, (first, second)
    for descriptor in (one, two, directory):
        os.close(descriptor)
print("right")
"""
"""Enters the package again and again: whatever revision it meets, it never meets two."""


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    breaker_s = daemons.BREAKER_S + 2 * UPDATES
    with daemons.site(tmp_path, monkeypatch, request.param, breaker_s=breaker_s) as made:
        yield made


def holder(directory: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", HOLDER, str(directory)]
    started = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "2\n"
    return started


def release(holding: "subprocess.Popen[str]") -> None:
    told, _ = holding.communicate("\n", timeout=daemons.DEADLINE_S)
    assert told == f"{len(CONTENT)} ['data', 'job'] done\n"


def read(path: Path) -> bytes | None:
    """Return what another process reads, None where there is nothing."""
    done = subprocess.run(["cat", path], capture_output=True, check=False)
    assert done.returncode == 0 or b"No such file" in done.stderr, done.stderr
    return done.stdout if done.returncode == 0 else None


def names(path: Path) -> list[str]:
    return subprocess.run(["ls", "-A", path], capture_output=True, text=True, check=True).stdout.split()


def test_a_retired_version_is_unlisted_then_gone_and_its_jobs_go_on(site: Site) -> None:
    site.mount()
    place = site.mountpoint / "TEST"
    job = holder(place / "v1")
    publish(site.repository, site.directory / "source", "TEST/v2", progress=None)
    site.repository.change(lambda catalog: retired(catalog, "TEST/v1", int(time.time()) + 3))
    site.command("refresh", site.mountpoint)

    assert names(place) == ["v2"]
    assert read(place / "v1/data") == CONTENT
    daemons.await_true(lambda: read(place / "v1/data") is None)
    release(job)
    assert read(site.mountpoint / ".revisions/TEST/v1@1/data") == CONTENT
    site.command("umount", site.mountpoint)


def test_an_alias_moves_in_one_step(site: Site) -> None:
    source = site.directory / "source"
    (source / "data").write_bytes(b"second")
    publish(site.repository, source, "TEST/v2", progress=None)
    site.repository.change(lambda catalog: with_alias(catalog, "TEST/latest", "TEST/v1"))
    site.mount()
    assert read(site.mountpoint / "TEST/latest/data") == CONTENT

    site.command("alias", site.repository.directory, "TEST/latest", "TEST/v2")
    site.command("refresh", site.mountpoint)

    assert read(site.mountpoint / "TEST/latest/data") == b"second"
    assert names(site.mountpoint / "TEST") == ["latest", "v1", "v2"]
    site.command("revert", site.repository.directory, "TEST/v2", 1, check=False)
    site.command("umount", site.mountpoint)


def test_a_reverted_path_shows_what_it_was_and_jobs_keep_what_they_have(site: Site) -> None:
    site.mount()
    job = holder(site.mountpoint / "TEST/v1")
    (site.directory / "source" / "data").write_bytes(b"broken")
    publish(site.repository, site.directory / "source", "TEST/v1", progress=None)
    site.command("refresh", site.mountpoint)
    assert read(site.data) == b"broken"
    before = site.stats()["bytes"]["from_mirrors"]

    site.command("revert", site.repository.directory, "TEST/v1", 1)
    site.command("refresh", site.mountpoint)

    assert read(site.data) == CONTENT
    assert site.stats()["bytes"]["from_mirrors"] - before <= len(CONTENT)
    release(job)
    site.command("umount", site.mountpoint)


INSIDE = """
import os, sys
os.chdir(os.path.realpath(sys.argv[1]))
print(os.getcwd(), flush=True)
sys.stdin.readline()
by_name = os.path.join(os.getcwd(), "data")
print(os.getcwd(), open(by_name, "rb").read() == open("data", "rb").read(), flush=True)
"""
"""Works by absolute paths, and asks where it is."""


def test_a_link_in_place_keeps_programs_in_their_revision_by_name_too(site: Site) -> None:
    source, repository = site.directory / "source", site.repository.directory
    site.command("publish", repository, source, "LINK/v1", "--in-place", "link")
    site.mount()
    path, first = site.mountpoint / "LINK/v1", site.mountpoint / ".revisions/LINK/v1@1"
    words = [sys.executable, "-c", INSIDE, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == f"{first}\n"

        (source / "data").write_bytes(b"second")
        site.command("publish", repository, source, "LINK/v1")
        site.command("refresh", site.mountpoint)

        assert read(path / "data") == b"second"
        told, _ = job.communicate("\n", timeout=daemons.DEADLINE_S)
    assert told == f"{first} True\n"
    assert read(first / "data") == CONTENT
    assert names(site.mountpoint / "LINK") == ["v1"]
    site.command("umount", site.mountpoint)


def test_jobs_run_through_many_updates_and_never_see_a_mixture(site: Site) -> None:
    source, end = site.directory / "moving", site.directory / "end"
    source.mkdir()

    def update(number: int) -> None:
        for name in ("one", "two"):
            (source / name).write_text(f"update {number}")
        publish(site.repository, source, "MOVES/v1", progress=None)

    update(0)
    site.mount()
    words = [sys.executable, "-c", LOOPER, str(site.mountpoint / "MOVES/v1"), str(end)]
    jobs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for number in range(1, UPDATES):
        update(number)
        site.command("refresh", site.mountpoint)
        assert read(site.mountpoint / "MOVES/v1/two") == f"update {number}".encode()
    end.touch()

    assert [job.communicate(timeout=daemons.DEADLINE_S)[0] for job in jobs] == ["right\n", "right\n"]
    assert read(site.mountpoint / ".revisions/MOVES/v1@1/one") == b"update 0"
    site.command("umount", site.mountpoint)
