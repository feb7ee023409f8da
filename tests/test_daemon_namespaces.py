"""What processes with mounts of their own see of a mount, hold of it, and how that ends.

A container here is a process in a mount namespace of its own (unshare -m). What it sees of mounts that come
and go outside is its propagation (mount_namespaces(7)): private (nothing), slave (all that happens outside),
shared (that, and outside is seen what happens inside).
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, NATIVE_ONLY, Site, await_true, command, torrentfs
from mounts import FRONTS

from torrentfs.daemon.mountpoint import is_mounted, mounts

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.needs("unshare", "nsenter")]

READ_ON = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
for line in sys.stdin:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    print(len(os.pread(file, 1 << 30, 0)), flush=True)
"""
"""Reads a file, open for good, each time that it is told to."""

Process = subprocess.Popen[bytes]
Container = Callable[..., Process]


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        yield made


@pytest.fixture
def container(site: Site) -> Iterator[Container]:
    """Start a container, and end it."""
    with ExitStack() as stack:

        def start(propagation: str = "private") -> Process:
            words = ["unshare", "--mount", "--propagation", propagation, "sleep", str(4 * DEADLINE_S)]
            process = stack.enter_context(subprocess.Popen(words))
            stack.callback(process.wait)
            stack.callback(process.kill)
            await_true(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == "sleep")
            return process

        yield start


@pytest.fixture
def shared(site: Site) -> Iterator[None]:
    """Have mounts below the site's directory propagate, as systemd has all of a machine's."""
    subprocess.run(["mount", "--bind", site.directory, site.directory], timeout=DEADLINE_S, check=True)
    subprocess.run(["mount", "--make-shared", site.directory], timeout=DEADLINE_S, check=True)
    yield
    site.break_up()
    subprocess.run(["umount", "-l", site.directory], timeout=DEADLINE_S, check=True)


def inside(process: Process, path: Path) -> Path:
    """Return *path* as *process* sees it."""
    return Path(f"/proc/{process.pid}/root{path}")


def has_mount(process: Process, mountpoint: Path) -> bool:
    """Tell whether *process* has a torrentfs mount at *mountpoint*."""
    own = mounts(str(process.pid))
    return any(one.kind == "fuse.torrentfs" and one.mountpoint == str(mountpoint) for one in own)


# Held


def test_a_container_that_holds_a_mount_is_named_by_every_command(site: Site, container: Container) -> None:
    site.mount()
    holder = container()
    words = f"is held by sleep ({holder.pid}) in a mount namespace of its own; torrentfs umount --force"

    refused = [
        command("umount", site.mountpoint, check=False),
        command("umount", site.mountpoint, check=False),
        site.mount(check=False),
    ]

    assert [done.returncode for done in refused] == [1, 1, 1]
    assert len({done.stderr for done in refused}) == 1
    assert refused[0].stderr.count("\n") == 1
    assert words in refused[0].stderr
    assert not is_mounted(site.mountpoint)
    assert site.stats()["mounted"] is False
    assert f"unmounted here, held by sleep ({holder.pid})" in command("stats").stdout
    assert inside(holder, site.data).read_bytes() == CONTENT


def test_force_ends_what_a_container_holds(site: Site, container: Container) -> None:
    site.mount()
    container()
    command("umount", site.mountpoint, check=False)

    command("umount", "--force", site.mountpoint)

    site.assert_nothing_left()
    site.mount()
    assert site.data.read_bytes() == CONTENT


def test_a_daemon_ends_with_the_container_that_held_it(site: Site, container: Container) -> None:
    site.mount()
    holder = container()
    command("umount", site.mountpoint, check=False)

    holder.kill()
    holder.wait()

    site.wait_for_end()
    site.assert_nothing_left()


def test_force_leaves_alone_what_was_mounted_there_since(site: Site, container: Container) -> None:
    site.mount()
    container()
    command("umount", site.mountpoint, check=False)
    subprocess.run(["mount", "-t", "tmpfs", "none", site.mountpoint], timeout=DEADLINE_S, check=True)
    try:
        command("umount", "--force", site.mountpoint)

        assert [one.kind for one in mounts() if one.mountpoint == str(site.mountpoint)] == ["tmpfs"]
        assert site.processes() == []
    finally:
        subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)


