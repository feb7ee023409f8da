"""This module tests that what the demonstration and the benchmark start ends with them."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from contrib.grid import (
    GridError,
    await_line,
    await_port,
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
