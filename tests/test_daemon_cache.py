"""`torrentfs cache` against real mounts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daemons
import pytest
from daemons import CONTENT, Site

from torrentfs.repository.publisher import publish

pytestmark = pytest.mark.fuse


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, "native") as made:
        source = tmp_path / "other"
        source.mkdir()
        (source / "data").write_bytes(CONTENT[::-1])
        publish(made.repository, source, "TEST/v2", progress=None)
        made.mount()
        yield made


def cache(site: Site, *words: str) -> list[dict[str, Any]]:
    """Give an order; return the records."""
    done = site.command("cache", words[0], site.mountpoint, *words[1:], "--json")
    records: list[dict[str, Any]] = json.loads(done.stdout)
    return records


def refusal(site: Site, *words: str) -> str:
    done = site.command("cache", words[0], site.mountpoint, *words[1:], check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_what_is_here_is_listed(site: Site) -> None:
    assert site.data.read_bytes() == CONTENT

    first, second = cache(site, "ls")

    assert (first["path"], first["complete"], first["cached"]) == ("TEST/v1", True, first["size"])
    assert (second["path"], second["complete"], second["pinned"]) == ("TEST/v2", False, False)
    assert cache(site, "ls", "TEST/*1") == [first]
    told = site.command("cache", "ls", site.mountpoint).stdout
    assert told.splitlines()[0].split() == ["PATH", "REVISION", "SIZE", "CACHED"]
    assert told.splitlines()[1].split()[-1] == "complete"


def test_a_version_without_any_bytes_is_complete_once_its_manifest_is_here(site: Site) -> None:
    empty = site.directory / "empty"
    empty.mkdir()
    (empty / "file").touch()
    publish(site.repository, empty, "EMPTY/v1", progress=None)
    site.command("refresh", site.mountpoint)

    [record] = cache(site, "prefetch", "EMPTY/v1", "--wait")

    assert record["complete"]


def test_prefetch_brings_all_without_a_job(site: Site) -> None:
    records = cache(site, "prefetch", "TEST/*", "--wait")

    assert [record["complete"] for record in records] == [True, True]
    before = site.stats()["bytes"]["from_mirrors"]
    assert (site.mountpoint / "TEST/v2/data").read_bytes() == CONTENT[::-1]
    assert site.stats()["bytes"]["from_mirrors"] == before


def test_a_prefetch_that_does_not_come_fails_and_names_it(site: Site) -> None:
    # The manifests are here, and the packs no more.
    cache(site, "prefetch", "TEST/*", "--wait")
    cache(site, "evict", "TEST/*")
    for file in site.data, site.mountpoint / "TEST/v2/data":
        file.stat()
    cache(site, "ls")
    packs = [*(site.repository.public / "packs").glob("*.tar.zst")]
    for pack in packs:
        pack.rename(pack.with_suffix(".aside"))
    try:
        done = site.command(
            "cache", "prefetch", site.mountpoint, "TEST/v1", "--wait", "--deadline", "1", check=False
        )
        assert (done.returncode, "not all came of TEST/v1" in done.stderr) == (1, True)
    finally:
        for pack in packs:
            pack.with_suffix(".aside").rename(pack)


def test_eviction_is_at_once_and_jobs_go_on(site: Site) -> None:
    with site.data.open("rb") as file:
        assert file.read() == CONTENT

        [record] = cache(site, "evict", "TEST/v1")

        assert not record["complete"]
        assert record["cached"] == 0
        file.seek(0)
        assert file.read() == CONTENT
    site.command("umount", site.mountpoint)
    site.wait_for_end()
    site.mount()
    assert site.data.read_bytes() == CONTENT


def test_a_pin_follows_its_path(site: Site) -> None:
    cache(site, "prefetch", "TEST/*", "--wait")
    cache(site, "pin", "TEST/*")
    source = site.directory / "newer"
    source.mkdir()
    (source / "data").write_bytes(CONTENT[::-2])
    publish(site.repository, source, "TEST/v1", progress=None)
    site.command("refresh", site.mountpoint)

    def held() -> list[bool]:
        cache(site, "prefetch", "TEST/v1", "--wait")
        cache(site, "evict", "TEST/*")
        return [record["complete"] for record in cache(site, "ls")]

    daemons.await_true(lambda: held() == [True, True])
    assert (site.mountpoint / "TEST/v1/data").read_bytes() == CONTENT[::-2]


def test_a_pin_keeps_what_is_here_over_restarts_until_it_is_taken_back(site: Site) -> None:
    assert site.data.read_bytes() == CONTENT
    [record] = cache(site, "pin", "TEST/v1")
    assert record["pinned"]
    site.kill_server()

    [record] = cache(site, "evict", "TEST/v1")
    assert (record["pinned"], record["complete"]) == (True, True)

    [record] = cache(site, "unpin", "TEST/v1")
    assert not record["pinned"]
    [record] = cache(site, "evict", "TEST/v1")
    assert not record["complete"]


@pytest.mark.parametrize("repair", [False, True])
def test_what_the_disk_damaged_is_found_and_repaired(site: Site, repair: bool) -> None:
    cache(site, "prefetch", "TEST/v1", "--wait")
    assert site.command("cache", "verify", site.mountpoint).returncode == 0
    pack = max((site.directory / "cache/packs").iterdir(), key=lambda file: file.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        file.write(b"rot")

    words = ["verify", site.mountpoint, "TEST/v1", *(["--repair"] if repair else [])]
    done = site.command("cache", *words, "--json", check=False)

    assert (done.returncode, json.loads(done.stdout)[0]["damaged"]) == (1, 1)
    assert "pieces were damaged of TEST/v1" in done.stderr
    if repair:
        daemons.await_true(lambda: cache(site, "ls", "TEST/v1")[0]["complete"])
    assert site.data.read_bytes() == CONTENT
    assert site.command("cache", "verify", site.mountpoint).returncode == 0


def test_orders_that_mean_nothing_are_refused_in_one_line(site: Site) -> None:
    assert "nothing here matches 'TSET/*'" in refusal(site, "evict", "TSET/*")
    assert "no daemon of yours" in site.command("cache", "ls", site.directory, check=False).stderr
    assert site.command("cache", "evict", site.mountpoint, check=False).returncode == 2
    site.command("umount", site.mountpoint)
    site.wait_for_end()
    site.mount("--set", "node.cache_size_max=1000")
    assert "do not fit" in refusal(site, "prefetch", "TEST/v1")