@NATIVE_ONLY
def test_what_a_container_holds_lives_through_the_servers_death(site: Site, container: Container) -> None:
    site.mount()
    holder = container()

    site.kill_server()

    words = [sys.executable, "-c", READ_ON, str(inside(holder, site.data))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdin
        assert job.stdout
        print(file=job.stdin, flush=True)
        assert job.stdout.readline() == f"{len(CONTENT)}\n"
        held = f"is held by sleep ({holder.pid}) in a mount namespace"
        assert held in command("umount", site.mountpoint, check=False).stderr

        site.kill_server()

        print(file=job.stdin, flush=True)
        assert job.stdout.readline() == f"{len(CONTENT)}\n"
        assert site.stats()["mounted"] is False
        assert held in command("umount", site.mountpoint, check=False).stderr
        job.stdin.close()
    holder.kill()
    holder.wait()
    site.wait_for_end()
    site.assert_nothing_left()


# Propagated


@pytest.mark.parametrize("propagation", ["private", "slave", "shared"])
@pytest.mark.usefixtures("shared")
def test_what_is_mounted_outside_appears_in_a_container(
    site: Site, container: Container, propagation: str
) -> None:
    holder = container(propagation)

    site.mount()

    if propagation == "private":
        assert not has_mount(holder, site.mountpoint)
        assert list(inside(holder, site.mountpoint).iterdir()) == []
    else:
        assert inside(holder, site.data).read_bytes() == CONTENT
    command("umount", site.mountpoint)
    assert not has_mount(holder, site.mountpoint)
    site.assert_nothing_left()


@pytest.mark.parametrize("propagation", ["slave", "shared"])
@NATIVE_ONLY
@pytest.mark.usefixtures("shared")
def test_a_mount_that_propagated_lives_through_the_servers_death(
    site: Site, container: Container, propagation: str
) -> None:
    holder = container(propagation)
    site.mount()

    site.kill_server()

    assert inside(holder, site.data).read_bytes() == CONTENT
    late = container(propagation)
    assert inside(late, site.data).read_bytes() == CONTENT
    command("umount", site.mountpoint)
    assert not has_mount(holder, site.mountpoint)
    assert not has_mount(late, site.mountpoint)
    site.assert_nothing_left()


@pytest.mark.usefixtures("shared")
def test_a_mount_that_propagated_and_is_used_there_is_not_ended(site: Site, container: Container) -> None:
    holder = container("slave")
    site.mount()

    file = os.open(inside(holder, site.data), os.O_RDONLY)
    try:
        refused = command("umount", site.mountpoint, check=False)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert os.pread(file, len(CONTENT), 0) == CONTENT
    finally:
        os.close(file)
    command("umount", site.mountpoint)
    assert not has_mount(holder, site.mountpoint)
    site.assert_nothing_left()


@pytest.mark.usefixtures("shared")
def test_what_is_mounted_in_a_shared_container_is_there_outside(site: Site, container: Container) -> None:
    holder = container("shared")
    enter = ["nsenter", "--mount", "-t", str(holder.pid)]

    subprocess.run(
        torrentfs("mount", site.mountpoint, *site.options, run_as=enter), timeout=DEADLINE_S, check=True
    )

    site.note()
    assert site.data.read_bytes() == CONTENT
    assert inside(holder, site.data).read_bytes() == CONTENT
    if site.front == "native":
        site.kill_server()
        assert site.data.read_bytes() == CONTENT
    command("umount", site.mountpoint)
    assert not has_mount(holder, site.mountpoint)
    site.assert_nothing_left()


def test_a_mount_of_a_private_container_is_its_own(site: Site, container: Container) -> None:
    holder = container()
    enter = ["nsenter", "--mount", "-t", str(holder.pid)]

    command("mount", site.mountpoint, *site.options, run_as=enter)

    site.note()
    assert not is_mounted(site.mountpoint)
    assert inside(holder, site.data).read_bytes() == CONTENT
    if site.front == "native":
        site.kill_server()
        assert inside(holder, site.data).read_bytes() == CONTENT
    command("umount", site.mountpoint, run_as=enter)
    assert not has_mount(holder, site.mountpoint)
    site.assert_nothing_left()
