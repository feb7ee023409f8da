"""This module defines what is measured: each task runs jobs on a place (a mount, or ext4), returns figures.

A figure's unit says whether less or more is better.
"""

import json
import os
import random
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


@dataclass(frozen=True, slots=True)
class Corner:
    """Where a task finds its material on one place."""

    tree: PythonTree
    file: Path
    names: Path  # a list of files of the tree, in random order


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement; *figures* names what it returns, with the unit of each."""

    name: str
    figures: Mapping[str, str]
    run: Callable[[Corner], Mapping[str, float]]


def seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run *command* to its end; return how many seconds that took, process start included."""
    start = time.perf_counter()
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
        timeout=JOB_TIMEOUT_S,
        check=True,
    )
    return {"": time.perf_counter() - start}


def start_python(corner: Corner, code: str) -> dict[str, float]:
    return seconds(corner.tree.command(code), corner.tree.environment())


def start_side_by_side(corner: Corner) -> dict[str, float]:
    """Start several at once; return the seconds until the last is done."""
    command, environment = corner.tree.command(LIGHT_START), corner.tree.environment()
    start = time.perf_counter()
    jobs = [subprocess.Popen(command, env=environment) for _ in range(SIDE_BY_SIDE)]
    codes = [job.wait(JOB_TIMEOUT_S) for job in jobs]
    elapsed_s = time.perf_counter() - start
    if any(codes):
        raise RuntimeError(f"of {SIDE_BY_SIDE} starts some failed: {codes}")
    return {"": elapsed_s}


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
    Task(
        "lstat, new name",
        {"p50": "µs", "p99": "µs"},
        lambda corner: probe("lstat_new", corner.tree.prefix, corner.names),
    ),
    Task(
        "lstat, ENOENT",
        {"p50": "µs", "p99": "µs"},
        lambda corner: probe("lstat_absent", corner.tree.prefix, corner.names),
    ),
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
