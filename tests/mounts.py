"""This module makes real mounts for tests, each served by a process of its own and watched by a breaker."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from torrentfs.config import MountSettings
from torrentfs.errors import MountError
from torrentfs.fuse import kernel
from torrentfs.repository.catalog import Catalog, encode
from torrentfs.repository.metainfo import Kind

BREAKER_S = 60.0
SERVER = Path(__file__).with_name("serve_local.py")


@dataclass
class Mount:
    """A mount and the process that serves it."""

    path: Path
    process: subprocess.Popen[str]
    directory: Path
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


@contextmanager
def mounted(
    public: Path,
    catalog: Catalog,
    directory: Path,
    settings: MountSettings | None = None,
    held: tuple[Kind, ...] = (),
    breaker_s: float = BREAKER_S,
) -> Iterator[Mount]:
    """Mount *catalog* at *directory*/mnt; what is left at the end, or after *breaker_s*, is cut off."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True)
    (directory / "catalog").write_bytes(encode(catalog))
    shown = msgspec.json.encode(settings or MountSettings()).decode()
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, SERVER, public, mountpoint, directory / "catalog", shown]
            + [kind.value for kind in held],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    breaker = threading.Timer(breaker_s, cut, (mountpoint, process))
    breaker.start()
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n", (directory / "log").read_text()
        yield Mount(mountpoint, process, directory)
    finally:
        end(mountpoint, process)
        breaker.cancel()


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
