"""This module is the jobs that meet restarts: run as `python -S restart_jobs.py stat|read …`.

No imports from the project, as in probes.py.

`stat` looks at each path that it reads from standard input, and answers with monotonic seconds and errno.

`read` reads the files in LIST below MOUNTED again and again and compares them with those below SOURCE; each
is dropped from the page cache after that, so that the next round asks the server again. It writes "ready"
after the first round, then a line for every read of STALL_S or longer: monotonic seconds of its start,
seconds, path. SIGTERM ends it with a count of its reads, an error or a difference with exit code 1.
"""

import os
import signal
import sys
from pathlib import Path
from time import monotonic
from types import FrameType

STALL_S = 0.005


def stat() -> None:
    for line in sys.stdin:
        error = 0
        try:
            os.lstat(line.rstrip("\n"))
        except OSError as failure:
            error = failure.errno or -1
        print(monotonic(), error, flush=True)


def read(source: str, mounted: str, names: str) -> None:
    known = {name: Path(source, name).read_bytes() for name in Path(names).read_text().splitlines()}
    signal.signal(signal.SIGTERM, end)
    count = 0
    try:
        while True:
            for name, expected in known.items():
                start = monotonic()
                found = read_through(os.path.join(mounted, name), len(expected))  # noqa: PTH118 - 1 µs, not 5
                took_s = monotonic() - start
                if found != expected:
                    sys.exit(f"{name} differs")
                count += 1
                if took_s >= STALL_S and count > len(known):
                    print(start, took_s, name, flush=True)
                elif count == len(known):
                    print("ready", flush=True)
    finally:
        print("reads", count, flush=True)


def read_through(path: str, length: int) -> bytes:
    """Return the file's content, and leave none of it in the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        found = os.read(file, length + 1)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    return found


def end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    if sys.argv[1:] == ["stat"]:
        stat()
    else:
        read(*sys.argv[2:])
