"""This module tests what is read from /proc of processes that were sent a signal.

A signal stays pending while its process is stopped, or blocks it. A reader that waits in a FUSE mount, which
is what this is for, is looked at in test_fuse_native.py.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from torrentfs.fuse.signals import is_asked_to_end, is_dying

JOB = """
import signal, sys
how, number = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGINT, signal.SIG_DFL)
if how == "catch": signal.signal(number, lambda *_: None)
if how == "ignore": signal.signal(number, signal.SIG_IGN)
if how == "block": signal.pthread_sigmask(signal.SIG_BLOCK, [number])
print("ready", flush=True)
while True: signal.pause()
"""

Process = subprocess.Popen[str]


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Processes that are ended after the test, stopped or not."""
    made: list[Process] = []
    yield made
    for process in made:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def start(processes: list[Process], how: str = "", number: int = 0) -> int:
    """Start a process that treats a signal *how* the test wants; return its number."""
    command = [sys.executable, "-S", "-E", "-c", JOB, how, str(int(number))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process.pid


def stop(pid: int) -> None:
    """Stop a process; return when it is, so that what is sent to it now stays pending."""
    os.kill(pid, signal.SIGSTOP)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def seen(pid: int) -> tuple[bool, bool]:
    return is_dying(pid), is_asked_to_end(pid)


def test_a_process_without_a_signal_goes_on(processes: list[Process]) -> None:
    assert seen(start(processes)) == (False, False)


def test_a_process_that_is_stopped_goes_on(processes: list[Process]) -> None:
    pid = start(processes)

    stop(pid)

    assert seen(pid) == (False, False)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGALRM,
        signal.SIGRTMIN,
        signal.SIGRTMAX,
    ],
)
def test_a_signal_that_nobody_handles_ends_the_process(processes: list[Process], number: int) -> None:
    pid = start(processes)
    stop(pid)

    os.kill(pid, number)

    assert seen(pid) == (True, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_handler_may_mean_the_end(processes: list[Process], number: int) -> None:
    pid = start(processes, "catch", number)
    stop(pid)

    os.kill(pid, number)

    assert seen(pid) == (False, True)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH])
def test_handlers_of_other_signals_do_not(processes: list[Process], number: int) -> None:
    pid = start(processes, "catch", number)
    stop(pid)

    os.kill(pid, number)

    assert seen(pid) == (False, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("how", ["ignore", "block"])
def test_who_does_not_want_a_signal_is_not_ended_by_it(
    processes: list[Process], number: int, how: str
) -> None:
    pid = start(processes, how, number)
    stop(pid)

    os.kill(pid, number)

    assert seen(pid) == (False, False)


def test_a_blocked_signal_stays_pending_and_ends_nobody(processes: list[Process]) -> None:
    pid = start(processes, "block", signal.SIGTERM)

    os.kill(pid, signal.SIGTERM)

    assert seen(pid) == (False, False)
    assert processes[0].poll() is None


@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH])
def test_signals_that_end_nobody_by_default_end_nobody(processes: list[Process], number: int) -> None:
    pid = start(processes)
    stop(pid)

    os.kill(pid, number)

    assert seen(pid) == (False, False)


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU])
def test_signals_that_stop_by_default_end_nobody(processes: list[Process], number: int) -> None:
    pid = start(processes, "block", signal.SIGUSR2)
    stop(pid)

    os.kill(pid, number)

    assert seen(pid) == (False, False)


def test_who_is_dying_of_one_signal_is_dying_whatever_else_is_handled(processes: list[Process]) -> None:
    pid = start(processes, "catch", signal.SIGINT)
    stop(pid)

    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)

    assert seen(pid) == (True, True)


def test_who_was_killed_is_dying(processes: list[Process]) -> None:
    pid = start(processes, "block", signal.SIGTERM)
    stop(pid)

    os.kill(pid, signal.SIGKILL)
    # Dead, and not yet collected: there still is something to see.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    assert seen(pid) == (True, True)


def test_who_is_gone_never_sees_an_answer(processes: list[Process]) -> None:
    pid = start(processes)
    processes[0].kill()
    processes[0].wait()

    assert seen(pid) == (True, True)


def test_who_cannot_be_seen_counts_as_gone() -> None:
    assert seen(0) == (True, True)


def test_a_thread_has_what_is_pending_for_its_whole_process(processes: list[Process]) -> None:
    script = (
        "import threading, signal; signal.signal(2, signal.SIG_DFL); lock = threading.Lock(); lock.acquire()"
    )
    script += "; thread = threading.Thread(target=lock.acquire, daemon=True); thread.start()"
    script += "; print(thread.native_id, flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", script], stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout
    thread = int(process.stdout.readline())
    assert seen(thread) == (False, False)
    stop(process.pid)

    os.kill(process.pid, signal.SIGTERM)

    assert seen(thread) == (True, True)
