"""This module measures what a bounded, verified cache costs; see `python -m contrib.bench.cache --help`."""

import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import xxhash
from rich.console import Console
from rich.table import Table

from contrib.bench.kernel import drop_caches, usage
from contrib.bench.material import CHUNK_LENGTH
from contrib.grid import (
    GridError,
    Node,
    Repository,
    ended_by_signals,
    ending,
    origin,
    own_command,
    run,
    scratch,
)
from torrentfs.node.store import Store
from torrentfs.repository.metainfo import PIECE_LENGTH, InfoHash, Kind, PieceIndex, TorrentRef

SEED = 20261127
MIB = 1024 * 1024
LARGE_LENGTH = 1024 * MIB
TREE_FILES, TREE_FILE_LENGTH = 3000, 100_000
UPDATED_LENGTH, CHANGED_SHARE = 300_000_000, 0.03
QUIET_S = 1.5
PROBE_LENGTH = 64 * 1024
PROBE_S = 10.0
PACKS, CACHE_LENGTH = 50, 20_000_000_000
WALKED, WALKED_FILES = 10, 20_000


@dataclass(slots=True)
class Row:
    """One figure: what was measured, beside what it is compared with, and the ratio asked for."""

    name: str
    value: float
    unit: str
    beside: str = ""
    wanted: str = ""


@dataclass(slots=True)
class Bench:
    """A repository, its origin, and nodes for each measurement."""

    place: Path
    repository: Repository
    url: str
    peer: str
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def node(self, name: str, *options: str) -> Iterator[Node]:
        """Give an unmounted node with an empty cache."""
        where = self.place / name
        made = Node(where, self.url, self.repository.trust, "127.0.0.1:0", ["--peer", self.peer, *options])
        with ending(made):
            yield made
        shutil.rmtree(where, ignore_errors=True)

    def add(self, name: str, value: float, unit: str, beside: str = "", wanted: str = "") -> None:
        self.rows.append(Row(name, value, unit, beside, wanted))
        self.say(f"{name}: {value:.4g} {unit} {beside}")


WALKER = """
import os, sys
while True:
    for place, _, names in os.walk(sys.argv[1]):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                file.read()
"""


