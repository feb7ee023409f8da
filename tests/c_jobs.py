"""This module compiles the tests' jobs in C, and runs them: what a job meets without Python between.

`random_reader.c` says what the random reader does. Compile it once per run of the tests,

    @pytest.fixture(scope="session")
    def random_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return c_jobs.compiled("random_reader", tmp_path_factory.mktemp("jobs"))

and tests that use it are marked `needs("gcc")`.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILER = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
COMPILE_TIMEOUT_S = 60.0
# A reader that waits for a dead mount ends no sooner than the mount does.
RUN_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the random reader did: its failures, one a line, and its longest operation."""

    exit_code: int
    operations: int
    bytes: int
    failures: list[str]
    longest_ms: float
    longest: str


def compiled(name: str, directory: Path) -> Path:
    """Compile tests/*name*.c into *directory*; return the program."""
    program = directory / name
    done = subprocess.run(
        [*COMPILER, "-o", program, SOURCES / f"{name}.c"],
        capture_output=True,
        text=True,
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return program


def write_list(known: Path, target: Path) -> Path:
    """Write all paths below *known*, each ended by a NUL, to *target*, as the random reader takes them."""
    base = os.fsencode(known)
    paths = sorted(
        os.path.relpath(os.path.join(directory, name), base)  # noqa: PTH118 - names of any bytes
        for directory, subdirectories, files in os.walk(base)
        for name in subdirectories + files
    )
    target.write_bytes(b"".join(path + b"\0" for path in paths))
    return target


@dataclass(frozen=True, slots=True)
class RandomReader:
    """A random reader of *root*, which should be as *known* is; *listing* names the paths that it uses."""

    program: Path
    root: Path
    known: Path
    listing: Path

    def command(
        self,
        *,
        seed: int = 0,
        seconds: float | None = None,
        operations: int | None = None,
        dropping: bool = False,
    ) -> list[str]:
        """Return its command; without an end it runs until SIGTERM.

        *dropping*: it drops a file's pages from the page cache before it reads them.
        """
        options = ["-s", str(seed)]
        options += ["-t", str(seconds)] if seconds is not None else []
        options += ["-n", str(operations)] if operations is not None else []
        options += ["-d"] if dropping else []
        return [str(self.program), *options, str(self.root), str(self.known), str(self.listing)]

    def start(
        self, *, seed: int = 0, seconds: float | None = None, dropping: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start one; hand it to `end` or `outcome`."""
        command = self.command(seed=seed, seconds=seconds, dropping=dropping)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *, operations: int, seed: int = 0, dropping: bool = False) -> Outcome:
        """Run one for so many *operations*; the same ones for the same *seed*."""
        command = self.command(seed=seed, operations=operations, dropping=dropping)
        return outcome(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def end(job: subprocess.Popen[bytes]) -> Outcome:
    """Tell a started random reader to end."""
    job.terminate()
    return outcome(job)


def outcome(job: subprocess.Popen[bytes]) -> Outcome:
    """Wait for a random reader's end; return what it did.

    Raises: subprocess.TimeoutExpired; AssertionError: it was called wrongly, or killed.
    """
    try:
        printed, failures = job.communicate(timeout=RUN_TIMEOUT_S)
    finally:
        job.kill()
    assert job.returncode in {0, 1}, (job.returncode, failures)
    # File names are of any bytes.
    record = json.loads(printed.decode(errors="surrogateescape"))
    return Outcome(
        job.returncode,
        record["operations"],
        record["bytes"],
        failures.decode(errors="surrogateescape").splitlines(),
        record["longest_ms"],
        f"{record['operation']} {record['path']}",
    )
