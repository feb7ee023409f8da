"""This module gives tests a repository and real daemons that mount it, started and ended as an admin does.

Each test file says which fronts its tests are for:

    @pytest.fixture(params=FRONTS)
    def site(request: …, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
        with daemons.site(tmp_path, monkeypatch, request.param) as made:
            yield made

The mounts are read by the tests' process or by jobs: others than the one that serves them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from torrentfs.daemon.mountpoint import is_mounted, mounts, resolve, unmount
from torrentfs.errors import MountError
from torrentfs.fuse import kernel
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

DEADLINE_S = 60
BREAKER_S = 150.0
CONTENT = bytes(range(256)) * 4096
DAEMON = re.compile(rb"torrentfs\.(daemon|fuse)\.|-m\0torrentfs\0")
"""What tells our processes in /proc/PID/cmdline."""
NATIVE_ONLY = pytest.mark.parametrize("site", ["native"], indirect=True)
PYFUSE3_ONLY = pytest.mark.parametrize("site", ["pyfuse3"], indirect=True)


def command(
    *arguments: object, check: bool = True, run_as: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does, or the one that the words of *run_as* make of us."""
    done = subprocess.run(
        torrentfs(*arguments, run_as=run_as),
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def torrentfs(*arguments: object, run_as: Sequence[str] = ()) -> list[str]:
    """Return the words that run the command line."""
    return [*run_as, sys.executable, "-m", "torrentfs", *map(str, arguments)]


def await_true(condition: Callable[[], object]) -> None:
    """Return when *condition* is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Tell whether *pid* still is a process of torrentfs, or ends and may have descriptors open."""
    process = Path(f"/proc/{pid}")
    with suppress(OSError):
        state = (process / "stat").read_bytes().rpartition(b") ")[2][:1]
        if state in b"XZ" and len(list((process / "task").iterdir())) <= 1:
            return False
        # One that ends has no command line any more.
        words = (process / "cmdline").read_bytes()
        return not words or bool(DAEMON.search(words))
    return False


@dataclass
class Site:
    """A repository with one package, and a place for a mount of it."""

    directory: Path
    repository: Repository
    mountpoint: Path
    front: str
    run_as: tuple[str, ...] = ()
    server: int = 0
    """As `note` saw it last."""
    keeper: int = 0
    """0: there is none."""
    pids: set[int] = field(default_factory=set)
    """Every server and keeper that was seen."""

    @property
    def options(self) -> list[object]:
        """What `torrentfs mount` needs beside the mountpoint."""
        return [
            *("--repository", self.repository.public.as_uri()),
            *("--trust", self.repository.public / "root.json"),
            *("--cache", self.directory / "cache"),
            *("--listen", "127.0.0.1:0"),
            *("--fuse", self.front),
        ]

    @property
    def data(self) -> Path:
        """The package's file, whose bytes are CONTENT."""
        return self.mountpoint / "TEST/v1/data"

    def place(self, name: str) -> Path:
        """Return one more mountpoint."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return resolve(path)

    def command(self, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the command line."""
        return command(*arguments, check=check, run_as=self.run_as)

    def mount(
        self, *more: object, at: Path | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Mount, and note who serves."""
        place = at or self.mountpoint
        done = self.command("mount", place, *self.options, *more, check=check)
        if done.returncode == 0:
            self.note(place)
        return done

    @contextmanager
    def foreground(self, *more: object, at: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
        """Mount in the foreground, and give the process once the tree is there and it awaits signals."""
        place = at or self.mountpoint
        words = torrentfs("mount", place, *self.options, *more, "--foreground", run_as=self.run_as)
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
            self.pids.add(process.pid)
            try:
                await_true(lambda: is_mounted(place) and _awaits_its_end(process.pid))
                place.stat()
                yield process
            finally:
                process.kill()

    def stats(self, at: Path | None = None) -> dict[str, Any]:
        """Return what the daemon tells of itself."""
        record = json.loads(self.command("stats", at or self.mountpoint, "--json").stdout)
        assert isinstance(record, dict)
        return record

    def note(self, at: Path | None = None) -> None:
        """Remember who serves."""
        seen = self.stats(at)["server"]
        self.server, self.keeper = seen["pid"], seen["keeper"]
        self.pids |= {self.server, self.keeper} - {0}

    def processes(self) -> list[int]:
        """Return all processes of torrentfs that were started here, seen or not."""
        return sorted(
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and self._is_ours(process) and is_running(int(process.name))
        )

    def _is_ours(self, process: Path) -> bool:
        """Tell whether the *process*, a directory of /proc, has this site's environment."""
        ours = b"TORRENTFS_RUNTIME_DIR=" + os.fsencode(self.directory / "run") + b"\0"
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            environment = b""
        # One that ends has none any more.
        return ours in environment or (not environment and int(process.name) in self.pids)

    def kill_server(self, number: int = signal.SIGKILL) -> None:
        """Kill the server that serves, and return when another does."""
        self.note()
        before = self.server
        os.kill(before, number)
        await_true(lambda: self.stats()["pid"] != before)
        self.note()

    def kill_all(self) -> None:
        """Kill keeper and server; what is mounted is dead then."""
        self.note()
        self.pids |= set(self.processes())
        if self.keeper:
            # Neither has time to start the other again. A stopped server would be continued: its process
            # group becomes an orphan.
            os.kill(self.keeper, signal.SIGSTOP)
        os.kill(self.server, signal.SIGKILL)
        if self.keeper:
            os.kill(self.keeper, signal.SIGKILL)
        self.wait_for_end()

    def wait_for_end(self) -> None:
        """Return when the last process has gone."""
        await_true(lambda: not self.processes())

    def assert_nothing_left(self) -> None:
        """Check that neither mount nor process nor socket remains."""
        assert self._mounts() == []
        assert list((self.directory / "run").glob("*")) == []
        assert self.processes() == []

    def break_up(self) -> None:
        """End whatever is still there."""
        for _ in range(5):
            # A keeper before its server, or it starts another.
            for pid in sorted(self.processes(), key=lambda pid: pid != self.keeper and not _is_keeper(pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.cut()
            for path in reversed(self._mounts()):
                with suppress(MountError):
                    unmount(Path(path), lazy=True)
        self.wait_for_end()

    def cut(self) -> None:
        """Abort the connections of this site's mounts: whoever waits for them gets an error."""
        for path in self._mounts():
            with suppress(OSError, MountError):
                kernel.abort(kernel.device_of(Path(path)))

    def _mounts(self) -> list[str]:
        below = f"{resolve(self.directory)}/"
        return [
            one.mountpoint
            for one in mounts()
            if one.kind == "fuse.torrentfs" and one.mountpoint.startswith(below)
        ]


def _awaits_its_end(pid: int) -> bool:
    """Tell whether process *pid* has a handler for SIGTERM (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << signal.SIGTERM - 1)


def _is_keeper(pid: int) -> bool:
    with suppress(OSError):
        return b"torrentfs.daemon.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextmanager
def site(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    front: str,
    *,
    breaker_s: float = BREAKER_S,
    run_as: tuple[str, ...] = (),
) -> Iterator[Site]:
    """Give a site in *directory*, whose mounts are cut after *breaker_s*, and end all that it started."""
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(directory / "run"))
    monkeypatch.setenv("TORRENTFS_CONFIG_DIR", str(directory / "etc"))
    source = directory / "source"
    source.mkdir()
    (source / "data").write_bytes(CONTENT)
    (source / "job").write_text("#!/bin/sh\necho done\n")
    (source / "job").chmod(0o755)
    repository = Repository.create(directory / "repo", "alice")
    publish(repository, source, "TEST/v1", progress=None)
    (directory / "mnt").mkdir()
    made = Site(directory, repository, resolve(directory / "mnt"), front, run_as)
    breaker = threading.Timer(breaker_s, made.cut)
    breaker.start()
    try:
        yield made
    finally:
        breaker.cancel()
        made.break_up()
