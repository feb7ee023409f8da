"""Replacing a server under running jobs: by another version, with other settings, and back if that fails."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import daemons
import pytest
from daemons import CONTENT, DEADLINE_S, Site, await_true, command, torrentfs

import torrentfs as package
from torrentfs import __version__
from torrentfs.daemon import ending
from torrentfs.daemon.mountpoint import is_mounted
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

pytestmark = [pytest.mark.root, pytest.mark.fuse]

CHECKSUM = hashlib.sha256(CONTENT).hexdigest()
JOB = """
import hashlib, os, signal, sys
ended, count = [], 0
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
os.chdir(sys.argv[1])
held = os.open("data", os.O_RDONLY)
while not ended:
    os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)
    for file in (held, os.open("data", os.O_RDONLY)):
        if hashlib.sha256(os.pread(file, 1 << 30, 0)).hexdigest() != sys.argv[2]:
            sys.exit("other bytes")
    os.close(file)
    if sorted(os.listdir(".")) != ["data", "job"]:
        sys.exit("other names")
    count += 1
    if count == 1:
        print("reads", flush=True)
"""
"""Reads, by a descriptor that it holds and by name, until it is told to end."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, "native") as made:
        (tmp_path / "etc").mkdir()
        yield made


@contextmanager
def job(directory: Path) -> Iterator[None]:
    """Have a job that reads until the end of the block, where it must have seen nothing wrong."""
    words = [sys.executable, "-c", JOB, str(directory), CHECKSUM]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "reads\n"
            yield
            process.terminate()
            _, wrong = process.communicate(timeout=DEADLINE_S)
            assert (process.returncode, wrong) == (0, "")
        finally:
            process.kill()


@contextmanager
def taken_port() -> Iterator[str]:
    """Give an address that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def free_address() -> str:
    with taken_port() as address:
        return address


def write_settings(site: Site, *lines: str, **values: str) -> None:
    """Write the file that the mount's settings are read from."""
    shown = {
        "repository": site.repository.public.as_uri(),
        "trust": str(site.repository.public / "root.json"),
        "cache": str(site.directory / "cache"),
        **values,
    }
    text = [f'{name} = "{value}"' for name, value in shown.items()]
    (site.directory / "etc/mnt.toml").write_text("\n".join([*text, *lines]) + "\n")


def mount_from_file(site: Site, *options: object) -> None:
    command("mount", site.mountpoint, "--fuse", "native", *options)
    site.note()


# It succeeds


def test_another_server_serves_on(site: Site) -> None:
    site.mount()
    before, keeper = site.server, site.keeper

    with job(site.mountpoint / "TEST/v1"):
        done = command("reload", site.mountpoint)

        site.note()
        assert site.server != before
        assert site.keeper == keeper
        assert done.stdout == (
            f"{site.mountpoint}: process {site.server} serves now, torrentfs {__version__}\n"
        )

    stats = site.stats()
    assert stats["errors"] == 0
    assert stats["server"]["restarts"] == 0
    await_true(lambda: site.processes() == sorted([site.server, site.keeper]))
    command("umount", site.mountpoint)
    site.assert_nothing_left()


def test_jobs_notice_nothing_of_many_reloads(site: Site) -> None:
    site.mount()
    seen = {site.server}

    with job(site.mountpoint / "TEST/v1"), job(site.mountpoint / ".revisions/TEST/v1@1"):
        for _ in range(5):
            command("reload", site.mountpoint)
            site.note()
            seen.add(site.server)

    assert len(seen) == 6
    assert site.stats()["errors"] == 0


def test_settings_are_read_again(site: Site) -> None:
    first, second = free_address(), free_address()
    write_settings(site, "[node.swarm]", f'listen = "{first}"', "[mount]", "owner_uid = 7")
    mount_from_file(site)
    assert site.stats()["listen"] == first
    assert site.data.stat().st_uid == 7
    write_settings(site, "[node.swarm]", f'listen = "{second}"', "[mount]", "owner_uid = 8")

    command("reload", site.mountpoint)

    assert site.stats()["listen"] == second
    assert (site.mountpoint / "TEST/v1/job").stat().st_uid == 8


def test_options_that_a_mount_was_given_stay(site: Site) -> None:
    given, written = free_address(), free_address()
    write_settings(site)
    mount_from_file(site, "--listen", given, "--set", "mount.owner_uid=7")
    write_settings(site, "[node.swarm]", f'listen = "{written}"', "[mount]", "owner_uid = 8", "owner_gid = 9")

    command("reload", site.mountpoint)

    assert site.stats()["listen"] == given
    status = (site.mountpoint / "TEST/v1/job").stat()
    assert (status.st_uid, status.st_gid) == (7, 9)


def test_what_was_reloaded_lives_through_the_servers_death(site: Site) -> None:
    first, second = free_address(), free_address()
    write_settings(site, "[node.swarm]", f'listen = "{first}"')
    mount_from_file(site)
    write_settings(site, "[node.swarm]", f'listen = "{second}"')
    command("reload", site.mountpoint)
    write_settings(site, "[node.swarm]", "nonsense = 3")

    site.kill_server()

    assert site.stats()["listen"] == second
    assert site.data.read_bytes() == CONTENT


