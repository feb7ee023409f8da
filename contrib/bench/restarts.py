"""This module measures what jobs see of a killed server; see `python -m contrib.bench.restarts --help`."""

import json
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from contrib.bench.killing import measure
from contrib.bench.places import mount_options
from contrib.grid import GridError, Node, Repository, ended_by_signals, ending, origin, own_command, scratch

SEED = 20240229
FILES = 60
FILE_LENGTH_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Packages:
    """What is published: *count* packages, each with files to read, and names to look at just once."""

    source: Path
    count: int
    kills: int

    @property
    def paths(self) -> list[str]:
        return [f"restarts/package-{index}" for index in range(self.count)]

    @property
    def names(self) -> list[str]:
        """Return the files that the job reads."""
        return [f"{path}/payload/file-{index}" for path in self.paths for index in range(FILES)]

    @property
    def fresh(self) -> list[str]:
        """Return a name for each kill, of every package in turn, that nobody looks at before."""
        return [
            f"{self.paths[kill % self.count]}/fresh/name-{kill // self.count}" for kill in range(self.kills)
        ]

    def make(self) -> None:
        """Write them all; contents are random bytes, the same each time."""
        chance = random.Random(SEED)
        for name in [*self.names, *self.fresh]:
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(chance.randbytes(chance.randrange(FILE_LENGTH_MAX)))


def table(figures: Mapping[str, Sequence[float]], kills: int) -> Table:
    """Return the median and the largest of each figure that there is."""
    shown = Table(title=f"{kills} kills of the server", title_style="")
    shown.add_column("")
    for heading in ("median", "max"):
        shown.add_column(heading, justify="right")
    for name, values in figures.items():
        if any(values):
            median, largest = statistics.median(values), max(values)
            shown.add_row(
                name, *(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in (median, largest))
            )
    return shown


@contextmanager
def published(
    packages: Packages, place: Path, command: Sequence[str], options: Sequence[str]
) -> Iterator[Node]:
    """Publish *packages*, start an origin below *place*, and give a node that is not mounted yet."""
    repository = Repository(place / "repository", command)
    repository.create("restarts")
    packages.make()
    for path in packages.paths:
        repository.publish(packages.source / path, path)
    with ExitStack() as stack:
        seeder = stack.enter_context(origin(repository, place / "origin.log"))
        peers = ["--peer", seeder.peer]
        node = Node(place / "node", seeder.url, repository.trust, "127.0.0.1:0", [*peers, *options], command)
        yield stack.enter_context(ending(node))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--kills", default=20, help="How often the server is killed.")
@click.option("--packages", "count", default=10, help="How many small packages the job reads.")
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
    "--json", "target", type=click.Path(path_type=Path), help="Write every sample to this file too."
)
def main(
    kills: int,
    count: int,
    parent: Path | None,
    command: str | None,
    fuse: str | None,
    settings: tuple[str, ...],
    target: Path | None,
) -> None:
    """Kill a mount's server under a running job, again and again.

    Small packages are published and mounted; a job reads them in a loop and compares every byte. The server
    is SIGKILLed at random moments; each time another process at once looks at a name that is new to the
    kernel. Shown are the times from kill to that answer, and the longest read of the job after each kill.
    """
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    with ended_by_signals(), scratch(parent, "torrentfs-restarts-") as place:
        packages = Packages(place / "source", count, kills)
        program = [command] if command else own_command()
        try:
            with published(packages, place, program, mount_options(fuse, settings)) as node:
                console.print(f"{count} packages published; mounted in {node.mount():.2f} s")
                figures = measure(node, packages.source, packages.names, packages.fresh, place)
        except GridError as error:
            raise click.ClickException(str(error)) from error
    console.print(table(figures, kills))
    if target:
        target.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="contrib.bench.restarts")
