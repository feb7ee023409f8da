"""This module defines what is measured: each task runs jobs on a place (a mount, or ext4), returns figures.

A figure's unit says whether less or more is better. Where and how often a task runs is measuring.py's.
"""

import enum
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contrib.python_tree import PythonTree

JOB_TIMEOUT_S = 600.0
SAMPLE_COUNT = 2000
SAMPLE_SEED = 20240229
LIGHT_START = "import json, sqlite3, ssl, asyncio, unittest"
HEAVY_START = "import numpy, scipy.linalg, scipy.optimize"
SIDE_BY_SIDE = 8
PROBES = Path(__file__).with_name("probes.py")


class State(enum.Enum):
    """How near the bytes are when a task starts.

    cold: nothing cached anywhere, on a mount the node's cache is empty. warm: the node's cache is full, the
    kernel's caches are dropped, the mount is fresh. hot: once more on the same mount.
    """

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"


@dataclass(frozen=True, slots=True)
class Corner:
    """Where a task finds its material on one place."""

    tree: PythonTree
    file: Path
    names: Path  # a list of files of the tree, in random order


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement; *figures* names what it returns, with the unit of each, *states* where that counts."""

    name: str
    figures: Mapping[str, str]
    run: Callable[[Corner], Mapping[str, float]]
    states: Sequence[State] = tuple(State)


def seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run *command* to its end; return how many seconds that took, process start included."""
    return {"": elapsed_s([command], environment)}


def elapsed_s(commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None) -> float:
    """Run *commands* at once; return the seconds until the last has ended.

    Raises: RuntimeError: one failed, or runs on after JOB_TIMEOUT_S.
    """
    start = time.perf_counter()
    jobs: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            jobs.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
                )
            )
        for job in jobs:
            await_end(job)
        elapsed = time.perf_counter() - start
        codes = [job.wait() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    if any(codes):
        raise RuntimeError(f"{' '.join(commands[0][:2])} … failed: {codes}")
    return elapsed


def await_end(job: subprocess.Popen[bytes]) -> None:
    """Wait until *job* has ended; `Popen.wait` with a timeout polls, and finds out up to 50 ms later."""
    descriptor = os.pidfd_open(job.pid)
    try:
        if not select.select([descriptor], [], [], JOB_TIMEOUT_S)[0]:
            raise RuntimeError(f"{job.args!r} runs on after {JOB_TIMEOUT_S:.0f} s")
    finally:
        os.close(descriptor)


def start_python(corner: Corner, code: str) -> dict[str, float]:
    return seconds(corner.tree.command(code), corner.tree.environment())


def start_side_by_side(corner: Corner) -> dict[str, float]:
    """Start several at once; return the seconds until the last is done."""
    commands = [corner.tree.command(LIGHT_START)] * SIDE_BY_SIDE
    return {"": elapsed_s(commands, corner.tree.environment())}


def probe(name: str, *arguments: Path) -> dict[str, float]:
    """Run one of probes.py in a bare Python of the host's."""
    command = [sys.executable, "-S", str(PROBES), name, *map(str, arguments)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=JOB_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.decode(errors='replace').strip()}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def sample_names(tree: Path, target: Path) -> None:
    """Write SAMPLE_COUNT of the tree's files, in random order, to the list *target*."""
    names = [
        str(Path(directory, name).relative_to(tree))
        for directory, _, files in os.walk(tree)
        for name in files
    ]
    chosen = random.Random(SAMPLE_SEED).sample(sorted(names), min(SAMPLE_COUNT, len(names)))
    target.write_text("\n".join(chosen) + "\n")


def per_name(name: str, probe_name: str, *shown: str, states: Sequence[State] = tuple(State)) -> Task:
    """Return the task of a probe that is called for every name of the sample."""
    return Task(
        name,
        dict.fromkeys(shown, "µs"),
        lambda corner: probe(probe_name, corner.tree.prefix, corner.names),
        states,
    )


TAR = Task(
    "tar through a pipe",
    {"": "s"},
    # GNU tar does not read files when it writes to /dev/null itself.
    lambda corner: seconds(
        ["sh", "-c", 'set -e; tar -C "$1" -cf - . | cat >/dev/null', "sh", str(corner.tree.prefix)]
    ),
)
TASKS = (
    Task("find -type f", {"": "s"}, lambda corner: seconds(["find", str(corner.tree.prefix), "-type", "f"])),
    Task("ls -lR", {"": "s"}, lambda corner: seconds(["ls", "-lR", str(corner.tree.prefix)])),
    TAR,
    Task("python start", {"": "s"}, lambda corner: start_python(corner, LIGHT_START)),
    Task("numpy+scipy start", {"": "s"}, lambda corner: start_python(corner, HEAVY_START)),
    Task(f"{SIDE_BY_SIDE} python starts", {"": "s"}, start_side_by_side),
    Task("sequential", {"MB/s": "MB/s"}, lambda corner: probe("sequential", corner.file)),
    Task("first 4 KiB", {"ms": "ms"}, lambda corner: probe("first_block", corner.file)),
    Task("random 4 KiB", {"p50": "ms", "p99": "ms"}, lambda corner: probe("random_blocks", corner.file)),
    per_name("lstat, new name", "lstat_new", "p50", "p99"),
    per_name("lstat, ENOENT", "lstat_absent", "p50", "p99"),
    per_name("open+close", "open_hot", "p50", states=(State.HOT,)),
    per_name("open+read+close", "read_hot", "p50", states=(State.HOT,)),
    per_name("listdir", "listdir_hot", "p50", states=(State.HOT,)),
)

FRESHNESS = """
import importlib.util, os, sys
import json, sqlite3, ssl, asyncio, unittest, numpy, scipy.linalg, scipy.optimize
for module in list(sys.modules.values()):
    source, compiled = getattr(module, "__file__", None), getattr(module, "__cached__", None)
    if not source or not source.endswith(".py") or not compiled:
        continue
    if not source.startswith(sys.prefix):
        sys.exit(f"{source} is not from {sys.prefix}")
    with open(compiled, "rb") as file:
        header = file.read(16)
    status = os.stat(source)
    if int.from_bytes(header[8:12], "little") != int(status.st_mtime) & 0xFFFFFFFF:
        sys.exit(f"{compiled} is not of {source}'s mtime")
"""


def check_freshness(corner: Corner) -> None:
    """Check that the starts import .pyc files, none stale, and from this place alone.

    Raises: RuntimeError: Python's starts there do not measure the place.
    """
    done = subprocess.run(
        corner.tree.command(FRESHNESS),
        env=corner.tree.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