def test_the_file_that_was_named_is_read_again(site: Site) -> None:
    first, second = free_address(), free_address()
    write_settings(site, "[node.swarm]", f'listen = "{first}"')
    named = (site.directory / "etc/mnt.toml").rename(site.directory / "named.toml")
    mount_from_file(site, "--config", named)
    write_settings(site, "[node.swarm]", f'listen = "{second}"')
    (site.directory / "etc/mnt.toml").rename(named)

    command("reload", site.mountpoint)

    assert site.stats()["listen"] == second


def test_all_mounts_of_a_server_are_taken_over(site: Site) -> None:
    bob = Repository.create(site.directory / "bob", "bob")
    publish(bob, site.directory / "source", "TEST/v1", progress=None)
    other = site.place("other")
    site.mount()
    site.mount("--repository", bob.public.as_uri(), "--trust", bob.public / "root.json", at=other)
    before = site.server

    with job(site.mountpoint / "TEST/v1"), job(other / "TEST/v1"):
        done = command("reload", other)

    site.note()
    assert site.server != before
    assert site.stats(other)["pid"] == site.server
    assert done.stdout.startswith(f"{other} and 1 more: process {site.server} serves now")
    command("umount", site.mountpoint)
    command("umount", other)
    site.assert_nothing_left()


def test_a_mount_in_the_foreground_is_reloaded_too(site: Site) -> None:
    with site.foreground() as keeper:
        site.note()
        before = site.server

        command("reload", site.mountpoint)

        site.note()
        assert site.server != before
        assert site.keeper == keeper.pid
        keeper.terminate()
        assert keeper.wait(DEADLINE_S) == 0
    site.assert_nothing_left()


def test_a_mount_that_a_job_holds_after_umount_is_reloaded_too(site: Site) -> None:
    site.mount()
    with site.data.open("rb", buffering=0) as held:
        subprocess.run(["umount", "-l", site.mountpoint], timeout=DEADLINE_S, check=True)

        command("reload", site.mountpoint)

        os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert held.read() == CONTENT
        assert not is_mounted(site.mountpoint)
    site.wait_for_end()
    site.assert_nothing_left()


# It fails


AS_IT_WAS = "the server goes on as it was: "


def assert_goes_on(site: Site, refused: "subprocess.CompletedProcess[str]", says: str = AS_IT_WAS) -> None:
    """Check that the reload was refused in a line, and the server that was noted serves."""
    assert refused.returncode in (1, 2)
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith(f"torrentfs: {says}")
    assert site.stats()["pid"] == site.server
    with site.data.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == CONTENT


def test_wrong_settings_change_nothing(site: Site) -> None:
    write_settings(site)
    mount_from_file(site, "--listen", "127.0.0.1:0")

    with job(site.mountpoint / "TEST/v1"):
        write_settings(site, "[mount]", "read_deadline = 3")
        refused = command("reload", site.mountpoint, check=False)
        assert_goes_on(site, refused)
        assert "mount.read_deadline: there is no such setting" in refused.stderr

        write_settings(site, "[mount]", "read_deadline_s = 3")
        command("reload", site.mountpoint)


@pytest.mark.parametrize("name", ["cache", "trust"])
def test_what_cannot_change_is_said(site: Site, name: str) -> None:
    other = Repository.create(site.directory / "bob", "bob")
    values = {"cache": str(site.directory / "another"), "trust": str(other.public / "root.json")}
    write_settings(site)
    mount_from_file(site, "--listen", "127.0.0.1:0")
    write_settings(site, **{name: values[name]})

    refused = command("reload", site.mountpoint, check=False)

    assert_goes_on(site, refused)
    assert "takes effect when it is mounted anew" in refused.stderr


def test_a_new_server_that_cannot_start_leaves_the_old_one_serving(site: Site) -> None:
    address = free_address()
    write_settings(site, "[node.swarm]", f'listen = "{address}"')
    mount_from_file(site)
    with taken_port() as taken, job(site.mountpoint / "TEST/v1"):
        write_settings(site, "[node.swarm]", f'listen = "{taken}"')

        for _ in range(2):
            refused = command("reload", site.mountpoint, check=False)

            assert refused.returncode == 1
            assert_goes_on(site, refused)
            assert f"cannot listen on {taken}" in refused.stderr
            assert site.stats()["listen"] == address
        site.kill_server()
        assert site.stats()["listen"] == address
        await_true(lambda: len(site.processes()) == 2)

    write_settings(site, "[node.swarm]", f'listen = "{free_address()}"')
    command("reload", site.mountpoint)
    assert site.stats()["pid"] != site.server


