"""This module is `make demo`: a real Python job, run from two mounts of one published Python.

It publishes the Python that runs it, starts an origin and two nodes, each with its own cache and mount, below
a temporary directory, and leaves nothing behind: not on an error, not on Ctrl-C, not on SIGTERM.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from contrib import python_tree
from contrib.grid import (
    GridError,
    Node,
    Repository,
    ended_by_signals,
    ending,
    free_port,
    origin,
    own_command,
    run,
    scratch,
)
from contrib.python_tree import PythonTree

JOB_TIMEOUT_S = 120.0
NAME = "demo"

# Counts the words of the modules that it imported, in threads, and adds them up in SQLite: modules, shared
# libraries and data files are touched as in the start of many a job.
JOB = """
import asyncio, collections, json, pathlib, sqlite3, ssl, sys, unittest, xml.dom.minidom

def words(name):
    source = pathlib.Path(json.__file__).parent.parent.joinpath(name + ".py")
    return collections.Counter(source.read_text().split()) if source.exists() else collections.Counter()

async def count(names):
    return await asyncio.gather(*(asyncio.to_thread(words, name) for name in names))

names = sorted(name for name in sys.modules if "." not in name)
database = sqlite3.connect(":memory:")
database.execute("create table word (word text, count integer)")
for counted in asyncio.run(count(names)):
    database.executemany("insert into word values (?, ?)", counted.items())
total, = database.execute("select sum(count) from word").fetchone()
print(json.dumps({"prefix": sys.prefix, "modules": len(sys.modules), "words": total}))
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of the job: how long it took, and what the node fetched for it."""

    what: str
    seconds: float
    from_peers: int | None = None
    from_mirrors: int | None = None
    cached: int = 0
    size: int = 0


def do_job(tree: PythonTree) -> tuple[float, dict[str, Any]]:
    """Run the job by *tree*'s own interpreter; return the seconds it took, and what it printed.

    Raises: GridError: it failed.
    """
    start = time.perf_counter()
    done = subprocess.run(
        tree.command(JOB),
        env=tree.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise GridError(f"the job failed: {done.stderr.strip()}")
    printed: dict[str, Any] = json.loads(done.stdout)
    return seconds, printed


def observed(what: str, node: Node, path: str) -> Outcome:
    """Run the job on *node*'s mount; return its outcome with the bytes that came meanwhile."""
    tree = PythonTree(node.mountpoint / path)
    before = node.stats()
    seconds, printed = do_job(tree)
    if not str(printed["prefix"]).startswith(str(node.mountpoint)):
        raise GridError(f"the job ran from {printed['prefix']}, not from the mount")
    after = node.stats()
    package = next(package for package in after["packages"] if package["path"] == path)

    def came(source: str) -> int:
        return int(figure(after, f"bytes.{source}") - figure(before, f"bytes.{source}"))

    return Outcome(
        what, seconds, came("from_peers"), came("from_mirrors"), package["cached"], package["size"]
    )


def figure(stats: Mapping[str, Any], key: str) -> Any:
    """Return the figure under the dotted *key*."""
    value: Any = stats
    for name in key.split("."):
        value = value[name]
    return value


def table(outcomes: list[Outcome]) -> Table:
    shown = Table(title="one job: a Python start, its library read, threads, SQLite", title_style="")
    shown.add_column("")
    for heading in ("seconds", "from peers", "from mirrors", "of the package here"):
        shown.add_column(heading, justify="right")
    for outcome in outcomes:
        share = f"{100 * outcome.cached / outcome.size:.1f} %" if outcome.size else "–"
        shown.add_row(
            outcome.what,
            f"{outcome.seconds:.2f}",
            megabytes(outcome.from_peers),
            megabytes(outcome.from_mirrors),
            share,
        )
    return shown


def megabytes(length: int | None) -> str:
    return "–" if length is None else f"{length / 1e6:.1f} MB"


def demonstrate(place: Path, say: Callable[[Any], None]) -> None:
    """Publish, mount twice, run the job three times, all below *place*."""
    path = f"Python/{platform.python_version()}"
    tree = PythonTree(place / "python")
    python_tree.build(tree)
    python_tree.compile_sources(tree)
    files, length = python_tree.count(tree.prefix)
    on_disk = [do_job(tree)[0] for _ in range(2)]

    repository = Repository(place / "repository")
    repository.create(NAME)
    say(f"publishing this Python, {files} files, {length / 1e6:.0f} MB, as {path}")
    seconds = repository.publish(tree.prefix, path)
    say(f"… in {seconds:.1f} s, {length / seconds / 1e6:.0f} MB/s; signed, packed and hashed")

    with ExitStack() as stack:
        seeder = stack.enter_context(origin(repository, place / "origin.log"))
        say(f"the origin serves {seeder.url} and seeds on {seeder.peer}")

        def node(name: str, *peers: str) -> Node:
            options = [word for peer in peers for word in ("--peer", peer)]
            listen = f"127.0.0.1:{free_port()}"
            return stack.enter_context(
                ending(Node(place / name, seeder.url, repository.trust, listen, options))
            )

        first = node("node1")
        say(f"node 1 mounts {first.mountpoint} ({first.mount():.2f} s)")
        outcomes = [Outcome("this machine's disk, hot", on_disk[-1])]
        outcomes.append(observed("node 1, cold", first, path))
        second = node("node2", first.listen)
        say(f"node 2 mounts {second.mountpoint} ({second.mount():.2f} s) and knows node 1 as a peer")
        outcomes.append(observed("node 2, cold, node 1 a peer", second, path))
        given = figure(first.stats(), "bytes.uploaded")
        outcomes.append(observed("node 2, warm", second, path))

        say(table(outcomes))
        say(f"of node 2's bytes, node 1 gave {megabytes(given)}\n")
        for mounted in (first, second):
            say(run([*own_command(), "stats", str(mounted.mountpoint)]).rstrip() + "\n")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True), help="Make the temporary place here."
)
def main(directory: Path | None) -> None:
    """Show torrentfs at work on this machine: a published Python that two nodes run a job from."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    try:
        with (
            ended_by_signals(),
            scratch(directory, "torrentfs-demo-") as place,
        ):
            demonstrate(place, console.print)
        console.print("all ended and removed: mounts, daemons, caches")
    except GridError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("interrupted; all ended and removed")
        sys.exit(130)


if __name__ == "__main__":
    main(prog_name="contrib.demo", standalone_mode=True)
