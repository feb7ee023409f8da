"""This module is the benchmark's command line: prepare, run the tasks on each place, print the table."""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console

from contrib import python_tree
from contrib.bench import material, report
from contrib.bench.link import Distance, Link, link, round_trip_ms
from contrib.bench.measuring import IDLE, measure, measure_idle
from contrib.bench.places import Disk, Mount, Place, mount_options, mounted
from contrib.bench.report import Results
from contrib.bench.tasks import TASKS, Corner, Task, sample_names
from contrib.grid import GridError, Node, Repository, ended_by_signals, ending, origin, scratch

MIB = 1024 * 1024
TREE_PATH = "bench/python"
FILE_PATH = "bench/large"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    runs: int
    tasks: Sequence[Task]
    idle: bool
    command: Sequence[str]
    mount_options: Sequence[str]
    distance: Distance


def default_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torrentfs-bench"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--runs", default=1, help="How often everything is measured; medians are shown.")
@click.option("--file-mib", default=1024, help="Length of the large file.")
@click.option("--only", multiple=True, metavar="WORD", help="Just the tasks with a word that begins so.")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Keeps the built material.  [default: user's cache]"
)
@click.option(
    "--scratch",
    "parent",
    type=click.Path(path_type=Path),
    help="For repository and caches.  [default: beside it]",
)
@click.option("--round-trip-ms", default=0.0, help="Round-trip time between node and origin.")
@click.option(
    "--bandwidth", default=0.0, metavar="MB/S", help="Bandwidth between them, each way; 0: unbounded."
)
@click.option("--torrentfs", "command", help="Another torrentfs command than this environment's.")
@click.option("--fuse", metavar="FRONT", help="`torrentfs mount --fuse`: native, pyfuse3 or auto.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting for the mount.")
@click.option("--only-ext4", is_flag=True, help="Leave the mount out.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write everything to this file too.")
def main(
    runs: int,
    file_mib: int,
    only: tuple[str, ...],
    directory: Path | None,
    parent: Path | None,
    round_trip_ms: float,
    bandwidth: float,
    command: str | None,
    fuse: str | None,
    settings: tuple[str, ...],
    only_ext4: bool,
    target: Path | None,
) -> None:
    """Measure a mount beside ext4: cold, warm and hot.

    A Python installation of some 20,000 files, numpy and scipy in it, and a large file, half zeros, half
    random, are published; an origin and a node run as processes; jobs are timed on the mount and on the
    same files on disk. Needs root: it mounts, and drops the kernel's caches before each measurement that is
    not hot. What a restart of the server costs is another program's: python -m contrib.bench.restarts.
    """
    if os.geteuid() != 0:
        raise click.ClickException("needs root: it mounts, and drops the kernel's caches")
    keep = directory or default_directory()
    options = Options(
        runs=runs,
        tasks=[task for task in TASKS if wanted(task.name, only)],
        idle=wanted(IDLE, only),
        command=[command or str(Path(sys.executable).with_name("torrentfs"))],
        mount_options=mount_options(fuse, settings),
        distance=Distance(round_trip_ms / 1e3, bandwidth * 1e6),
    )
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    with ended_by_signals(), ExitStack() as stack:
        console.print(f"material in {keep}; building what is missing")
        tree, file = material.tree(keep), material.large_file(keep, file_mib * MIB)
        (parent or keep).mkdir(parents=True, exist_ok=True)
        place = stack.enter_context(scratch(parent or keep, "run-"))
        corner = Corner(tree, file, place / "names")
        sample_names(tree.prefix, corner.names)
        results = Results()
        describe(results, options, corner)
        places: list[Place] = [Disk(corner)]
        try:
            if not only_ext4:
                mount = stack.enter_context(published(options, place, corner, results, console))
                places.append(mount)
            for run in range(options.runs):
                console.print(f"run {run + 1} of {options.runs}")
                measure(options.tasks, places, results, console.print)
                if options.idle and not only_ext4:
                    measure_idle(mount, results)
        except (GridError, RuntimeError) as error:
            raise click.ClickException(str(error)) from error
    if results.samples:
        console.print(report.table(results))
    if results.extras:
        console.print(report.extras(results))
    if target:
        target.write_text(json.dumps(report.as_json(results), indent=1) + "\n")


def wanted(name: str, only: Sequence[str]) -> bool:
    """Return whether *name* has a word that begins like one of *only*, or all are wanted."""
    return not only or any(each.startswith(word) for each in name.split() for word in only)


def describe(results: Results, options: Options, corner: Corner) -> None:
    files, length = python_tree.count(corner.tree.prefix)
    results.about |= {
        "torrentfs": version("torrentfs"),
        "runs": options.runs,
        "tree": {"files": files, "bytes": length},
        "file_bytes": corner.file.stat().st_size,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "settings": list(options.mount_options),
        "round_trip_ms": options.distance.round_trip_s * 1e3,
        "bandwidth_mb_s": options.distance.rate_bytes / 1e6,
    }


@contextmanager
def published(
    options: Options, place: Path, corner: Corner, results: Results, console: Console
) -> Iterator[Mount]:
    """Publish the material, start an origin, and give the mount of a node that is not mounted yet."""
    repository = Repository(place / "repository", options.command)
    repository.create("bench")
    about_tree = results.about["tree"]
    seconds = repository.publish(corner.tree.prefix, TREE_PATH)
    results.extras["publish the tree, MB/s of input"].append(about_tree["bytes"] / seconds / 1e6)
    console.print(
        f"published {about_tree['files']} files, {about_tree['bytes'] / 1e6:.0f} MB in {seconds:.1f} s"
    )
    seconds = repository.publish(corner.file, FILE_PATH)
    results.extras["publish the large file, MB/s of input"].append(
        results.about["file_bytes"] / seconds / 1e6
    )
    with ExitStack() as stack:
        joined = stack.enter_context(far_side(options, place, console))
        host, inside = (joined.far, joined.inside) if joined else ("127.0.0.1", ())
        seeder = stack.enter_context(origin(repository, place / "origin.log", host=host, prefix=inside))
        node = Node(
            place / "node",
            seeder.url,
            repository.trust,
            listen="0.0.0.0:0",
            options=["--peer", seeder.peer, *options.mount_options],
            command=options.command,
        )
        stack.enter_context(ending(node))
        yield Mount(node, mounted(corner, node, TREE_PATH, FILE_PATH))


@contextmanager
def far_side(options: Options, place: Path, console: Console) -> Iterator[Link | None]:
    """Give the link to the origin's side, if there is to be any distance."""
    if not options.distance:
        yield None
        return
    with link(options.distance, place / "relay.log") as joined:
        measured = round_trip_ms(joined)
        console.print(
            f"origin behind {joined.means}; a TCP handshake takes {measured or float('nan'):.2f} ms"
        )
        yield joined


if __name__ == "__main__":
    main(prog_name="contrib.bench")
