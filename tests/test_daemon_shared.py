"""Several mounts of one cache share a server: they come, go and live through its death each by itself."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, Site, await_true, command, torrentfs

from torrentfs.daemon import ending
from torrentfs.daemon.mountpoint import is_mounted
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.root, pytest.mark.fuse]

BOBS = b"bob's" * 100_000


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, "native") as made:
        yield made


@pytest.fixture
def bob(site: Site) -> list[object]:
    """Another repository: the options that make a mount show it."""
    source = site.directory / "bobs"
    source.mkdir()
    (source / "data").write_bytes(BOBS)
    repository = Repository.create(site.directory / "bob", "bob")
    publish(repository, source, "TEST/v1", progress=None)
    return ["--repository", repository.public.as_uri(), "--trust", repository.public / "root.json"]


@pytest.fixture
def other(site: Site) -> Path:
    return site.place("other")


def both(site: Site) -> list[dict[str, object]]:
    """Return what is told of all mounts."""
    records = json.loads(command("stats", "--json").stdout)
    return sorted(records, key=lambda record: str(record["mountpoint"]))


def test_two_repositories_have_one_server(site: Site, bob: list[object], other: Path) -> None:
    site.mount()
    first = site.server

    done = site.mount(*bob, at=other)

    assert done.stderr == ""
    records = both(site)
    assert [record["repository"] for record in records] == ["alice", "bob"]
    assert [record["pid"] for record in records] == [first, first]
    assert site.data.read_bytes() == CONTENT
    assert (other / "TEST/v1/data").read_bytes() == BOBS
    assert site.processes() == sorted([site.server, site.keeper])
    listed = [json.loads(command("list", place, "--json").stdout) for place in (site.mountpoint, other)]
    assert listed[0] != listed[1]


@pytest.mark.parametrize("last", [0, 1])
def test_the_last_of_two_mounts_ends_their_server(
    site: Site, bob: list[object], other: Path, last: int
) -> None:
    site.mount()
    site.mount(*bob, at=other)
    places = [(site.mountpoint, CONTENT), (other, BOBS)]
    (stays, content), (goes, _) = places[last], places[1 - last]

    command("umount", goes)

    assert not is_mounted(goes)
    assert (stays / "TEST/v1/data").read_bytes() == content
    [record] = both(site)
    assert (record["mountpoint"], record["pid"]) == (str(stays), site.server)
    command("umount", stays)
    site.assert_nothing_left()


@pytest.mark.parametrize("last", [0, 1])
def test_after_one_of_two_mounts_went_the_other_lives_through_the_servers_death(
    site: Site, bob: list[object], other: Path, last: int
) -> None:
    site.mount()
    site.mount(*bob, at=other)
    places = [(site.mountpoint, CONTENT), (other, BOBS)]
    (stays, content), (goes, _) = places[last], places[1 - last]
    subprocess.run(["umount", goes], timeout=DEADLINE_S, check=True)
    await_true(lambda: len(both(site)) == 1)

    os.kill(site.server, signal.SIGKILL)
    await_true(lambda: site.stats(stays)["pid"] != site.server)

    assert not is_mounted(goes)
    assert (stays / "TEST/v1/data").read_bytes() == content
    assert len(both(site)) == 1
    command("umount", stays)
    site.assert_nothing_left()


def test_two_mounts_live_through_the_death_of_server_and_keeper(
    site: Site, bob: list[object], other: Path
) -> None:
    site.mount()
    site.mount(*bob, at=other)

    site.kill_server()
    os.kill(site.keeper, signal.SIGKILL)
    await_true(lambda: site.stats()["server"]["keeper"] not in (0, site.keeper))
    site.note()
    site.kill_server()

    assert [record["pid"] for record in both(site)] == [site.server] * 2
    for place, content in ((site.mountpoint, CONTENT), (other, BOBS)):
        with (place / "TEST/v1/data").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == content
    command("umount", site.mountpoint)
    command("umount", other)
    site.assert_nothing_left()


def test_a_repository_is_mounted_at_two_places(site: Site, other: Path) -> None:
    site.mount()
    site.mount(at=other)
    assert site.data.read_bytes() == CONTENT
    assert (other / "TEST/v1/data").read_bytes() == CONTENT
    (site.directory / "source/data").write_bytes(b"new")
    publish(site.repository, site.directory / "source", "TEST/v1", progress=None)

    command("refresh", site.mountpoint)
    command("refresh", other)

    assert site.data.read_bytes() == b"new"
    assert (other / "TEST/v1/data").read_bytes() == b"new"
    command("umount", site.mountpoint)
    assert (other / "TEST/v1/data").read_bytes() == b"new"
    command("umount", other)
    site.assert_nothing_left()


def test_other_settings_of_the_node_do_not_count_and_that_is_said(
    site: Site, bob: list[object], other: Path
) -> None:
    site.mount()

    done = site.mount(*bob, "--set", "node.hedge_delay_s=2", "--set", "mount.owner_uid=77", at=other)

    assert done.stderr.startswith("torrentfs: ")
    assert done.stderr.count("\n") == 1
    assert str(site.directory / "cache") in done.stderr
    assert (other / "TEST/v1/data").stat().st_uid == 77
    assert site.data.stat().st_uid == os.geteuid()


def test_what_hinders_a_second_mount_leaves_the_first_alone(
    site: Site, bob: list[object], other: Path
) -> None:
    site.mount()
    (site.directory / "bob/public/metadata").rename(site.directory / "away")

    refused = [site.mount(*bob, at=other, check=False) for _ in range(2)]

    assert {done.returncode for done in refused} == {1}
    assert {done.stderr.count("\n") for done in refused} == {1}
    assert not is_mounted(other)
    assert len(both(site)) == 1
    (site.directory / "away").rename(site.directory / "bob/public/metadata")
    site.mount(*bob, at=other)
    assert (other / "TEST/v1/data").read_bytes() == BOBS
    site.kill_server()
    assert len(both(site)) == 2
    command("umount", site.mountpoint)
    command("umount", other)
    site.assert_nothing_left()


def test_first_mounts_at_the_same_time_share_a_server(site: Site, bob: list[object], other: Path) -> None:
    words = [
        torrentfs("mount", site.mountpoint, *site.options),
        torrentfs("mount", other, *site.options, *bob),
    ]

    started = [subprocess.Popen(one, stderr=subprocess.PIPE, text=True) for one in words]
    told = [one.communicate(timeout=DEADLINE_S)[1] for one in started]

    assert told == ["", ""]
    assert [one.returncode for one in started] == [0, 0]
    assert len({record["pid"] for record in both(site)}) == 1
    assert site.data.read_bytes() == CONTENT
    assert (other / "TEST/v1/data").read_bytes() == BOBS
    command("umount", site.mountpoint)
    command("umount", other)
    site.assert_nothing_left()


def test_a_mount_during_the_end_of_the_last_one_succeeds(site: Site, bob: list[object], other: Path) -> None:
    for _ in range(3):
        site.mount()
        subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)

        site.mount(*bob, at=other)

        assert (other / "TEST/v1/data").read_bytes() == BOBS
        command("umount", other)
        site.wait_for_end()
    site.assert_nothing_left()


def test_force_ends_one_of_two_mounts_alone(site: Site, bob: list[object], other: Path) -> None:
    site.mount()
    site.mount(*bob, at=other)

    with (other / "TEST/v1/data").open("rb") as held, site.data.open("rb") as goes_on:
        command("umount", "--force", other)

        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.pread(held.fileno(), 1, len(BOBS) - 1)
        assert goes_on.read() == CONTENT

    assert not is_mounted(other)
    assert site.stats()["pid"] == site.server
    assert len(both(site)) == 1
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_force_ends_one_of_two_mounts_of_a_server_that_hangs(
    site: Site, bob: list[object], other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "FORCE_DEADLINE_S", 2.0)
    site.mount()
    site.mount(*bob, at=other)
    hangs = site.server
    os.kill(hangs, signal.SIGSTOP)

    ending.end(other, force=True)

    assert not is_mounted(other)
    # Another server serves the one that stays.
    await_true(lambda: site.stats()["pid"] != hangs)
    assert site.data.read_bytes() == CONTENT
    assert len(both(site)) == 1
    command("umount", site.mountpoint)
    site.assert_nothing_left()


@pytest.mark.parametrize("order", ["reload first", "umount first"])
def test_a_reload_and_the_end_of_another_mount_do_not_hinder_each_other(
    site: Site, bob: list[object], other: Path, order: str
) -> None:
    site.mount()
    site.mount(*bob, at=other)
    words = [torrentfs("reload", site.mountpoint), torrentfs("umount", other)]

    started = [
        subprocess.Popen(one, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for one in (words if order == "reload first" else reversed(words))
    ]
    told = [one.communicate(timeout=2 * DEADLINE_S)[1] for one in started]

    ended = started[1 if order == "reload first" else 0]
    assert ended.returncode == 0, told
    # It may say that not all was replaced: one line.
    assert all(len(words.splitlines()) <= 1 for words in told)
    assert not is_mounted(other)
    assert site.data.read_bytes() == CONTENT
    command("reload", site.mountpoint)
    assert site.data.read_bytes() == CONTENT
    assert len(both(site)) == 1
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_a_mount_that_is_interrupted_while_it_joins_leaves_nothing(
    site: Site, bob: list[object], other: Path
) -> None:
    site.mount()
    before = sorted((site.directory / "run").iterdir())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_S)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = torrentfs("mount", other, *site.options, *bob, "--repository", url)
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as joins:
            asked, _ = silent.accept()  # for the catalog of what is to be mounted
            with asked:
                joins.send_signal(signal.SIGINT)
                told = joins.communicate(timeout=DEADLINE_S)[1]

                await_true(lambda: sorted((site.directory / "run").iterdir()) == before)

    assert joins.returncode != 0 and "Traceback" not in told
    assert not is_mounted(other)
    assert site.data.read_bytes() == CONTENT
    assert len(both(site)) == 1
    site.mount(*bob, at=other)
    assert (other / "TEST/v1/data").read_bytes() == BOBS


def test_two_mounts_in_the_foreground_that_start_at_once_both_serve(
    site: Site, bob: list[object], other: Path
) -> None:
    words = [
        torrentfs("mount", site.mountpoint, *site.options, "--foreground"),
        torrentfs("mount", other, *site.options, *bob, "--foreground"),
    ]

    started = [subprocess.Popen(one, stderr=subprocess.DEVNULL) for one in words]
    try:
        await_true(lambda: is_mounted(site.mountpoint) and is_mounted(other))
        assert site.data.read_bytes() == CONTENT
        assert (other / "TEST/v1/data").read_bytes() == BOBS
        await_true(lambda: len(both(site)) == 2)
        site.note()
        assert len({record["pid"] for record in both(site)}) == 1

        # The one that is no keeper first: the other's end is the end of both.
        for one in sorted(started, key=lambda one: one.pid == site.keeper):
            one.terminate()
            assert one.wait(DEADLINE_S) == 0
    finally:
        for one in started:
            one.kill()
            one.wait()
    site.assert_nothing_left()


@pytest.mark.parametrize("how", ["SIGTERM", "umount"])
def test_a_second_mount_in_the_foreground_ends_alone(
    site: Site, bob: list[object], other: Path, how: str
) -> None:
    with site.foreground() as first, site.foreground(*bob, at=other) as second:
        assert (other / "TEST/v1/data").read_bytes() == BOBS
        site.note()
        assert site.stats(other)["pid"] == site.server
        assert site.keeper == first.pid

        if how == "SIGTERM":
            second.terminate()
        else:
            command("umount", other)

        assert second.wait(DEADLINE_S) == 0
        assert not is_mounted(other)
        assert site.data.read_bytes() == CONTENT
        assert len(both(site)) == 1
        first.terminate()
        assert first.wait(DEADLINE_S) == 0
    site.assert_nothing_left()


def test_a_second_mount_in_the_foreground_stays_through_the_servers_death(
    site: Site, bob: list[object], other: Path
) -> None:
    with site.foreground() as first, site.foreground(*bob, at=other) as second:
        site.kill_server()

        assert (other / "TEST/v1/data").read_bytes() == BOBS
        assert second.poll() is None
        second.terminate()
        assert second.wait(DEADLINE_S) == 0
        assert first.poll() is None


def test_the_end_of_the_first_mount_in_the_foreground_fails_the_second(
    site: Site, bob: list[object], other: Path
) -> None:
    """So that its service manager starts it again, with a server of its own."""
    with site.foreground() as first, site.foreground(*bob, at=other) as second:
        first.terminate()

        assert first.wait(DEADLINE_S) == 0
        assert second.wait(DEADLINE_S) == 1
        site.assert_nothing_left()
    with site.foreground(*bob, at=other) as again:
        assert (other / "TEST/v1/data").read_bytes() == BOBS
        again.terminate()
        assert again.wait(DEADLINE_S) == 0
    site.assert_nothing_left()


def test_other_caches_have_other_servers(site: Site, bob: list[object], other: Path) -> None:
    site.mount()
    first = site.server

    site.mount(*bob, "--cache", site.directory / "another", at=other)

    assert site.server != first
    command("umount", site.mountpoint)
    assert (other / "TEST/v1/data").read_bytes() == BOBS
    command("umount", other)
    site.assert_nothing_left()
