"""This module measures a mount whose source is silent; see `python -m contrib.bench.blackhole --help`."""

import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from contrib.bench.places import mount_options
from contrib.bench.tasks import probe
from contrib.bench.waiting import DEATH_DEADLINE_S, UndeadError, readers, silent, start_waiting
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

SEED = 20240229
LOOKED_AT = 500
"""As many small files, and as many names in each directory of new ones."""
LENGTH_MAX = 8 * 1024
DARK_LENGTH = 64 * 1024
SMALL, NEW, DARK, UNKNOWN = "blackhole/small", "blackhole/new", "blackhole/dark", "blackhole/unknown"
ALONE = "nobody"
KINDS = {"for bytes": DARK, "for names": UNKNOWN}
"""What readers wait for. Who waits for bytes waits for a page; who waits for a name, for our very answer."""
PROBES = {
    "hot stat": ("stat_hot", SMALL),
    "hot open+read+close": ("read_hot", SMALL),
    "warm open+read+close": ("read_warm", SMALL),
    "stat, new name": ("lstat_new", NEW),
}
TARGETS = {"p99": 1000.0}
REQUESTS = "requests that wait in the server"
DEATH = "SIGKILL to the last reader's end, ms"
DEATH_TARGET_MS = 1000.0
READ_DEADLINE = "mount.read_deadline_s=600"  # readers are to wait for as long as we measure

Figures = Mapping[str, Mapping[str, Sequence[float]]]
"""Each figure in the order of the runs, by for what readers wait."""
Note = Callable[[str, str, float], None]


@dataclass(frozen=True, slots=True)
class Material:
    """What is published: files for *readers* in each of *runs*, small ones to look at, and new names."""

    source: Path
    readers: int
    runs: int

    @property
    def paths(self) -> Sequence[str]:
        return SMALL, NEW, DARK, UNKNOWN

    def new(self, who: str, number: int) -> str:
        """Return the directory whose names are looked at in one run beside *who*, and never before."""
        return f"{NEW}/{who.replace(' ', '-')}-{number}"

    def waited_for(self, kind: str, number: int) -> list[str]:
        """Return the file for each reader of one run: what those of another left behind is not theirs."""
        first = number * self.readers
        return [f"{KINDS[kind]}/{index:06}" for index in range(first, first + self.readers)]

    def make(self) -> None:
        """Write it all; contents are random bytes, the same each time."""
        chance = random.Random(SEED)
        lengths = {f"{SMALL}/{name}": chance.randint(1, LENGTH_MAX) for name in looked_at()}
        for number in range(self.runs):
            for who in (ALONE, *KINDS):
                lengths |= {f"{self.new(who, number)}/{name}": 1 for name in looked_at()}
            for kind in KINDS:
                lengths |= dict.fromkeys(self.waited_for(kind, number), DARK_LENGTH)
        for path, length in lengths.items():
            (self.source / path).parent.mkdir(parents=True, exist_ok=True)
            (self.source / path).write_bytes(chance.randbytes(length))


def looked_at() -> list[str]:
    """Return the names that are looked at, in random order: for a walk, files would be pushed."""
    names = [f"{number:04}" for number in range(LOOKED_AT)]
    random.Random(SEED).shuffle(names)
    return names


@contextmanager
def published(
    material: Material, place: Path, command: Sequence[str], options: Sequence[str]
) -> Iterator[tuple[Node, Origin]]:
    """Publish *material*, start an origin below *place*, and give a node that is not mounted yet."""
    repository = Repository(place / "repository", command)
    repository.create("blackhole")
    material.make()
    for path in material.paths:
        repository.publish(material.source / path, path)
    with ExitStack() as stack:
        seeder = stack.enter_context(origin(repository, place / "origin.log"))
        peers = ["--peer", seeder.peer]
        node = Node(place / "node", seeder.url, repository.trust, "127.0.0.1:0", [*peers, *options], command)
        yield stack.enter_context(ending(node)), seeder