def test_without_a_repository_the_catalog_that_is_shown_stays(site: Site) -> None:
    site.mount()
    assert site.data.read_bytes() == CONTENT
    site.repository.public.joinpath("metadata").rename(site.directory / "away")

    command("reload", site.mountpoint)

    assert site.stats()["pid"] != site.server
    assert site.data.read_bytes() == CONTENT


def test_a_mount_of_pyfuse3_cannot_be_reloaded(site: Site) -> None:
    site.mount("--fuse", "pyfuse3")

    refused = command("reload", site.mountpoint, check=False)

    assert refused.returncode == 1
    assert_goes_on(site, refused, f"{site.mountpoint} has no keeper")
    assert "has no keeper" in refused.stderr


def test_what_is_not_mounted_cannot_be_reloaded(site: Site) -> None:
    refused = command("reload", site.mountpoint, check=False)

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1


def test_two_reloads_at_a_time_leave_one_server(site: Site) -> None:
    site.mount()
    words = torrentfs("reload", site.mountpoint)

    with job(site.mountpoint / "TEST/v1"):
        started = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(2)]
        codes = [one.wait(2 * DEADLINE_S) for one in started]

    assert 0 in codes
    site.note()
    await_true(lambda: site.processes() == sorted([site.server, site.keeper]))


def test_a_keeper_that_dies_during_a_reload_costs_no_mount(site: Site) -> None:
    site.mount()
    with job(site.mountpoint / "TEST/v1"):
        with subprocess.Popen(torrentfs("reload", site.mountpoint), stderr=subprocess.DEVNULL) as reload:
            await_true(lambda: len(site.processes()) > 3 or reload.poll() is not None)
            os.kill(site.keeper, signal.SIGKILL)
            reload.wait(3 * DEADLINE_S)

        keeper = site.keeper
        await_true(lambda: site.stats()["server"]["keeper"] not in (0, keeper))
        site.note()
        await_true(lambda: site.processes() == sorted([site.server, site.keeper]))
        command("reload", site.mountpoint)
    command("umount", site.mountpoint)
    site.assert_nothing_left()


# Another version


@pytest.fixture
def installed(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this program, which commands run from now on."""
    code = site.directory / "code"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(package.__file__).parent, code / "torrentfs", ignore=ignore)
    monkeypatch.setenv("PYTHONPATH", str(code))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return code / "torrentfs"


def test_an_upgrade_reaches_a_mount_by_a_reload(site: Site, installed: Path) -> None:
    site.mount()
    with job(site.mountpoint / "TEST/v1"):
        start = installed / "__init__.py"
        start.write_text(start.read_text().replace(__version__, "99.1"))

        done = command("reload", site.mountpoint)

        assert done.stdout.endswith("serves now, torrentfs 99.1\n")
        assert site.stats()["torrentfs"] == "99.1"
        assert site.stats()["pid"] != site.server


@pytest.mark.parametrize("broken", ["daemon/server.py", "node/node.py", "daemon/serving.py"])
def test_an_upgrade_that_does_not_even_start_is_held_up(site: Site, installed: Path, broken: str) -> None:
    site.mount()
    with job(site.mountpoint / "TEST/v1"):
        module = installed / broken
        sound = module.read_text()
        module.write_text("raise RuntimeError('half of an upgrade')\n" + sound)

        refused = command("reload", site.mountpoint, check=False)

        assert refused.returncode == 1
        assert_goes_on(site, refused)
        assert "half of an upgrade" in refused.stderr
        module.write_text(sound)
        command("reload", site.mountpoint)
        assert site.stats()["pid"] != site.server


@pytest.fixture
def repair(site: Site, installed: Path) -> Callable[[], object]:
    """Have a mount without a server, as none can start any more, until this is called."""
    site.mount()
    module = installed / "daemon/server.py"
    sound = module.read_text()
    module.write_text("raise RuntimeError('half of an upgrade')\n")
    os.kill(site.server, signal.SIGKILL)
    seen: set[int] = set()
    # Two have failed when there is a third.
    await_true(lambda: seen.update(site.processes()) or len(seen - {site.server, site.keeper}) > 2)
    return lambda: module.write_text(sound)


def test_jobs_wait_while_what_is_installed_cannot_serve(site: Site, repair: Callable[[], object]) -> None:
    read = ["dd", f"if={site.data}", "bs=1M", "iflag=direct,fullblock", "status=none"]
    with subprocess.Popen(read, stdout=subprocess.PIPE) as process:
        repair()

        assert process.communicate(timeout=DEADLINE_S)[0] == CONTENT
        assert process.returncode == 0
    server = site.stats()["server"]
    assert server["restarts"] > 2
    assert "half of an upgrade" in server["last_end"]
    command("umount", site.mountpoint)
    site.assert_nothing_left()


@pytest.mark.usefixtures("repair")
def test_a_mount_whose_server_cannot_start_ends_by_force(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "FORCE_DEADLINE_S", 2.0)

    ending.end(site.mountpoint, force=True)

    assert not is_mounted(site.mountpoint)
    site.wait_for_end()
