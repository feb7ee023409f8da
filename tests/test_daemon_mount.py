"""A real daemon with a real mount: how it starts, what it shows and tells, and what hinders it.

How it ends is in test_daemon_ending, what containers see in test_daemon_namespaces.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, NATIVE_ONLY, PYFUSE3_ONLY, Site, command, torrentfs
from mounts import FRONTS

from torrentfs.config import SwarmSettings, format_address, parse_address
from torrentfs.daemon.mountpoint import is_dead, is_mounted
from torrentfs.fuse.mounting import is_supported
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.root, pytest.mark.fuse]

MOUNT_OPTIONS = {"ro", "nosuid", "nodev"}


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        yield made


# What it shows


def test_a_job_runs_from_a_mount_and_umount_leaves_nothing(site: Site) -> None:
    site.mount()

    done = subprocess.run(
        [site.mountpoint / "TEST/v1/job"], capture_output=True, timeout=DEADLINE_S, check=True
    )
    data = site.data.read_bytes()
    stats = site.stats()
    command("umount", site.mountpoint)

    assert done.stdout == b"done\n"
    assert data == CONTENT
    assert stats["repository"] == "alice"
    assert stats["mountpoint"] == str(site.mountpoint)
    assert stats["bytes"]["cached"] == stats["bytes"]["from_mirrors"] + stats["bytes"]["from_peers"]
    assert stats["bytes"]["read"] >= len(CONTENT)
    [package] = stats["packages"]
    assert (package["path"], package["revision"]) == ("TEST/v1", 1)
    assert package["cached"] == package["size"] == stats["bytes"]["cached"]
    assert stats["errors"] == stats["reads"]["waiting"] == 0
    assert 0 < stats["reads"]["wait_p50_ms"] <= stats["reads"]["wait_p99_ms"]
    site.assert_nothing_left()


def test_a_mount_shows_in_list_and_stats_of_all_mounts(site: Site) -> None:
    site.mount()

    [listed] = json.loads(command("list", site.mountpoint, "--json").stdout)
    [record] = json.loads(command("stats", "--json").stdout)
    text = command("stats").stdout

    assert listed["path"] == "TEST/v1"
    assert record["pid"] == site.server
    assert "TEST/v1" in text


def test_a_mount_is_listed_whatever_its_paths_are_called(site: Site) -> None:
    publish(site.repository, site.directory / "source", "public/v1", progress=None)
    site.mount()

    listed = json.loads(command("list", site.mountpoint, "--json").stdout)

    assert [package["path"] for package in listed] == ["TEST/v1", "public/v1"]


@NATIVE_ONLY
def test_the_native_fronts_processes_are_told(site: Site) -> None:
    site.mount()

    stats = site.stats()

    assert stats["fuse"].startswith("native 7.")
    assert stats["server"] == {"pid": stats["pid"], "keeper": site.keeper, "restarts": 0, "last_end": ""}
    assert site.processes() == sorted([site.server, site.keeper])


@PYFUSE3_ONLY
def test_pyfuse3s_process_is_told(site: Site) -> None:
    site.mount()

    stats = site.stats()

    assert stats["fuse"].startswith("pyfuse3 ")
    assert stats["server"] == {"pid": stats["pid"], "keeper": 0, "restarts": 0, "last_end": ""}
    assert site.processes() == [site.server]


@NATIVE_ONLY
def test_the_native_front_is_what_one_gets(site: Site) -> None:
    site.mount("--fuse", "auto")

    assert site.stats()["fuse"].split()[0] == ("pyfuse3" if is_supported() else "native")


def test_the_kernel_holds_a_mount_read_only_without_devices_and_setuid(site: Site) -> None:
    site.mount()

    [line] = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(site.mountpoint)
    ]
    own, _, filesystem = line.partition(" - ")
    kind, source, of_filesystem = filesystem.split()

    assert set(own.split()[5].split(",")) >= MOUNT_OPTIONS
    assert (kind, source) == ("fuse.torrentfs", "alice")
    assert {"ro", "allow_other", "default_permissions"} <= set(of_filesystem.split(","))
    with pytest.raises(OSError, match="Read-only file system"):
        (site.mountpoint / "new").touch()


@pytest.mark.needs("setpriv")
def test_roots_mount_is_there_for_other_users(site: Site) -> None:
    site.mount()

    # Where we are, not by its path: pytest's directories are closed to others.
    read = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", "TEST/v1/data"]
    done = subprocess.run(read, cwd=site.mountpoint, capture_output=True, timeout=DEADLINE_S, check=True)

    assert done.stdout == CONTENT


def test_a_directory_that_is_not_empty_is_hidden_while_mounted(site: Site) -> None:
    (site.mountpoint / "below").touch()
    site.mount()

    assert [path.name for path in site.mountpoint.iterdir()] == ["TEST"]

    command("umount", site.mountpoint)
    assert [path.name for path in site.mountpoint.iterdir()] == ["below"]


# Which catalog it shows


def test_refresh_shows_a_new_revision_at_once(site: Site) -> None:
    site.mount()
    assert site.data.read_bytes() == CONTENT
    (site.directory / "source/data").write_bytes(b"new")
    publish(site.repository, site.directory / "source", "TEST/v1", progress=None)
    publish(site.repository, site.directory / "source", "TEST/v2", progress=None)

    command("refresh", site.mountpoint)

    assert site.data.read_bytes() == b"new"
    assert (site.mountpoint / "TEST/v2/data").read_bytes() == b"new"
    assert (site.mountpoint / ".revisions/TEST/v1@1/data").read_bytes() == CONTENT
    assert [package["revision"] for package in site.stats()["packages"]] == [2, 1]


def test_without_the_repository_the_last_known_catalog_serves(site: Site) -> None:
    site.mount()
    assert site.data.read_bytes() == CONTENT
    command("umount", site.mountpoint)
    trust = site.directory / "root.json"
    trust.write_bytes((site.repository.public / "root.json").read_bytes())
    site.repository.public.rename(site.directory / "away")

    done = site.mount("--trust", trust)

    assert done.stderr.startswith("torrentfs: starting with the last known catalog, version 2: ")
    assert done.stderr.count("\n") == 1
    assert site.data.read_bytes() == CONTENT


# What is in its way


def test_a_mountpoint_is_not_mounted_twice(site: Site) -> None:
    site.mount()
    words = f"is mounted already, by process {site.server}; torrentfs umount {site.mountpoint} ends it\n"

    same_cache = site.mount(check=False)
    other_cache = site.mount("--cache", site.directory / "other", check=False)

    for refused in (same_cache, other_cache):
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert refused.stderr.endswith(words)
    assert site.data.read_bytes() == CONTENT
    assert site.stats()["pid"] == site.server


def test_of_two_mounts_at_one_place_at_the_same_time_one_is_refused(site: Site) -> None:
    words = torrentfs("mount", site.mountpoint, *site.options)

    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=DEADLINE_S)[1] for process in both]

    site.note()
    assert sorted(process.returncode for process in both) == [0, 1]
    assert "".join(told).count("\n") == 1
    assert "is mounted already" in "".join(told)
    assert site.data.read_bytes() == CONTENT
    command("umount", site.mountpoint)
    site.assert_nothing_left()


@PYFUSE3_ONLY
def test_a_cache_is_not_used_twice(site: Site) -> None:
    site.mount()
    other = site.place("other")

    refused = site.mount(at=other, check=False)

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert str(site.server) in refused.stderr
    assert not is_mounted(other)


@pytest.mark.parametrize(("site", "other"), [("native", "pyfuse3"), ("pyfuse3", "native")], indirect=["site"])
def test_a_cache_is_not_used_by_both_fronts(site: Site, other: str) -> None:
    site.mount()
    place = site.place("other")

    refused = site.mount("--fuse", other, at=place, check=False)

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert str(site.server) in refused.stderr
    assert not is_mounted(place)
    assert site.data.read_bytes() == CONTENT


def test_only_the_default_port_gives_way_when_it_is_taken(site: Site) -> None:
    default = SwarmSettings().listen
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody else on this machine has it: as good
            taken.bind(parse_address(default))
            taken.listen()
        site.mount("--listen", default)
        at = site.stats()["listen"]
        command("umount", site.mountpoint)
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            refused = site.mount("--listen", format_address(*other.getsockname()), check=False)

    assert parse_address(at)[1] != parse_address(default)[1]
    assert refused.returncode == 1
    assert "cannot listen on" in refused.stderr
    site.assert_nothing_left()


def _missing(site: Site) -> None:
    site.mountpoint.rmdir()


def _file(site: Site) -> None:
    site.mountpoint.rmdir()
    site.mountpoint.touch()


def _no_repository(site: Site) -> None:
    site.repository.public.joinpath("metadata").rename(site.directory / "away")


def _wrong_trust(site: Site) -> None:
    other = Repository.create(site.directory / "other", "alice")
    (site.repository.public / "root.json").write_bytes((other.public / "root.json").read_bytes())


def _rubbish_trust(site: Site) -> None:
    (site.repository.public / "root.json").write_text("rubbish")


def _no_cache(site: Site) -> None:
    (site.directory / "cache").touch()


@pytest.mark.parametrize("hinder", [_missing, _file, _no_repository, _wrong_trust, _rubbish_trust, _no_cache])
def test_what_hinders_a_mount_is_one_line_and_nothing_is_left(
    site: Site, hinder: Callable[[Site], None]
) -> None:
    hinder(site)

    refused = site.mount(check=False)

    assert refused.returncode == 1, refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stderr
    site.assert_nothing_left()


@pytest.mark.parametrize("hinder", [_missing, _no_repository])
def test_what_hinders_a_mount_in_the_foreground_is_said_once(
    site: Site, hinder: Callable[[Site], None]
) -> None:
    hinder(site)

    refused = site.mount("--foreground", check=False)

    assert refused.returncode == 1
    assert len([line for line in refused.stderr.splitlines() if line.startswith("torrentfs: ")]) == 1
    site.assert_nothing_left()


# What it lives through


def test_a_background_daemon_lives_on_after_sighup(site: Site) -> None:
    site.mount()

    for pid in site.pids:
        os.kill(pid, signal.SIGHUP)

    assert site.data.read_bytes() == CONTENT
    assert site.stats()["pid"] == site.server


def test_after_sigkill_of_all_the_next_mount_has_everything(site: Site) -> None:
    site.mount()
    assert site.data.read_bytes() == CONTENT
    inode = site.data.stat().st_ino

    site.kill_all()
    assert is_dead(site.mountpoint)
    site.mount()

    assert site.data.stat().st_ino == inode
    assert site.data.read_bytes() == CONTENT
    stats = site.stats()
    assert stats["bytes"]["from_mirrors"] == stats["bytes"]["from_peers"] == 0
    command("umount", site.mountpoint)
    site.assert_nothing_left()
