"""This module is the processes that wait for a source that is silent: started, seen to wait, killed."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from contrib.grid import GridError, Node, undisturbed

WAIT_DEADLINE_S = 60.0
WAIT_INTERVAL_S = 0.1
DEATH_DEADLINE_S = 10.0
ASLEEP_LOOKS = 3
SLEEPING = "SD"
"""A reader of names sleeps so that a signal wakes it, one of bytes so that only SIGKILL does."""
SETTLE_S = 0.5


class UndeadError(GridError):
    """Readers outlive SIGKILL."""


@contextmanager
def silent(pid: int) -> Iterator[None]:
    """Keep a process from running, and so from answering: its connections stay."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Readers:
    """Processes that read one file each."""

    def __init__(self) -> None:
        self.jobs: list[subprocess.Popen[bytes]] = []

    def start(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self.jobs.append(
                subprocess.Popen(
                    ["cat", path],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )

    def check(self) -> None:
        """Raises: GridError: a reader has ended, although nothing can have come."""
        if ended := sum(job.poll() is not None for job in self.jobs):
            raise GridError(f"{ended} of {len(self.jobs)} readers ended although their source is silent")

    def sleep(self) -> bool:
        """Return whether they all sleep: somebody is to do something before they go on."""
        return all(state(job.pid) in SLEEPING for job in self.jobs)

    def kill(self) -> float:
        """SIGKILL them all; return the seconds from the first kill to the end of the last.

        Raises: UndeadError: some live DEATH_DEADLINE_S later. They stay ours.
        """
        start = time.monotonic()
        for job in self.jobs:
            job.kill()
        # One after the other: the last is seen at its end, and those before cost us nothing meanwhile.
        undead = [job for job in self.jobs if not ends(job, start + DEATH_DEADLINE_S)]
        took_s = time.monotonic() - start
        count, self.jobs = len(self.jobs), undead
        if undead:
            raise UndeadError(f"{len(undead)} of {count} readers live {DEATH_DEADLINE_S:.0f} s after SIGKILL")
        return took_s


@contextmanager
def readers() -> Iterator[Readers]:
    """Give readers, none yet; none is left after the block if their source answers again by then."""
    made = Readers()
    try:
        yield made
    finally:
        with undisturbed():
            made.kill()


def state(pid: int) -> str:
    """Return the state of a process as a letter; see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def ends(job: "subprocess.Popen[bytes]", deadline: float) -> bool:
    """Wait for the end of *job*, until *deadline* at most; `Popen.wait` with a timeout polls."""
    if job.poll() is not None:
        return True
    descriptor = os.pidfd_open(job.pid)
    try:
        has_ended = bool(select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0])
    finally:
        os.close(descriptor)
    if has_ended:
        job.wait()
    return has_ended


def start_waiting(node: Node, started: Readers, paths: Sequence[Path]) -> int:
    """Start a reader for each of *paths*; return once all wait and all is quiet: how many requests wait.

    Those may be fewer, as the kernel may ask for one thing at a time, and more, of readers that are dead.
    Raises: GridError: a reader ended, or WAIT_DEADLINE_S are over.
    """
    started.start(paths)
    deadline = time.monotonic() + WAIT_DEADLINE_S
    asleep = 0  # looks in a row
    while asleep < ASLEEP_LOOKS:
        time.sleep(WAIT_INTERVAL_S)
        started.check()
        if time.monotonic() > deadline:
            raise GridError(f"some of {len(paths)} readers run on after {WAIT_DEADLINE_S:.0f} s")
        asleep = asleep + 1 if started.sleep() else 0
    requests = int(node.stats()["reads"]["waiting"])
    if not requests:
        raise GridError("no request waits in the server: the readers wait for something else")
    # Our starting them and asking is not to be measured as theirs.
    time.sleep(SETTLE_S)
    return requests
