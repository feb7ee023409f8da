"""This module runs `make demo`'s program as a newcomer does: to its end, and interrupted on the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
DEADLINE_S = 120

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow]


@contextmanager
def demonstration(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the demonstration in *directory*; it is killed if it outlives the block."""
    command = [sys.executable, "-u", "-m", "contrib.demo", "--directory", str(directory)]
    running = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def leftovers(directory: Path) -> list[str]:
    """Return files in *directory*, mounts below it, and processes that name it."""
    found = [str(path) for path in directory.iterdir()]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in command:
            found.append(f"{process.name}: {command!r}")
    return found


def test_the_demonstration_shows_three_runs_and_leaves_nothing(tmp_path: Path) -> None:
    with demonstration(tmp_path) as running:
        printed, _ = running.communicate(timeout=DEADLINE_S)

    assert running.returncode == 0, printed
    for run in ("node 1, cold", "node 2, cold, node 1 a peer", "node 2, warm"):
        assert run in printed
    assert leftovers(tmp_path) == []


def test_a_demonstration_ended_by_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with demonstration(tmp_path) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("node 1 mounts"):
                break
        os.killpg(running.pid, signal.SIGINT)  # a terminal interrupts the whole foreground group
        running.stdout.read()
        running.wait(DEADLINE_S)

    assert running.returncode == 128 + signal.SIGINT
    assert leftovers(tmp_path) == []
