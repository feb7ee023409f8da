"""This module makes real mounts for tests, each served by a process of its own and watched by a breaker.

A mount of the native front is made here: this process holds its descriptors, as a keeper does, so that the
server may be killed and another go on.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from torrentfs.config import MountSettings
from torrentfs.errors import MountError
from torrentfs.fuse import kernel, mounting
from torrentfs.fuse.journal import Journal
from torrentfs.repository.catalog import Catalog, encode
from torrentfs.repository.metainfo import Kind

FRONTS = ("native", "pyfuse3")
BREAKER_S = 60.0
SERVER = Path(__file__).with_name("serve_local.py")


@dataclass
class Mount:
    """A mount and the process that serves it."""

    path: Path
    directory: Path
    command: list[str]
    descriptors: list[int]
    process: subprocess.Popen[str]
    swaps: int = 0

    def tell(self, line: str) -> object:
        """Have the server do something; return its answer when it is done."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stats(self) -> dict[str, int]:
        """Return the server's counters."""
        answer = self.tell("stats")
        assert isinstance(answer, dict)
        return answer

    def swap(self, catalog: Catalog) -> None:
        """Show another catalog; return when the kernel has forgotten what changed."""
        self.swaps += 1
        snapshot = self.directory / f"catalog-{self.swaps}"
        snapshot.write_bytes(encode(catalog))
        self.tell(f"swap {snapshot}")

    def log(self) -> str:
        """Return what the server has logged."""
        return (self.directory / "log").read_text()

    def succeed(self, *held: Kind) -> None:
        """Have another server, which holds back *held*, go on where one that has ended was."""
        assert self.process.stdin and self.process.stdout
        self.process.wait(BREAKER_S)
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = _start(
            [*self.command, *(kind.value for kind in held)], self.descriptors, self.directory
        )
        self.await_ready()

    def await_ready(self) -> None:
        """Return when the server answers."""
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n", self.log()


@contextmanager
def mounted(
    public: Path,
    catalog: Catalog,
    directory: Path,
    settings: MountSettings | None = None,
    held: tuple[Kind, ...] = (),
    breaker_s: float = BREAKER_S,
    front: str = "native",
) -> Iterator[Mount]:
    """Mount *catalog* at *directory*/mnt; what is left at the end, or after *breaker_s*, is cut off."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True)
    (directory / "catalog").write_bytes(encode(catalog))
    shown = msgspec.json.encode(settings or MountSettings()).decode()
    with ExitStack() as stack:
        descriptors: list[int] = []
        if front == "native":
            descriptors = stack.enter_context(_channel(mountpoint, catalog.name))
            front = ",".join(map(str, descriptors))
        command = [sys.executable, str(SERVER), front, str(public), str(mountpoint)]
        command += [str(directory / "catalog"), shown]
        process = _start([*command, *(kind.value for kind in held)], descriptors, directory)
        mount = Mount(mountpoint, directory, command, descriptors, process)
        breaker = threading.Timer(breaker_s, lambda: cut(mountpoint, mount.process))
        breaker.start()
        try:
            mount.await_ready()
            yield mount
        finally:
            end(mountpoint, mount.process)
            breaker.cancel()


@contextmanager
def _channel(mountpoint: Path, source: str) -> Iterator[list[int]]:
    """Mount, and give the descriptors that it is served by; what is still mounted at the end is not."""
    descriptor = mounting.mount(mountpoint, source=source)
    journal = Journal.create(MountSettings().requests_max)
    try:
        yield [descriptor, journal.descriptor]
    finally:
        with suppress(MountError, OSError, subprocess.SubprocessError):
            kernel.device_of(mountpoint)
            kernel.detach(mountpoint)
        os.close(descriptor)
        journal.close()


def _start(command: list[str], descriptors: list[int], directory: Path) -> subprocess.Popen[str]:
    with (directory / "log").open("a") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            pass_fds=descriptors,
        )


def end(mountpoint: Path, process: subprocess.Popen[str]) -> None:
    """End a server as it likes to be ended, or else by force."""
    assert process.stdin and process.stdout
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        cut(mountpoint, process)
        raise
    finally:
        process.stdout.close()


def cut(mountpoint: Path, process: subprocess.Popen[str]) -> None:
    """Abort the connection of a mount, unmount it and kill its server: whoever waits for it gets an error."""
    with suppress(OSError, MountError):
        kernel.abort(kernel.device_of(mountpoint))
    with suppress(OSError, subprocess.SubprocessError):
        kernel.detach(mountpoint)
    process.kill()
