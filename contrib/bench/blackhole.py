"""This module measures a mount whose source is silent; see `python -m contrib.bench.blackhole --help`."""

import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from contrib.bench.places import mount_options
from contrib.bench.tasks import probe
from contrib.grid import (
    GridError,
    Node,
    Origin,
    Repository,
    ended_by_signals,
    ending,
    origin,
    own_command,
    run,
    scratch,
)

SEED: Final = 20240229
HOT_FILES: Final = 500
HOT_LENGTH_MAX: Final = 8 * 1024
DARK_LENGTH: Final = 64 * 1024
HOT, DARK, UNKNOWN = "blackhole/hot", "blackhole/dark", "blackhole/unknown"
KINDS: Final = {"bytes": DARK, "names": UNKNOWN}
"""What readers wait for. Who waits for bytes waits for a page; who waits for a name, for our very answer."""
PROBES: Final = {
    "stat_hot": "hot stat",
    "read_hot": "hot open+read+close",
    "read_warm": "warm open+read+close",
}
TARGET_MS: Final = 1.0
DEATH: Final = "SIGKILL to the last reader's end"
TARGET_DEATH_MS: Final = 1000.0
WAIT_DEADLINE_S: Final = 60.0
DEATH_DEADLINE_S: Final = 60.0
READ_DEADLINE: Final = "mount.read_deadline_s=600"  # readers are to wait for as long as we measure

ALONE: Final = "nobody"
Figures = Mapping[str, Sequence[float]]
"""Each figure, in the order of the runs."""


def make(source: Path, readers: int) -> None:
    """Write what is published: small files to look at, and a file for each reader; random bytes."""
    chance = random.Random(SEED)
    for path, count, least, most in (
        (HOT, HOT_FILES, 1, HOT_LENGTH_MAX),
        (DARK, readers, DARK_LENGTH, DARK_LENGTH),
        (UNKNOWN, readers, 1, 1),
    ):
        (source / path).mkdir(parents=True)
        for number in range(count):
            (source / path / f"{number:04}").write_bytes(chance.randbytes(chance.randint(least, most)))


def shuffled_names(target: Path) -> Path:
    """Write the names of the small files to *target*, in random order: a walk would have them pushed."""
    names = [f"{number:04}" for number in range(HOT_FILES)]
    random.Random(SEED).shuffle(names)
    target.write_text("\n".join(names) + "\n")
    return target


@contextmanager
def published(
    place: Path, readers: int, command: Sequence[str], options: Sequence[str]
) -> Iterator[tuple[Node, Origin]]:
    """Publish the material, start an origin below *place*, and give a node that is not mounted yet."""
    repository = Repository(place / "repository", command)
    repository.create("blackhole")
    make(place / "source", readers)
    for path in (HOT, DARK, UNKNOWN):
        repository.publish(place / "source" / path, path)
    with ExitStack() as stack:
        seeder = stack.enter_context(origin(repository, place / "origin.log"))
        peers = ["--peer", seeder.peer]
        node = Node(place / "node", seeder.url, repository.trust, "127.0.0.1:0", [*peers, *options], command)
        yield stack.enter_context(ending(node)), seeder


@contextmanager
def silent(pid: int) -> Iterator[None]:
    """Keep a process from running, and so from answering: its connections stay."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def reading(paths: Sequence[Path]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run a process for each of *paths* that reads it; none is left after the block."""
    jobs: list[subprocess.Popen[bytes]] = []
    try:
        jobs += [subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) for path in paths]
        yield jobs
    finally:
        killed_s(jobs)


