"""This module tests that what the demonstration and the benchmark start ends with them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import daemons
import pytest
from daemons import Site
from mounts import FRONTS

from contrib.grid import (
    GridError,
    Node,
    await_line,
    await_port,
    children,
    ended_by_signals,
    free_port,
    process,
    run,
    scratch,
    undisturbed,
)

SLEEPER = [sys.executable, "-S", "-c", "import time; print('ready', flush=True); time.sleep(600)"]


def test_a_process_ends_with_its_block(tmp_path: Path) -> None:
    with process(SLEEPER, tmp_path / "log") as sleeper:
        await_line(sleeper, tmp_path / "log", "ready")

    assert sleeper.returncode == -signal.SIGTERM


def test_sigterm_ends_blocks_as_an_exception_does(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), ended_by_signals(), process(SLEEPER, tmp_path / "log") as sleeper:
        os.kill(os.getpid(), signal.SIGTERM)

    assert sleeper.returncode == -signal.SIGTERM


def test_a_signal_waits_until_cleaning_up_is_done() -> None:
    cleaned = False
    with pytest.raises(SystemExit), ended_by_signals(), undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
        cleaned = True

    assert cleaned


def test_a_signal_that_another_thread_takes_waits_too() -> None:
    cleaned = False
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(SystemExit), ended_by_signals(), undisturbed():
            signal.pthread_kill(other.ident or 0, signal.SIGTERM)
            time.sleep(0.1)
            cleaned = True
    finally:
        done.set()
        other.join()

    assert cleaned


def test_a_failing_command_says_what_it_wrote() -> None:
    with pytest.raises(GridError, match=r"exit code 3: no such disk"):
        run([sys.executable, "-S", "-c", "import sys; print('no such disk', file=sys.stderr); sys.exit(3)"])


def test_a_server_that_ends_instead_of_answering_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        process([sys.executable, "-S", "-c", "print('port in use')"], log) as ended,
        pytest.raises(GridError, match="port in use"),
    ):
        await_port(ended, "127.0.0.1", free_port(), log)


def test_a_scratch_directory_is_removed_whole_although_a_signal_comes(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), ended_by_signals(), scratch(tmp_path, "run-") as place:
        (place / "file").touch()
        os.kill(os.getpid(), signal.SIGTERM)

    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        yield made


def mounted_node(site: Site) -> Node:
    """Return a mounted node that shows the site's repository."""
    public = site.repository.public
    options = ["--fuse", site.front]
    node = Node(site.directory / "node", public.as_uri(), public / "root.json", "127.0.0.1:0", options)
    node.mount()
    site.pids |= set(node.processes)
    return node


@pytest.mark.root
@pytest.mark.fuse
def test_a_node_knows_who_serves_and_ends_them(site: Site) -> None:
    node = mounted_node(site)
    assert sorted(node.processes) == site.processes()

    node.umount()

    site.assert_nothing_left()
    assert node.processes == []


@pytest.mark.root
@pytest.mark.fuse
def test_a_node_in_use_is_ended_all_the_same_and_that_is_said(site: Site) -> None:
    node = mounted_node(site)

    with (
        subprocess.Popen([*SLEEPER], cwd=node.mountpoint / "TEST", stdout=subprocess.PIPE) as user,
        pytest.raises(GridError, match="umount"),
    ):
        assert user.stdout and user.stdout.readline() == b"ready\n"
        try:
            node.umount()
        finally:
            user.kill()

    site.assert_nothing_left()


@pytest.mark.root
@pytest.mark.fuse
@daemons.NATIVE_ONLY
def test_force_takes_the_server_that_a_keeper_started_meanwhile_too(site: Site) -> None:
    node = mounted_node(site)
    os.kill(node.pid, signal.SIGKILL)
    daemons.await_true(lambda: set(children(node.keeper)) - {node.pid})

    node.end_by_force()

    site.wait_for_end()
    assert not os.path.ismount(node.mountpoint)
