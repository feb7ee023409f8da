"""This module kills a mount's server under a running job, and finds out what the job and others see of it."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ECONNABORTED, ECONNRESET, ENOTCONN
from pathlib import Path

from contrib.bench import restart_jobs
from contrib.bench.kernel import usage
from contrib.grid import LOG_TAIL, GridError, Node, await_line, process

SEED = 20240229
ANSWER_DEADLINE_S = 60.0
DEATH_DEADLINE_S = 10.0
# A keeper restarts at once what was ready for 0.25 s, and backs off otherwise: kill no sooner.
PAUSE_S = (0.5, 1.5)
DEAD = (ENOTCONN, ECONNABORTED, ECONNRESET)
JOB = [sys.executable, "-S", restart_jobs.__file__]


class DiesWithServerError(GridError):
    """The mount has no keeper: it went with its server."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill of the server: when (monotonic), and seconds until a new name was answered."""

    at: float
    answer_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """One read of the job that took long."""

    start: float
    seconds: float


class Onlooker:
    """A process that looks at one path at a time."""

    def __init__(self) -> None:
        self._job = subprocess.Popen([*JOB, "stat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def look(self, path: Path) -> float:
        """Have *path* looked at; return the monotonic time when the answer was there.

        Raises: DiesWithServerError, GridError.
        """
        assert self._job.stdin and self._job.stdout
        self._job.stdin.write(f"{path}\n")
        self._job.stdin.flush()
        if not select.select([self._job.stdout], [], [], ANSWER_DEADLINE_S)[0]:
            raise GridError(f"no answer within {ANSWER_DEADLINE_S:.0f} s after the server was killed")
        moment, error = self._job.stdout.readline().split()
        if int(error) in DEAD:
            raise DiesWithServerError(f"this mount dies with its server: {os.strerror(int(error))}")
        if int(error):
            raise GridError(f"{path} after the server was killed: {os.strerror(int(error))}")
        return float(moment)

    def end(self) -> None:
        self._job.kill()
        with suppress(subprocess.TimeoutExpired):
            # It may wait for a mount that is ended only after this.
            self._job.wait(1)


@contextmanager
def onlooker() -> Iterator[Onlooker]:
    made = Onlooker()
    try:
        yield made
    finally:
        made.end()


def kill(pid: int) -> float:
    """SIGKILL *pid* and wait until it is gone; return the monotonic time of the kill."""
    descriptor = os.pidfd_open(pid)
    try:
        now = time.monotonic()
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not select.select([descriptor], [], [], DEATH_DEADLINE_S)[0]:
            raise GridError(f"process {pid} lives {DEATH_DEADLINE_S:.0f} s after SIGKILL")
        return now
    finally:
        os.close(descriptor)


def await_successor(node: Node) -> None:
    """Wait until another server than the one that was killed says that it serves the mount."""
    killed, deadline = node.pid, time.monotonic() + ANSWER_DEADLINE_S
    while node.pid == killed:
        if time.monotonic() > deadline:
            raise GridError(f"no other server answers `stats` within {ANSWER_DEADLINE_S:.0f} s")
        with suppress(GridError):
            node.learn_processes()


def kill_often(node: Node, paths: Sequence[Path], job: subprocess.Popen[bytes]) -> list[Kill]:
    """Kill the server once for each of *paths*, at random moments, and have that path looked at at once."""
    chance, kills = random.Random(SEED), []
    with onlooker() as looking:
        for path in paths:
            time.sleep(chance.uniform(*PAUSE_S))
            if job.poll() is not None:
                break
            at = kill(node.pid)
            kills.append(Kill(at, looking.look(path) - at))
            await_successor(node)
    return kills


def stalls_s(kills: Sequence[Kill], reads: Sequence[Read]) -> list[float]:
    """Return for each kill the longest of *reads* that was under way between it and the next."""
    ends = [later.at for later in kills[1:]] + [float("inf")]
    return [
        max(
            (read.seconds for read in reads if read.start < end and read.start + read.seconds > kill.at),
            default=0.0,
        )
        for kill, end in zip(kills, ends, strict=True)
    ]


def job_result(log: Path) -> tuple[int, list[Read]]:
    """Return how many reads the job made, and those that took long."""
    count, reads = 0, []
    for line in log.read_text().splitlines():
        match line.split():
            case ["reads", number]:
                count = int(number)
            case [start, seconds, _]:
                reads.append(Read(float(start), float(seconds)))
    return count, reads


def measure(
    node: Node, source: Path, names: Sequence[str], fresh: Sequence[str], place: Path
) -> dict[str, list[float]]:
    """Kill the server of the mounted *node* once for each name in *fresh*; return the figures.

    Meanwhile a job reads *names* and compares them with those below *source*. Its log goes to *place*.
    Raises: GridError: the job failed, or the mount is dead.
    """
    listing, log = place / "names", place / "job.log"
    listing.write_text("\n".join(names) + "\n")
    with process([*JOB, "read", str(source), str(node.mountpoint), str(listing)], log) as job:
        await_line(job, log, "ready")
        kills = kill_often(node, [node.mountpoint / name for name in fresh], job)
        server, keeper = (usage(pid).resident_bytes / 1e6 if pid else 0.0 for pid in (node.pid, node.keeper))
    if job.returncode:
        raise GridError(f"the job failed with {job.returncode}: {log.read_text()[-LOG_TAIL:].strip()}")
    count, reads = job_result(log)
    return {
        "reads of the job": [count],
        "restart to first answer, ms": [kill.answer_s * 1e3 for kill in kills],
        "longest stall of the job, ms": [stall_s * 1e3 for stall_s in stalls_s(kills, reads)],
        "resident server, MB": [server],
        "resident keeper, MB": [keeper],
    }