def random_file(path: Path, length: int, seed: int) -> None:
    """Write bytes that no compression shortens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, length, CHUNK_LENGTH):
            file.write(chance.randbytes(min(CHUNK_LENGTH, length - start)))


def tree(directory: Path, files: int = TREE_FILES, length: int = TREE_FILE_LENGTH) -> None:
    """Write a package of *files*, a hundred to a directory."""
    for number in range(files):
        random_file(directory / f"{number // 100:03}" / f"{number % 100:02}", length, SEED + number)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(path: Path) -> None:
    """Read a file as `cat` does."""
    run(["sh", "-c", 'cat "$1" >/dev/null', "sh", str(path)])


def tar(directory: Path) -> None:
    """Read a tree as `tar` through a pipe does."""
    run(["sh", "-c", 'tar -C "$1" -cf - . | cat >/dev/null', "sh", str(directory)], timeout_s=600)


def fetched(node: Node) -> int:
    """Return what came over the network, once nothing comes any more; some counts are a second late."""
    before = -1
    while True:
        found = node.stats()
        moved = found["bytes"]
        now = int(moved["from_peers"] + moved["from_mirrors"] + moved["bypassed"])
        now += int(found["sources"]["redundant"])
        if now == before:
            return now
        before = now
        time.sleep(QUIET_S)


def warm(node: Node) -> None:
    """Have the kernel hold the packs, and nothing of what the mount showed."""
    drop_caches()
    for pack in sorted((node.cache / "packs").iterdir()):
        read(pack)


def measure_verification(bench: Bench) -> None:
    """Read a large file first after a start, when every piece is checked, and again, when none is."""
    source = bench.place / "large"
    random_file(source / "file", LARGE_LENGTH, SEED)
    bench.repository.publish(source, "cache/large")
    with bench.node("verification", "--set", "node.check_rate=1") as node:
        node.mount()
        file = node.mountpoint / "cache/large/file"
        read(file)
        first, again = [], []
        for _ in range(3):
            node.umount()
            node.mount()
            file.stat()
            warm(node)
            first.append(seconds(lambda: read(file)))
            warm(node)
            again.append(seconds(lambda: read(file)))
    cost = statistics.median(first) / statistics.median(again) - 1
    speeds = [LARGE_LENGTH / 1e6 / statistics.median(took) for took in (first, again)]
    bench.add(
        "verification, of a warm sequential read",
        100 * cost,
        "%",
        "{:.0f} of {:.0f} MB/s".format(*speeds),
        "<= 10",
    )
    shutil.rmtree(source)


def measure_start(bench: Bench) -> None:
    """Mount with a cache of 50 packs, sparse files whose pieces are claimed."""
    length = CACHE_LENGTH // PACKS
    with bench.node("start", "--set", "node.check_rate=1") as node:
        node.mount()
        node.umount()
        empty = node.mount()
        node.umount()
        fill(node.cache, length)
        full = []
        for _ in range(5):
            full.append(node.mount())
            held = node.stats()["bytes"]["cached"]
            node.umount()
        if held < CACHE_LENGTH * 0.99:
            raise GridError(f"the cache holds {held} bytes")
    bench.add("start with 20 GB in 50 packs", statistics.median(full), "s", f"empty {empty:.2f} s", "<= 1")


def fill(directory: Path, length: int) -> None:
    """Make sparse packs of *length* bytes, and claim all of them."""
    store = Store(directory, open_files_max=4, pieces_in_memory_max=4)
    digest = xxhash.xxh3_128_digest(bytes(PIECE_LENGTH))
    for number in range(PACKS):
        ref = TorrentRef(InfoHash(hashlib.sha256(bytes([number])).digest()), length, Kind.PACK)
        held = store.add(ref, PIECE_LENGTH)
        with store.path(ref).open("wb") as file:
            file.truncate(length)
        pieces = [(PieceIndex(piece), digest) for piece in range(held.piece_count)]
        store._state.claim(held.number, pieces)
    store.checkpoint()
    store.close()


def measure_quota(bench: Bench) -> None:
    """Read a tree of twice the quota, and with room; then cached reads of another package meanwhile."""
    source, probe = bench.place / "tree", bench.place / "probe"
    tree(source)
    random_file(probe / "file", 16 * MIB, SEED - 1)
    bench.repository.publish(source, "cache/tree")
    bench.repository.publish(probe, "cache/probe")
    bound = TREE_FILES * TREE_FILE_LENGTH // 2
    took: dict[str, float] = {}
    for name, options in {"room": (), "bound": ("--set", f"node.cache_size_max={bound}")}.items():
        with bench.node(name, *options) as node:
            node.mount()
            drop_caches()
            took[name] = seconds(lambda: tar(node.mountpoint / "cache/tree"))
            if name == "bound":
                figures = node.stats()["bytes"]
                if figures["on_disk"] > bound or not figures["evicted"]:
                    raise GridError(f"the bound of {bound} did not bind: {figures}")
    bench.add(
        "a tree of twice the quota, speed of that with room",
        took["room"] / took["bound"],
        "x",
        f"{took['bound']:.2f} of {took['room']:.2f} s",
        ">= 0.7",
    )
    for name, bound_bytes in {"without": 0, "with": bound}.items():
        with bench.node(name, "--set", f"node.cache_size_max={bound_bytes}") as node:
            node.mount()
            file = node.mountpoint / "cache/probe/file"
            read(file)
            run([*own_command(), "cache", "pin", str(node.mountpoint), "cache/probe"])
            waits = probed(file, node.mountpoint / "cache/tree")
            evicted = node.stats()["bytes"]["evicted"]
            waits.sort()
            bench.add(
                f"p99 of cached reads elsewhere, {name} eviction",
                1e3 * waits[len(waits) * 99 // 100],
                "ms",
                f"median {1e3 * statistics.median(waits):.2f}, {evicted / 1e6:.0f} MB evicted",
                "<= 5" if bound_bytes else "",
            )


def probed(file: Path, directory: Path) -> list[float]:
    """Return what reads of *file* took, none from the page cache, while a job reads *directory* again and
    again.
    """
    waits, chance = [], random.Random(SEED)
    end = time.perf_counter() + PROBE_S
    words = [sys.executable, "-c", WALKER, str(directory)]
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    size = os.fstat(descriptor).st_size
    with subprocess.Popen(words) as job:
        while time.perf_counter() < end:
            offset = chance.randrange(size // PROBE_LENGTH) * PROBE_LENGTH
            os.posix_fadvise(descriptor, offset, PROBE_LENGTH, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            os.pread(descriptor, PROBE_LENGTH, offset)
            waits.append(time.perf_counter() - start)
            time.sleep(0.001)
        if job.poll() is not None:
            raise GridError(f"the job that reads {directory} ended: {job.returncode}")
        job.kill()
    os.close(descriptor)
    return waits


def measure_update(bench: Bench) -> None:
    """Publish a package anew with 3 % of its bytes changed; read it on a node that holds the old one."""
    changes: dict[str, Callable[[Path], int]] = {
        "whole files": change_files,
        "a part of a large file": change_part,
    }
    for name, change in changes.items():
        source, path = bench.place / "package", f"cache/update-{len(name)}"
        tree(source, 2000)
        random_file(source / "large", 100 * MIB, SEED - 2)
        bench.repository.publish(source, path)
        with bench.node("update") as node:
            node.mount()
            tar(node.mountpoint / path)
            before = fetched(node)
            changed = change(source)
            bench.repository.publish(source, path)
            run([*own_command(), "refresh", str(node.mountpoint)])
            tar(node.mountpoint / path)
            cost = fetched(node) - before
        bench.add(
            f"update of {before / 1e6:.0f} MB, {name}: fetched, of the bytes changed",
            cost / changed,
            "x",
            f"{cost / 1e6:.2f} of {changed / 1e6:.2f} MB",
            "<= 1.1",
        )
        shutil.rmtree(source)


def change_files(source: Path) -> int:
    """Change 3 % of the bytes, in whole small files; return how many."""
    files = random.Random(SEED).sample(
        sorted(source.glob("*/*")), int(CHANGED_SHARE * UPDATED_LENGTH / TREE_FILE_LENGTH)
    )
    for number, path in enumerate(files):
        random_file(path, TREE_FILE_LENGTH, -number - 1)
    return len(files) * TREE_FILE_LENGTH


def change_part(source: Path) -> int:
    """Change 3 % of the bytes, side by side within the large file; return how many."""
    length = int(CHANGED_SHARE * UPDATED_LENGTH)
    with (source / "large").open("r+b") as file:
        file.seek(40 * MIB)
        file.write(random.Random(SEED).randbytes(length))
    return length


def measure_memory(bench: Bench) -> None:
    """Walk ten packages of 20,000 files each, as `ls -lR` does."""
    for number in range(WALKED):
        source = bench.place / "walked"
        for name in range(WALKED_FILES):
            path = source / f"{name // 200:03}" / f"file-{name:05}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{number} {name}\n".encode() * 20)
        bench.repository.publish(source, f"walked/{number}")
        shutil.rmtree(source)
    with bench.node("memory") as node:
        node.mount()
        before = usage(node.pid).resident_bytes
        took = seconds(lambda: run(["sh", "-c", f"ls -lR {node.mountpoint}/walked | wc -l"], timeout_s=600))
        walked = usage(node.pid).resident_bytes
        tar(node.mountpoint / "walked")
        after = usage(node.pid).resident_bytes
    bench.add(
        f"resident after {WALKED} packages of {WALKED_FILES} files were walked",
        walked / 1e6,
        "MB",
        f"{before / 1e6:.0f} before; {took:.1f} s; {after / 1e6:.0f} once all was read",
        "<= 120",
    )


MEASUREMENTS: Mapping[str, Callable[[Bench], None]] = {
    "verification": measure_verification,
    "start": measure_start,
    "quota": measure_quota,
    "update": measure_update,
    "memory": measure_memory,
}


@contextmanager
def prepared(place: Path, say: Callable[[str], None]) -> Iterator[Bench]:
    """Give a repository with nothing in it, and its running origin."""
    repository = Repository(place / "repository")
    repository.create("cache")
    with origin(repository, place / "origin.log") as seeder:
        yield Bench(place, repository, seeder.url, seeder.peer, say)


def table(rows: list[Row]) -> Table:
    shown = Table(title="A bounded, verified cache", title_style="")
    for heading in ("", "value", "", "wanted", ""):
        shown.add_column(heading, justify="right" if heading == "value" else "left")
    for row in rows:
        shown.add_row(row.name, f"{row.value:,.3g}", row.unit, row.wanted, row.beside)
    return shown


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--only", multiple=True, type=click.Choice(list(MEASUREMENTS)), help="Just these.")
@click.option(
    "--scratch",
    "parent",
    type=click.Path(path_type=Path),
    help="For repository and caches.  [default: where temporary files go]",
)
@click.option(
    "--json", "target", type=click.Path(path_type=Path), help="Write every figure to this file too."
)
def main(only: tuple[str, ...], parent: Path | None, target: Path | None) -> None:
    """Measure what a bounded, verified cache costs.

    What checking every piece costs a warm read; a start with 20 GB in 50 packs; a tree of twice the quota;
    cached reads of another package while much is evicted; what an update brings over the network; the
    server's memory after a walk over 200,000 files. Needs root: it drops the kernel's caches.
    """
    if os.geteuid() != 0:
        raise click.ClickException("needs root: it drops the kernel's caches")
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    with ended_by_signals(), scratch(parent, "torrentfs-cache-") as place:
        try:
            with prepared(place, console.print) as bench:
                for name, measure in MEASUREMENTS.items():
                    if not only or name in only:
                        measure(bench)
        except GridError as error:
            raise click.ClickException(str(error)) from error
    console.print(table(bench.rows))
    if target:
        target.write_text(json.dumps([asdict(row) for row in bench.rows], indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="contrib.bench.cache")
