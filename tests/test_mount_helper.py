"""The helper of mount(8), `mount -t torrentfs`: a script around `torrentfs mount`."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, NATIVE_ONLY, Site, command
from mounts import FRONTS

pytestmark = [pytest.mark.root, pytest.mark.fuse]

HELPER = Path(__file__).parent.parent / "mount-helpers/mount.torrentfs"
TORRENTFS = Path(sys.executable).parent / "torrentfs"


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/alice.toml").write_text(
            f'repository = "{made.repository.public.as_uri()}"\n'
            f'trust = "{made.repository.public}/root.json"\n'
            f'cache = "{tmp_path}/cache"\n'
        )
        yield made


def mount(
    *arguments: object, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HELPER, *map(str, arguments)],
        env={**os.environ, "TORRENTFS": str(TORRENTFS), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_it_mounts_by_name(site: Site) -> None:
    options = "rw,_netdev,nofail,x-systemd.automount,mount.read_deadline_s=7,listen=127.0.0.1:0"

    done = mount("alice", site.mountpoint, "-v", "-o", f"{options},mount.fuse={site.front}")

    assert done.returncode == 0, done.stderr
    site.note()
    assert site.stats()["fuse"].startswith(site.front)
    assert site.data.read_bytes() == CONTENT
    fields = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert ["alice", str(site.mountpoint), "fuse.torrentfs"] in [line[:3] for line in fields]
    command("umount", site.mountpoint)
    site.assert_nothing_left()


@NATIVE_ONLY
def test_what_it_mounted_lives_through_its_servers_death(site: Site) -> None:
    mount("alice", site.mountpoint, "-o", "listen=127.0.0.1:0,mount.fuse=native")

    site.kill_server()

    assert site.data.read_bytes() == CONTENT
    command("reload", site.mountpoint)
    assert site.stats()["listen"].startswith("127.0.0.1:")


def test_it_fails_as_mount_8_expects(site: Site) -> None:
    (site.directory / "repo/public/metadata").rename(site.directory / "away")

    done = mount("alice", site.mountpoint, "-o", f"listen=127.0.0.1:0,mount.fuse={site.front}")

    assert done.returncode == 32
    assert done.stderr.count("\n") == 1
    site.assert_nothing_left()


def test_it_names_an_unknown_option(tmp_path: Path) -> None:
    done = mount("alice", tmp_path, "-o", "rw,dance")

    assert done.returncode == 1
    assert done.stderr == "mount.torrentfs: unknown option dance\n"


def test_it_says_where_torrentfs_belongs(tmp_path: Path) -> None:
    done = mount("alice", tmp_path, environment={"TORRENTFS": "torrentfs-that-is-not-there"})

    assert done.returncode == 1
    assert 'ln -s "$PWD/.venv/bin/torrentfs" /usr/local/bin/torrentfs' in done.stderr
    assert done.stderr.count("\n") == 1
