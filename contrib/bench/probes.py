"""This module is the job that measures from inside: run as `python -S probes.py NAME PATH…`, prints JSON.

It is a file of its own without imports from the project, so that the process is as light as a job can be.
Times are taken around the system calls by time.perf_counter_ns; Python's own share is about 0.3 µs of each.
Names are relative to the tree's root: how deep the tree lies is not the filesystem's doing.
"""

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

BLOCK_LENGTH = 4096
READ_LENGTH = 1024 * 1024
RANDOM_READS = 300
SEED = 20240229
HOT_ROUNDS = 5


def sequential(path: str) -> dict[str, float]:
    """Read the whole file; MB/s."""
    buffer = bytearray(READ_LENGTH)
    total = 0
    file = os.open(path, os.O_RDONLY)
    start = perf_counter_ns()
    while count := os.readv(file, [buffer]):
        total += count
    elapsed_ns = perf_counter_ns() - start
    os.close(file)
    return {"MB/s": total / elapsed_ns * 1e3}


def first_block(path: str) -> dict[str, float]:
    """Open the file and read its first 4 KiB; ms."""
    start = perf_counter_ns()
    file = os.open(path, os.O_RDONLY)
    os.pread(file, BLOCK_LENGTH, 0)
    elapsed_ns = perf_counter_ns() - start
    os.close(file)
    return {"ms": elapsed_ns / 1e6}


def random_blocks(path: str) -> dict[str, float]:
    """Read blocks at random places of the second half, which does not compress; ms.

    The half of zeros packs into a handful of pieces: reads there would only look good.
    """
    file = os.open(path, os.O_RDONLY)
    blocks = os.fstat(file).st_size // BLOCK_LENGTH
    places = random.Random(SEED).sample(range(blocks // 2, blocks), min(RANDOM_READS, blocks // 2))
    times_ns = timed(lambda place: os.pread(file, BLOCK_LENGTH, place * BLOCK_LENGTH), places)
    os.close(file)
    return percentiles(times_ns, 1e6)


def lstat_new(root: str, names: str) -> dict[str, float]:
    """Look at names that were not looked at before, in directories that were; µs."""
    paths = prepared(root, names)
    return percentiles(timed(os.lstat, paths), 1e3)


def lstat_absent(root: str, names: str) -> dict[str, float]:
    """Look for names that do not exist, each for the first time; µs."""
    paths = [f"{path}.absent" for path in prepared(root, names)]
    return percentiles(timed(missing, paths), 1e3)


def stat_hot(root: str, names: str) -> dict[str, float]:
    """Look at names that were looked at before; µs."""
    return hot(os.lstat, prepared(root, names))


def open_hot(root: str, names: str) -> dict[str, float]:
    """Open and close files that were opened before; µs."""
    return hot(open_close, prepared(root, names))


def read_hot(root: str, names: str) -> dict[str, float]:
    """Open, read (the first 4 KiB) and close files that were read before; µs."""
    buffers = [bytearray(BLOCK_LENGTH)]

    def read(path: str) -> None:
        file = os.open(path, os.O_RDONLY)
        os.readv(file, buffers)
        os.close(file)

    return hot(read, prepared(root, names))


def read_warm(root: str, names: str) -> dict[str, float]:
    """Open, read and close files that were read before and are not in the page cache any more; µs."""
    paths = prepared(root, names)
    times_ns = []
    for path in paths * (1 + HOT_ROUNDS):
        times_ns += timed(read_whole, [path])
        drop(path)
    return percentiles(times_ns[len(paths) :], 1e3)


def read_whole(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    os.read(file, READ_LENGTH)
    os.close(file)


def drop(path: str) -> None:
    """Drop a file's pages from the page cache."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def listdir_hot(root: str, names: str) -> dict[str, float]:
    """List directories that were listed before; µs."""
    return hot(os.listdir, directories(prepared(root, names)))


def open_close(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def hot(call: Callable[[str], object], paths: list[str]) -> dict[str, float]:
    """Call for every path several times; leave the first round out, which brings everything near."""
    rounds = [timed(call, paths) for _ in range(1 + HOT_ROUNDS)]
    return percentiles([time_ns for times_ns in rounds[1:] for time_ns in times_ns], 1e3)


def prepared(root: str, names: str) -> list[str]:
    """Go to *root*; return the paths in the list *names*, after a look at each one's directory."""
    os.chdir(root)
    paths = Path(names).read_text().splitlines()
    for directory in directories(paths):
        os.lstat(directory)
    return paths


def directories(paths: list[str]) -> list[str]:
    """Return the directories that *paths* lie in, each once."""
    return sorted({str(Path(path).parent) for path in paths})


def missing(path: str) -> None:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    raise SystemExit(f"{path} should not exist")


def timed(call: Callable[[Any], object], arguments: Sequence[Any]) -> list[int]:
    """Return the nanoseconds that each call took."""
    times_ns = []
    for argument in arguments:
        start = perf_counter_ns()
        call(argument)
        times_ns.append(perf_counter_ns() - start)
    return times_ns


def percentiles(times_ns: list[int], divisor: float) -> dict[str, float]:
    times_ns.sort()
    return {
        "p50": times_ns[len(times_ns) // 2] / divisor,
        "p99": times_ns[len(times_ns) * 99 // 100] / divisor,
    }


PROBES: dict[str, Callable[..., dict[str, float]]] = {
    probe.__name__: probe
    for probe in (
        sequential,
        first_block,
        random_blocks,
        lstat_new,
        lstat_absent,
        stat_hot,
        open_hot,
        read_hot,
        read_warm,
        listdir_hot,
    )
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])))
