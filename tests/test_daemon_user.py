"""A plain user mounts by way of fusermount3: the same life and ends, with less to say to the kernel."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, NATIVE_ONLY, Site, await_true
from mounts import FRONTS

from torrentfs.daemon.mountpoint import is_mounted

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.needs("setpriv", "unshare", "nsenter")]

NOBODY = 65_534
PLAIN = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
# To read what only root may: Python itself may lie in root's home, as that of pyenv does.
READING = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def as_user() -> tuple[str, ...]:
    """Return the words that make a command a plain user's."""
    start = [*PLAIN, "sh", "-c", f"exec {sys.executable} -c ''"]
    can = subprocess.run(start, capture_output=True, timeout=DEADLINE_S, check=False).returncode == 0
    return (*PLAIN, *([] if can else READING))


OPEN_DEVICE = """
mount --make-private "$(findmnt -nro TARGET -T /dev/fuse)" && mknod -m 666 "$0" c 10 229 &&
mount --bind "$0" /dev/fuse && echo open && exec sleep 600
"""


@contextmanager
def open_device(directory: Path) -> Iterator[list[str]]:
    """Give the words that open /dev/fuse to users for a command: in a mount namespace, if it is not open.

    What is mounted below *directory* there is mounted here too.
    """
    if Path("/dev/fuse").stat().st_mode & 0o006 == 0o006:
        yield []
        return
    subprocess.run(["mount", "--bind", directory, directory], timeout=DEADLINE_S, check=True)
    subprocess.run(["mount", "--make-shared", directory], timeout=DEADLINE_S, check=True)
    words = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", OPEN_DEVICE, directory / "fuse"]
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
            try:
                assert holder.stdout
                if holder.stdout.readline() != "open\n":
                    pytest.skip("/dev/fuse is not open to users")
                yield ["nsenter", "--mount", "-t", str(holder.pid)]
            finally:
                holder.kill()
    finally:
        subprocess.run(["umount", "-l", directory], timeout=DEADLINE_S, check=True)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the user's, which pytest's are not."""
    path = Path(tempfile.mkdtemp(prefix="torrentfs-user-"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("HOME", str(directory))
    with open_device(directory) as opened:
        run_as = (*opened, *as_user())
        with daemons.site(directory, monkeypatch, request.param, run_as=run_as) as made:
            os.chown(made.mountpoint, NOBODY, NOBODY)
            yield made


def read(site: Site) -> bytes:
    """Return the package's file as its user reads it: root may not look at a user's mount."""
    words = [*site.run_as, "cat", str(site.data)]
    return subprocess.run(words, capture_output=True, timeout=DEADLINE_S, check=True).stdout


def test_a_user_mounts_reads_and_unmounts(site: Site) -> None:
    site.mount()

    stats = site.stats()

    assert read(site) == CONTENT
    assert stats["mounted"] is True
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in site.processes()} == {NOBODY}
    [line] = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(site.mountpoint)
    ]
    assert set(line.split()[5].split(",")) >= {"ro", "nosuid", "nodev"}
    assert line.split(" - ")[1].split()[0] == "fuse.torrentfs"
    assert f"user_id={NOBODY}" in line
    site.command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_root_may_not_look_but_may_unmount(site: Site) -> None:
    site.mount()

    with pytest.raises(PermissionError):
        site.data.read_bytes()
    subprocess.run(["umount", site.mountpoint], timeout=DEADLINE_S, check=True)

    site.wait_for_end()
    site.assert_nothing_left()


def test_a_user_ends_a_mount_by_fusermount3(site: Site) -> None:
    site.mount()

    subprocess.run([*site.run_as, "fusermount3", "-u", site.mountpoint], timeout=DEADLINE_S, check=True)

    site.wait_for_end()
    site.assert_nothing_left()


def test_what_a_user_uses_is_busy_and_goes_by_force(site: Site) -> None:
    site.mount()
    holder = subprocess.Popen(
        [*site.run_as, "sh", "-c", 'exec <"$0"; echo open; exec sleep 600', str(site.data)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "open\n"

        refused = site.command("umount", site.mountpoint, check=False)
        site.command("umount", "--force", site.mountpoint)

        assert refused.returncode == 1
        assert f"sleep ({holder.pid})" in refused.stderr
        site.assert_nothing_left()
    finally:
        holder.kill()
        holder.communicate()


def test_what_a_user_killed_is_cleared(site: Site) -> None:
    site.mount()
    site.kill_all()
    site.mount()
    assert read(site) == CONTENT
    site.kill_all()

    site.command("umount", site.mountpoint)

    assert not is_mounted(site.mountpoint)


@NATIVE_ONLY
def test_a_users_mount_lives_through_the_death_of_server_and_keeper(site: Site) -> None:
    site.mount()
    site.kill_server()
    assert read(site) == CONTENT

    keeper = site.keeper
    os.kill(keeper, signal.SIGKILL)
    await_true(lambda: site.stats()["server"]["keeper"] not in (0, keeper))
    site.kill_server()

    assert read(site) == CONTENT
    site.command("umount", site.mountpoint)
    site.assert_nothing_left()


@NATIVE_ONLY
def test_a_user_reloads_a_mount_under_a_job(site: Site) -> None:
    site.mount()
    # It reads the rest when it is told to.
    script = 'exec 3<"$0"; head -c 4096 <&3; echo open; read line; exec cat <&3'
    words = [*site.run_as, "sh", "-c", script, str(site.data)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout
        assert job.stdout.read(4096 + len(b"open\n")) == CONTENT[:4096] + b"open\n"
        before = site.server

        site.command("reload", site.mountpoint)

        assert site.stats()["pid"] != before
        assert job.communicate(b"\n", timeout=DEADLINE_S)[0] == CONTENT[4096:]
        assert job.returncode == 0
    site.command("umount", site.mountpoint)
    site.assert_nothing_left()


@NATIVE_ONLY
def test_a_users_mounts_share_a_server(site: Site) -> None:
    site.mount()
    other = site.place("other")
    os.chown(other, NOBODY, NOBODY)

    site.mount(at=other)

    assert site.stats()["pid"] == site.server
    site.kill_server()
    site.command("umount", site.mountpoint)
    assert not is_mounted(site.mountpoint)
    assert site.stats(other)["pid"] == site.server
    site.command("umount", other)
    site.assert_nothing_left()


@NATIVE_ONLY
def test_a_user_mounts_in_the_foreground(site: Site) -> None:
    words = daemons.torrentfs("mount", site.mountpoint, *site.options, "--foreground", run_as=site.run_as)
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as keeper:
        await_true(lambda: is_mounted(site.mountpoint))
        assert read(site) == CONTENT

        keeper.terminate()

        assert keeper.wait(DEADLINE_S) == 0
    site.assert_nothing_left()