def acquaint(mountpoint: Path) -> None:
    """Have the node get all that is looked at: from now on only the readers' files need its source."""
    script = 'cd "$0" && cat "$1"/* >/dev/null && ls -l "$2" "$3"'
    run(["sh", "-c", script, str(mountpoint), SMALL, NEW, DARK])


def look(node: Node, new: str, names: Path) -> Iterator[tuple[str, float]]:
    """Look at the small files and *new* names from another process; give each figure."""
    for title, (name, path) in PROBES.items():
        place = node.mountpoint / (new if path == NEW else path)
        for percentile, value_us in probe(name, place, names).items():
            yield f"{title}, {percentile}, µs", value_us


def measure(
    node: Node, seeder: Origin, material: Material, names: Path, note: Note, say: Callable[[str], None]
) -> None:
    """Measure the mounted *node* alone, and while readers wait for each of KINDS; *note* takes the figures.

    Raises: GridError, RuntimeError: what is noted by then counts.
    """
    acquaint(node.mountpoint)
    # The source speaks again before readers that outlived SIGKILL are waited for.
    with readers() as waiting, silent(seeder.pid):
        for number in range(material.runs):
            for figure, value in look(node, material.new(ALONE, number), names):
                note(ALONE, figure, value)
            for kind in KINDS:
                paths = [node.mountpoint / path for path in material.waited_for(kind, number)]
                note(kind, REQUESTS, start_waiting(node, waiting, paths))
                for figure, value in look(node, material.new(kind, number), names):
                    note(kind, figure, value)
                waiting.check()
                try:
                    note(kind, DEATH, waiting.kill() * 1e3)
                except UndeadError:
                    note(kind, DEATH, DEATH_DEADLINE_S * 1e3)
                    raise
            say(f"run {number + 1} of {material.runs}")


def table(figures: Figures, count: int) -> Table:
    """Return the medians over the runs."""
    shown = Table(title=f"while {count} readers wait for what does not come", title_style="")
    shown.add_column("")
    for heading in (*figures, "target"):
        shown.add_column(heading, justify="right")
    for figure in dict.fromkeys(figure for each in figures.values() for figure in each):
        medians = [statistics.median(each[figure]) if figure in each else None for each in figures.values()]
        shown.add_row(figure, *(as_text(value) for value in (*medians, target_of(figure))))
    return shown


def target_of(figure: str) -> float | None:
    """Return what *figure* is to be at most."""
    if figure == DEATH:
        return DEATH_TARGET_MS
    return next((most for word, most in TARGETS.items() if f", {word}, " in figure), None)


def as_text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--readers", "count", type=click.IntRange(1), default=200, help="How many processes wait at once."
)
@click.option("--runs", type=click.IntRange(1), default=3, help="How often they are started, and killed.")
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
    count: int,
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
    cache and that the node has (warm), and looks at names that are new to the kernel; first alone, then
    beside readers that wait for bytes of files, and such that wait for a package's names. At last the
    readers are SIGKILLed, and their ends waited for.
    """
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    options = mount_options(fuse, [READ_DEADLINE, *settings])
    figures: dict[str, dict[str, list[float]]] = {who: defaultdict(list) for who in (ALONE, *KINDS)}
    failure: Exception | None = None
    with ended_by_signals(), scratch(parent, "torrentfs-blackhole-") as place:
        program = [command] if command else own_command()
        material, names = Material(place / "source", count, runs), place / "names"
        names.write_text("\n".join(looked_at()) + "\n")
        try:
            with published(material, place, program, options) as (node, seeder):
                console.print(f"mounted in {node.mount():.2f} s")
                measure(
                    node,
                    seeder,
                    material,
                    names,
                    lambda who, figure, value: figures[who][figure].append(value),
                    console.print,
                )
        except (GridError, RuntimeError) as error:
            failure = error
    if any(figures.values()):
        console.print(table(figures, count))
    if target:
        target.write_text(json.dumps(figures, indent=1) + "\n")
    if failure:
        raise click.ClickException(str(failure))


if __name__ == "__main__":
    main(prog_name="contrib.bench.blackhole")