def await_waiting(node: Node, jobs: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Return when a request of each job waits in the server.

    Raises: GridError: a job ended, or WAIT_DEADLINE_S are over.
    """
    deadline = time.monotonic() + WAIT_DEADLINE_S
    while (waiting := node.stats()["reads"]["waiting"]) < len(jobs):
        if time.monotonic() > deadline:
            raise GridError(f"only {waiting} of {len(jobs)} readers wait")
        check_alive(jobs)


def check_alive(jobs: Sequence["subprocess.Popen[bytes]"]) -> None:
    ended = sum(job.poll() is not None for job in jobs)
    if ended:
        raise GridError(f"{ended} of {len(jobs)} readers ended although their source is silent")


def killed_s(jobs: Sequence["subprocess.Popen[bytes]"]) -> float:
    """SIGKILL all jobs; return the seconds from the first to the end of the last.

    Raises: GridError: some live on.
    """
    poll = select.poll()
    pidfds = {os.pidfd_open(job.pid) for job in jobs if job.poll() is None}
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    alive, start = set(pidfds), time.monotonic()
    try:
        for pidfd in pidfds:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        while alive and time.monotonic() - start < DEATH_DEADLINE_S:
            for pidfd, _ in poll.poll(1000):
                alive.discard(pidfd)
                poll.unregister(pidfd)
        took_s = time.monotonic() - start
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    if alive:
        raise GridError(f"{len(alive)} readers live {DEATH_DEADLINE_S:.0f} s after SIGKILL")
    for job in jobs:
        job.wait()
    return took_s


def look(node: Node, names: Path) -> Iterator[tuple[str, float]]:
    """Look at the small files from another process; give each figure, in ms."""
    for name, title in PROBES.items():
        for percentile, value_us in probe(name, node.mountpoint / HOT, names).items():
            yield f"{title}, {percentile}", value_us / 1e3


def measure(
    node: Node, seeder: Origin, names: Path, readers: int, runs: int, say: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Measure the mounted *node* alone, and while *readers* wait for each of KINDS; return that."""
    figures: dict[str, dict[str, list[float]]] = {who: defaultdict(list) for who in (ALONE, *KINDS)}
    # From here on these need the source for nothing but the bytes of the dark files.
    run(
        [
            "sh",
            "-c",
            'cd "$1" && ls -l "$2" "$3" && cat "$2"/* >/dev/null',
            "sh",
            str(node.mountpoint),
            HOT,
            DARK,
        ]
    )
    with silent(seeder.pid):
        for number in range(runs):
            for figure, value_ms in look(node, names):
                figures[ALONE][figure].append(value_ms)
            for kind, path in KINDS.items():
                with reading([node.mountpoint / path / f"{index:04}" for index in range(readers)]) as jobs:
                    await_waiting(node, jobs)
                    for figure, value_ms in look(node, names):
                        figures[kind][figure].append(value_ms)
                    check_alive(jobs)
                    figures[kind][DEATH].append(killed_s(jobs) * 1e3)
            say(f"run {number + 1} of {runs}")
    return figures


def table(figures: Mapping[str, Figures], readers: int) -> Table:
    """Return the medians over the runs."""
    shown = Table(title=f"ms, while {readers} readers wait for a silent source's …", title_style="")
    shown.add_column("")
    for heading in (*figures, "target"):
        shown.add_column(heading, justify="right")
    for figure in figures[next(iter(KINDS))]:
        medians = [statistics.median(each[figure]) if figure in each else None for each in figures.values()]
        target = TARGET_DEATH_MS if figure == DEATH else TARGET_MS
        values = (f"{value:,.3g}" if value is not None else "" for value in medians)
        shown.add_row(figure, *values, f"{target:,.0f}")
    return shown


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--readers", default=200, help="How many processes read what does not come.")
@click.option("--runs", default=3, help="How often they are started, and killed.")
@click.option(
    "--scratch",
    "parent",
    type=click.Path(path_type=Path),
    help="For repository and cache.  [default: where temporary files go]",
)
@click.option("--torrentfs", "command", help="Another torrentfs command than this environment's.")
@click.option("--fuse", metavar="FRONT", help="`torrentfs mount --fuse`: native, pyfuse3 or auto.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting for the mount.")
@click.option(
    "--json",
    "target",
    type=click.Path(path_type=Path),
    help="Write the figures of each run to this file too.",
)
def main(
    readers: int,
    runs: int,
    parent: Path | None,
    command: str | None,
    fuse: str | None,
    settings: tuple[str, ...],
    target: Path | None,
) -> None:
    """Measure what others get of a mount while many readers wait for a source that is silent.

    The origin is stopped (SIGSTOP), so that its connections stay and nothing comes. Another process stats,
    opens and reads files that are in the kernel's caches (hot), and such that were dropped from the page
    cache and whose frames the server has (warm); first alone, then beside readers that wait for bytes, and
    such that wait for names. At last the readers are SIGKILLed, and their ends waited for.
    """
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    options = mount_options(fuse, [READ_DEADLINE, *settings])
    with ended_by_signals(), scratch(parent, "torrentfs-blackhole-") as place:
        program = [command] if command else own_command()
        try:
            with published(place, readers, program, options) as (node, seeder):
                node.mount()
                names = shuffled_names(place / "names")
                figures = measure(node, seeder, names, readers, runs, console.print)
        except (GridError, RuntimeError) as error:
            raise click.ClickException(str(error)) from error
    console.print(table(figures, readers))
    if target:
        target.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="contrib.bench.blackhole")
